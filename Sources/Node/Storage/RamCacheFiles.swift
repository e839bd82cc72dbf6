import AsyncIO
import Glibc
import RamCache
import Units

/// One tmpfs file per RAM block, mapped; and the marker that says which epoch they hold.
///
/// Memory is taken from the tmpfs in pieces of 64 KiB before it is first written, so a full tmpfs is an error and not
/// a signal. A piece that was never taken is zero and is not read through the mapping, because that would take it.
/// Confined to the storage thread.
final class RamCacheFiles {
    static let pieceBytes = 65536
    private static let piecePages = UInt64(pieceBytes / Sizes.page)
    private static let markerName = "applied"

    let directory: String
    let layout: RamLayout
    private let session: Identifier
    private let blocks: [MappedMemory]
    private let bases: [UnsafeMutableRawPointer]
    /// Index of the first piece of every block.
    private let firstPieces: [Int]
    private var taken: Bitmap
    private let zeroPage = AnonymousMemory(byteCount: Sizes.page)
    private let markerFile: DirectFile
    /// What the cache holds, as the marker says.
    private(set) var marker: RamMarker

    /// Makes empty files in a new directory. The marker says that `epoch` is being filled in.
    static func create(
        directory: String, session: Identifier, layout: RamLayout, epoch: Epoch
    ) throws(RamStoreError) -> RamCacheFiles {
        try RamTmpfs.secure(directory)
        let files = try RamStoreError.wrap(epoch) { () throws(IOError) in
            var blocks: [MappedMemory] = []
            for index in layout.blocks.indices {
                let path = path(directory, layout, index)
                blocks.append(try MappedMemory.create(path: path, size: Int(layout.blocks[index].length)))
            }
            let markerFile = try DirectFile(path: directory + "/" + markerName, mode: .create, direct: false)
            let marker = RamMarker(
                session: session, layoutDigest: layout.digest, epoch: epoch, sequence: 0, state: .filling)
            return RamCacheFiles(directory, layout, session, blocks, markerFile, marker)
        }
        try files.mark(.filling, epoch)
        // Small blocks are read as a whole for every restore stream.
        for index in layout.blocks.indices where !layout.isMapped(index) {
            try files.take(block: index, bytes: 0..<layout.blocks[index].length)
        }
        return files
    }

    /// Opens what ``create(directory:session:layout:epoch:)`` made; nil when it is not there or does not fit.
    static func open(
        directory: String, session: Identifier, layout: RamLayout
    ) throws(RamStoreError) -> RamCacheFiles? {
        guard Directory.exists(directory) else { return nil }
        try RamTmpfs.secure(directory)
        for index in layout.blocks.indices where !Directory.exists(path(directory, layout, index)) { return nil }
        guard Directory.exists(directory + "/" + markerName) else { return nil }
        let opened = try RamStoreError.wrap { () throws(IOError) -> RamCacheFiles? in
            let markerFile = try DirectFile(path: directory + "/" + markerName, mode: .readWrite, direct: false)
            let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: 2 * RamMarker.slotBytes, alignment: 8)
            defer { bytes.deallocate() }
            let count = try markerFile.readAvailable(at: 0, into: bytes)
            let slots = UnsafeRawBufferPointer(rebasing: bytes[0..<count])
            guard let marker = RamMarker.newest(in: slots), marker.session == session,
                marker.layoutDigest == layout.digest
            else {
                return nil
            }
            var blocks: [MappedMemory] = []
            for index in layout.blocks.indices {
                let length = layout.blocks[index].length
                let path = path(directory, layout, index)
                guard try DirectFile(path: path, mode: .readOnly, direct: false).size() == length else { return nil }
                blocks.append(try MappedMemory.open(path: path, writable: true))
            }
            return RamCacheFiles(directory, layout, session, blocks, markerFile, marker)
        }
        guard let files = opened else { return nil }
        for index in layout.blocks.indices {
            let length = layout.blocks[index].length
            for range in try RamTmpfs.dataRanges(of: path(directory, layout, index), size: length) {
                try files.take(block: index, bytes: range)
            }
        }
        return files
    }

    private init(
        _ directory: String, _ layout: RamLayout, _ session: Identifier, _ blocks: [MappedMemory],
        _ markerFile: DirectFile, _ marker: RamMarker
    ) {
        self.directory = directory
        self.layout = layout
        self.session = session
        self.blocks = blocks
        self.markerFile = markerFile
        self.marker = marker
        bases = blocks.map { block in
            guard let base = block.bytes.baseAddress else { preconditionFailure("a mapping has an address") }
            return base
        }
        var firstPieces: [Int] = []
        var pieces = 0
        for block in layout.blocks {
            firstPieces.append(pieces)
            pieces += (Int(block.length) + Self.pieceBytes - 1) / Self.pieceBytes
        }
        self.firstPieces = firstPieces
        taken = Bitmap(count: pieces)
    }

    // MARK: Pages

    /// The page's contents for reading; nil when it is zero because it was never written.
    @inline(__always)
    func page(_ block: Int, _ page: UInt64) -> UnsafeRawPointer? {
        guard taken.contains(firstPieces[block] + Int(page / Self.piecePages)) else { return nil }
        return UnsafeRawPointer(bases[block] + Int(page) * Sizes.page)
    }

    /// The page's contents for reading, a page of zeroes if it was never written.
    func pageOrZeroes(_ block: Int, _ page: UInt64) -> UnsafeRawPointer {
        self.page(block, page) ?? UnsafeRawPointer(zeroPage.base)
    }

    /// Takes the memory that writing the page needs.
    @inline(__always)
    func take(_ block: Int, _ page: UInt64) throws(RamStoreError) {
        guard !taken.contains(firstPieces[block] + Int(page / Self.piecePages)) else { return }
        let start = page * UInt64(Sizes.page)
        try take(block: block, bytes: start..<start + UInt64(Sizes.page))
    }

    /// The page for writing. Its memory must have been taken.
    @inline(__always)
    func writablePage(_ block: Int, _ page: UInt64) -> UnsafeMutableRawPointer {
        bases[block] + Int(page) * Sizes.page
    }

    private func take(block: Int, bytes: Range<UInt64>) throws(RamStoreError) {
        let length = Int(layout.blocks[block].length)
        for piece in Int(bytes.lowerBound) / Self.pieceBytes...(Int(bytes.upperBound) - 1) / Self.pieceBytes {
            guard !taken.contains(firstPieces[block] + piece) else { continue }
            let start = piece * Self.pieceBytes
            try RamStoreError.wrap { () throws(IOError) in
                try blocks[block].reserve(offset: start, length: min(Self.pieceBytes, length - start))
            }
            taken.insert(firstPieces[block] + piece)
        }
    }

    /// All bytes of a block. Reading parts of a large block that were never written makes the kernel take memory.
    func contents(_ block: Int) -> UnsafeRawBufferPointer { UnsafeRawBufferPointer(blocks[block].bytes) }

    /// The path of a block's file.
    func path(_ block: Int) -> String { blocks[block].path }

    /// Bytes of shared memory taken, up to 64 KiB per block more than were written.
    var takenBytes: UInt64 { UInt64(taken.population) * UInt64(Self.pieceBytes) }

    // MARK: Marker

    /// Writes the marker (pwrite(2) of one slot; the other one stays valid until it is complete).
    func mark(_ state: RamMarker.State, _ epoch: Epoch) throws(RamStoreError) {
        var next = marker
        next.state = state
        next.epoch = epoch
        next.sequence += 1
        try RamStoreError.wrap(epoch) { () throws(IOError) in
            try markerFile.write(at: next.offset, from: next.encoded())
        }
        marker = next
    }

    /// The file name of a block: its index, and as much of its name as a file name can show.
    static func fileName(_ layout: RamLayout, _ block: Int) -> String {
        let shown = layout.blocks[block].name.utf8.prefix(48).map { byte -> Character in
            switch byte {
            case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
                UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "."), UInt8(ascii: "-"):
                Character(UnicodeScalar(byte))
            default: "_"
            }
        }
        return "\(block)-\(String(shown)).ram"
    }

    private static func path(_ directory: String, _ layout: RamLayout, _ block: Int) -> String {
        directory + "/" + fileName(layout, block)
    }
}
