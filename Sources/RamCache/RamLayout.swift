import Units

/// The RAM blocks of a guest, in the order in which the migration stream announced them. A block is named by its
/// index in this list everywhere else.
public struct RamLayout: Sendable, Equatable {
    /// One RAM block.
    public struct Block: Sendable, Equatable {
        /// QEMU's name of the block ("pc.ram"): 1 to 255 bytes of UTF-8.
        public let name: String
        /// Bytes; a multiple of 4096, at least one page.
        public let length: UInt64

        public init(name: String, length: UInt64) {
            self.name = name
            self.length = length
        }

        /// Number of 4096-byte pages.
        public var pageCount: UInt64 { length / UInt64(Sizes.page) }
    }

    /// The most blocks that are accepted.
    public static let maximumBlocks = 1024
    /// The most RAM that is accepted, in bytes (1 TiB).
    public static let maximumBytes: UInt64 = 1 << 40
    /// Blocks at least this long (bytes) are mapped by the QEMU that takes over; smaller ones travel in its stream.
    public static let mappedMinimumBytes: UInt64 = 1 << 20

    public let blocks: [Block]
    /// Sum of all lengths in bytes.
    public let total: UInt64
    /// Names this layout: FNV-1a (64 bits) over ``encoded()``. Files made for another layout are refused by it.
    public let digest: UInt64
    private let offsets: [UInt64]

    /// Checks names, lengths and limits; `blocks` may come from a peer.
    public init(blocks: [Block]) throws(RamLayoutError) {
        guard !blocks.isEmpty else { throw .noBlocks }
        guard blocks.count <= Self.maximumBlocks else { throw .tooManyBlocks(blocks.count) }
        var names = Set<String>()
        var offsets: [UInt64] = []
        var total: UInt64 = 0
        for (index, block) in blocks.enumerated() {
            guard (1...255).contains(block.name.utf8.count) else { throw .badName(index: index) }
            guard names.insert(block.name).inserted else { throw .duplicateName(block.name) }
            guard block.length > 0, block.length % UInt64(Sizes.page) == 0, block.length <= Self.maximumBytes else {
                throw .badLength(name: block.name, length: block.length)
            }
            offsets.append(total)
            total += block.length
            guard total <= Self.maximumBytes else { throw .tooLarge(bytes: total) }
        }
        self.blocks = blocks
        self.total = total
        self.offsets = offsets
        self.digest = Self.digest(of: Self.encode(blocks))
    }

    /// Number of pages of all blocks together.
    public var pageCount: Int { Int(total / UInt64(Sizes.page)) }

    /// Whether the QEMU that takes over maps this block from its cache file.
    public func isMapped(_ block: Int) -> Bool { blocks[block].length >= Self.mappedMinimumBytes }

    /// Offset of a block in bytes when all blocks lie one behind the other.
    public func offset(of block: Int) -> UInt64 { offsets[block] }

    /// Number of a page when the pages of all blocks are counted through.
    @inline(__always)
    public func globalPage(block: Int, page: UInt64) -> Int { Int(offsets[block] / UInt64(Sizes.page) + page) }

    /// The block and the page inside it of a page counted through all blocks. Traps when it lies behind the last one.
    public func location(ofGlobalPage page: Int) -> (block: Int, page: UInt64) {
        let offset = UInt64(page) * UInt64(Sizes.page)
        precondition(page >= 0 && offset < total)
        var low = 0
        var high = blocks.count
        while high - low > 1 {
            let middle = (low + high) / 2
            if offsets[middle] <= offset { low = middle } else { high = middle }
        }
        return (low, (offset - offsets[low]) / UInt64(Sizes.page))
    }

    /// Canonical bytes: u16 count, then per block u8 length of the name, the name, u64 length; big endian.
    public func encoded() -> [UInt8] { Self.encode(blocks) }

    /// Reads what ``encoded()`` wrote.
    public init(decoding bytes: UnsafeRawBufferPointer) throws(RamLayoutError) {
        var reader = ByteReader(bytes)
        var blocks: [Block] = []
        do {
            let count: UInt16 = try reader.read()
            guard Int(count) <= Self.maximumBlocks else { throw RamLayoutError.tooManyBlocks(Int(count)) }
            for index in 0..<Int(count) {
                let nameLength: UInt8 = try reader.read()
                guard let name = try reader.readString(Int(nameLength)) else {
                    throw RamLayoutError.badName(index: index)
                }
                blocks.append(Block(name: name, length: try reader.read()))
            }
        } catch let error as RamLayoutError {
            throw error
        } catch {
            throw .truncated(offset: reader.offset)
        }
        guard reader.remaining == 0 else { throw .trailingBytes(offset: reader.offset) }
        try self.init(blocks: blocks)
    }

    private static func encode(_ blocks: [Block]) -> [UInt8] {
        var writer = ByteWriter(reservingCapacity: 2 + blocks.count * 32)
        writer.write(UInt16(blocks.count))
        for block in blocks {
            writer.write(UInt8(block.name.utf8.count))
            writer.write(utf8: block.name)
            writer.write(block.length)
        }
        return writer.bytes
    }

    private static func digest(of bytes: [UInt8]) -> UInt64 {
        var hash: UInt64 = 0xCBF2_9CE4_8422_2325
        for byte in bytes { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01B3 }
        return hash
    }
}

/// Why a list of RAM blocks is refused.
public enum RamLayoutError: Error, Equatable, CustomStringConvertible {
    case noBlocks
    case tooManyBlocks(Int)
    case badName(index: Int)
    case duplicateName(String)
    case badLength(name: String, length: UInt64)
    case tooLarge(bytes: UInt64)
    case truncated(offset: Int)
    case trailingBytes(offset: Int)

    public var description: String {
        switch self {
        case .noBlocks: "RAM layout: there is no RAM block"
        case .tooManyBlocks(let count):
            "RAM layout: \(count) blocks, at most \(RamLayout.maximumBlocks) are accepted"
        case .badName(let index): "RAM layout: the name of block \(index) is not 1 to 255 bytes of UTF-8"
        case .duplicateName(let name): "RAM layout: two blocks are named \"\(name)\""
        case .badLength(let name, let length):
            "RAM layout: block \"\(name)\" has \(length) bytes, which is not a multiple of 4096 between 4096 and 1 TiB"
        case .tooLarge(let bytes):
            "RAM layout: \(bytes) bytes in all, at most \(RamLayout.maximumBytes) are accepted"
        case .truncated(let offset): "RAM layout: ends inside the value at byte \(offset)"
        case .trailingBytes(let offset): "RAM layout: bytes behind its end at byte \(offset)"
        }
    }
}
