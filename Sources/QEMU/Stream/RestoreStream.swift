import Units

/// Builds the migration stream that turns a new, waiting QEMU (`-incoming`) into the guest of a checkpoint.
///
/// ```
/// "QEVM" 00000003  07 configuration
/// 01 RAM layout                        as the primary had it
/// 03 pages of the small blocks         ROMs and firmware tables; zero pages too, since QEMU preloads firmware
/// device state                         verbatim, first 04 ... 00
/// 06 00000002 "{}"                     an empty description, or QEMU warns
/// ```
/// Blocks that the new QEMU maps from files (its main memory) are listed but get no pages. QEMU must be closed to
/// writing behind the last byte, and starts to run by itself if the guest ran when the checkpoint was taken.
public struct RestoreStream: Sendable, Equatable {
    public enum Problem: Error, Equatable, Sendable, CustomStringConvertible {
        case configuration(MachineConfiguration.Problem)
        case noBlocks
        case badBlockName(String)
        case duplicateBlock(String)
        case badBlockLength(name: String, length: UInt64)
        case ramTooLarge(limit: UInt64)
        case tooManyBlocks(limit: Int)
        case noSuchBlock(index: Int, count: Int)
        case malformedDeviceState(bytes: Int)

        public var description: String {
            switch self {
            case .configuration(let problem): "restore stream: configuration section: \(problem)"
            case .noBlocks: "restore stream: the list of RAM blocks is empty"
            case .badBlockName(let name):
                "restore stream: RAM block name of \(name.utf8.count) bytes; 1 to 255 are allowed"
            case .duplicateBlock(let name): "restore stream: RAM block '\(name)' is listed twice"
            case .badBlockLength(let name, let length):
                "restore stream: RAM block '\(name)' of \(length) bytes; it must be a multiple of 4096 and not empty"
            case .ramTooLarge(let limit): "restore stream: more than \(limit) bytes of RAM"
            case .tooManyBlocks(let limit): "restore stream: more than \(limit) RAM blocks"
            case .noSuchBlock(let index, let count): "restore stream: mapped block \(index) of \(count)"
            case .malformedDeviceState(let bytes):
                "restore stream: the \(bytes) bytes of device state do not run from a device section to an end mark"
            }
        }
    }

    public let blocks: [RamBlockDescription]
    /// Indices of the blocks whose pages are not sent.
    public let mapped: Set<Int>

    private let ramSectionID: UInt32
    /// Everything up to the RAM pages; the same for every checkpoint.
    private let opening: [UInt8]

    /// - Parameters:
    ///   - configuration: payload of section 07 as ``MigrationSink/configuration(_:)`` gave it.
    ///   - ramSectionID: as ``MigrationSink/ramLayout(_:sectionID:)`` gave it; the same for `blocks`.
    ///   - mapped: indices of the blocks that the new QEMU has already.
    public init(
        configuration: [UInt8], ramSectionID: UInt32, blocks: [RamBlockDescription], mapped: Set<Int>,
        limits: MigrationLimits = MigrationLimits()
    ) throws(Problem) {
        do throws(MachineConfiguration.Problem) {
            _ = try MachineConfiguration(parsing: configuration, limits: limits)
        } catch {
            throw .configuration(error)
        }
        let total = try Self.checkedTotal(of: blocks, limits: limits)
        for index in mapped where !blocks.indices.contains(index) {
            throw .noSuchBlock(index: index, count: blocks.count)
        }
        self.blocks = blocks
        self.mapped = mapped
        self.ramSectionID = ramSectionID
        self.opening = Self.opening(
            configuration: configuration, ramSectionID: ramSectionID, blocks: blocks, total: total)
    }

    private static func checkedTotal(
        of blocks: [RamBlockDescription], limits: MigrationLimits
    ) throws(Problem) -> UInt64 {
        guard !blocks.isEmpty else { throw .noBlocks }
        guard blocks.count <= limits.maxBlocks else { throw .tooManyBlocks(limit: limits.maxBlocks) }
        var names: Set<String> = []
        var total: UInt64 = 0
        for block in blocks {
            guard (1...255).contains(block.name.utf8.count) else { throw .badBlockName(block.name) }
            guard names.insert(block.name).inserted else { throw .duplicateBlock(block.name) }
            guard block.length > 0, block.length % UInt64(MigrationWire.page) == 0 else {
                throw .badBlockLength(name: block.name, length: block.length)
            }
            guard block.length <= limits.maxRamBytes - total else { throw .ramTooLarge(limit: limits.maxRamBytes) }
            total += block.length
        }
        return total
    }

    private static func opening(
        configuration: [UInt8], ramSectionID: UInt32, blocks: [RamBlockDescription], total: UInt64
    ) -> [UInt8] {
        var writer = ByteWriter(reservingCapacity: 64 + configuration.count + blocks.count * 32)
        writer.write(MigrationWire.magic)
        writer.write(MigrationWire.version)
        writer.write(MigrationWire.configuration)
        writer.write(bytes: configuration)
        writer.write(MigrationWire.sectionStart)
        writer.write(ramSectionID)
        writer.write(UInt8(MigrationWire.ramSectionName.utf8.count))
        writer.write(utf8: MigrationWire.ramSectionName)
        writer.write(UInt32(0))
        writer.write(MigrationWire.ramSectionVersion)
        writer.write(total | MigrationWire.flagMemSize)
        for block in blocks {
            writer.write(UInt8(block.name.utf8.count))
            writer.write(utf8: block.name)
            writer.write(block.length)
        }
        writer.write(MigrationWire.flagEnd)
        writer.write(MigrationWire.footer)
        writer.write(ramSectionID)
        return writer.bytes
    }

    /// Appends the whole stream to `out`.
    ///
    /// - Parameters:
    ///   - smallBlockPages: lends the contents of a block that is not mapped, all of its bytes. Asked once for each, in
    ///     rising order, and read before it is asked again. Traps when the length is not the block's.
    ///   - deviceState: as the sink was given it, end mark included.
    /// - Throws: when `deviceState` cannot be one; then nothing was appended.
    public func build(
        smallBlockPages: (Int) -> UnsafeRawBufferPointer, deviceState: UnsafeRawBufferPointer, into out: inout [UInt8]
    ) throws(Problem) {
        guard deviceState.count > 6, deviceState[0] == MigrationWire.sectionFull,
            deviceState[deviceState.count - 6] == MigrationWire.footer,
            deviceState[deviceState.count - 1] == MigrationWire.endOfFile
        else { throw .malformedDeviceState(bytes: deviceState.count) }
        out.reserveCapacity(out.count + maxByteCount(deviceState: deviceState.count))
        begin(into: &out)
        for index in blocks.indices where !mapped.contains(index) {
            let contents = smallBlockPages(index)
            precondition(UInt64(contents.count) == blocks[index].length, "contents of a RAM block with a wrong length")
            append(block: index, contents: contents, to: &out)
        }
        end(deviceState: deviceState, into: &out)
    }

    // MARK: Piece by piece, for streams that are too long for memory

    /// Appends everything that comes before the first page.
    public func begin(into out: inout [UInt8]) {
        out.append(contentsOf: opening)
        out.append(MigrationWire.sectionEnd)
        Self.append(ramSectionID, to: &out)
    }

    /// Appends one page, as zero when it is. Traps unless the page lies in the block.
    ///
    /// - Parameter isFirst: no page of this block was appended just before: then the block is named.
    public func append(
        block: Int, page: UInt64, contents: UnsafeRawBufferPointer, isFirst: Bool, into out: inout [UInt8]
    ) {
        precondition(contents.count == MigrationWire.page)
        precondition(page < blocks[block].length / UInt64(MigrationWire.page))
        let isZero = Self.isZero(contents)
        let kind = isZero ? MigrationWire.flagZero : MigrationWire.flagPage
        let same = isFirst ? 0 : MigrationWire.flagContinue
        Self.append(page * UInt64(MigrationWire.page) | kind | same, to: &out)
        if isFirst {
            let name = blocks[block].name.utf8
            out.append(UInt8(name.count))
            out.append(contentsOf: name)
        }
        if isZero {
            out.append(0)
        } else {
            out.append(contentsOf: contents)
        }
    }

    /// Appends everything that comes behind the last page.
    public func end(deviceState: UnsafeRawBufferPointer, into out: inout [UInt8]) {
        Self.append(MigrationWire.flagEnd, to: &out)
        out.append(MigrationWire.footer)
        Self.append(ramSectionID, to: &out)
        out.append(contentsOf: deviceState)
        out.append(MigrationWire.vmdesc)
        Self.append(UInt32(2), to: &out)
        out.append(contentsOf: "{}".utf8)
    }

    /// Bytes of a stream in which no page is zero.
    private func maxByteCount(deviceState: Int) -> Int {
        let page = MigrationWire.page
        let blockBytes = blocks.indices.filter { !mapped.contains($0) }.map { index in
            Int(blocks[index].length) / page * (page + 8) + 1 + blocks[index].name.utf8.count
        }
        return opening.count + blockBytes.reduce(0, +) + deviceState + 64
    }

    private func append(block index: Int, contents: UnsafeRawBufferPointer, to out: inout [UInt8]) {
        for offset in stride(from: 0, to: contents.count, by: MigrationWire.page) {
            let page = UnsafeRawBufferPointer(rebasing: contents[offset..<offset + MigrationWire.page])
            append(
                block: index, page: UInt64(offset / MigrationWire.page), contents: page, isFirst: offset == 0,
                into: &out)
        }
    }

    /// Whether all bytes are zero; their number is a multiple of 8.
    public static func isZero(_ page: UnsafeRawBufferPointer) -> Bool {
        for offset in stride(from: 0, to: page.count, by: 8)
        where page.loadUnaligned(fromByteOffset: offset, as: UInt64.self) != 0 {
            return false
        }
        return true
    }

    private static func append<T: FixedWidthInteger>(_ value: T, to out: inout [UInt8]) {
        withUnsafeBytes(of: value.bigEndian) { out.append(contentsOf: $0) }
    }
}
