import Glibc
import Units

/// Where decoded pages go. Called in the order of the entries, only for pages that the layout has.
public protocol PageBatchTarget {
    associatedtype Failure: Error
    /// The page's present contents, 4096 bytes, valid until the next call; nil when the page is zero.
    mutating func reference(block: Int, page: UInt64) -> UnsafeRawPointer?
    /// 4096 writable bytes that become the page; may be the memory that ``reference(block:page:)`` returned.
    /// All of them are overwritten.
    mutating func destination(block: Int, page: UInt64) throws(Failure) -> UnsafeMutableRawPointer
    /// The page becomes zero.
    mutating func zero(block: Int, page: UInt64) throws(Failure)
}

/// Reads page batches. Nothing in a batch is believed: ``prepare(_:layout:)`` checks all of it before
/// ``apply(to:)`` touches a page. Reusable; memory is bounded by 64 pages whatever a header says.
///
/// Owned by one thread at a time.
public final class PageBatchDecoder {
    /// What a checked batch holds.
    public struct Summary: Sendable, Equatable {
        /// Entries, 1...64.
        public var pages = 0
        public var zero = 0
        public var raw = 0
        public var delta = 0
    }

    private struct Entry {
        var block = 0
        var page: UInt64 = 0
        var kind = PageBatch.Kind.zero
        /// Of its bytes in the raw payload.
        var offset = 0
    }

    private let decompressor = ZstdDecompressor()
    private let scratch: UnsafeMutableRawBufferPointer
    private var entries: [Entry] = []
    private var payload = UnsafeRawBufferPointer(start: nil, count: 0)

    public init() {
        scratch = .allocate(byteCount: PageBatch.maximumRawBytes, alignment: 64)
        entries.reserveCapacity(PageBatch.maximumPages)
    }

    deinit { scratch.deallocate() }

    /// Checks a whole batch: header, checksum, compression, every entry against `layout`, nothing left over.
    ///
    /// The bytes must stay valid and unchanged until ``apply(to:)`` has returned.
    @discardableResult
    public func prepare(_ batch: UnsafeRawBufferPointer, layout: RamLayout) throws(RamBatchError) -> Summary {
        entries.removeAll(keepingCapacity: true)
        let header = try PageBatch.verifiedHeader(batch)
        let encoded = UnsafeRawBufferPointer(rebasing: batch[PageBatch.headerBytes...])
        switch header.codec {
        case .none:
            payload = encoded
        case .zstd:
            let target = UnsafeMutableRawBufferPointer(rebasing: scratch[0..<header.rawLength])
            guard let length = decompressor.decompress(encoded, into: target), length == header.rawLength else {
                throw RamBatchError(.decompression, offset: PageBatch.headerBytes, value: UInt64(header.rawLength))
            }
            payload = UnsafeRawBufferPointer(target)
        }
        do {
            return try parse(pageCount: header.pageCount, layout: layout)
        } catch {
            entries.removeAll(keepingCapacity: true)
            throw error
        }
    }

    /// Writes the pages of the batch that was prepared last. Stops at the first error of the target.
    public func apply<Target: PageBatchTarget>(to target: inout Target) throws(Target.Failure) {
        guard let base = payload.baseAddress else { return }
        for entry in entries {
            switch entry.kind {
            case .zero:
                try target.zero(block: entry.block, page: entry.page)
            case .raw:
                let destination = try target.destination(block: entry.block, page: entry.page)
                memcpy(destination, base + entry.offset, Sizes.page)
            case .delta:
                let reference = target.reference(block: entry.block, page: entry.page)
                let destination = try target.destination(block: entry.block, page: entry.page)
                if let reference {
                    if reference != UnsafeRawPointer(destination) { memcpy(destination, reference, Sizes.page) }
                } else {
                    memset(destination, 0, Sizes.page)
                }
                PageDelta.apply(base + entry.offset, to: destination)
            }
        }
    }

    private func parse(pageCount: Int, layout: RamLayout) throws(RamBatchError) -> Summary {
        var summary = Summary()
        var offset = 0
        for _ in 0..<pageCount {
            var entry = try parseAddress(at: &offset, layout: layout)
            entry.offset = offset
            switch entry.kind {
            case .zero:
                summary.zero += 1
            case .raw:
                try need(Sizes.page, at: offset)
                offset += Sizes.page
                summary.raw += 1
            case .delta:
                guard let length = PageDelta.length(in: payload, at: offset) else {
                    throw RamBatchError(.delta, offset: offset, value: entry.page)
                }
                offset += length
                summary.delta += 1
            }
            entries.append(entry)
        }
        guard offset == payload.count else {
            throw RamBatchError(.trailingBytes, offset: offset, value: UInt64(payload.count - offset))
        }
        summary.pages = pageCount
        return summary
    }

    private func parseAddress(at offset: inout Int, layout: RamLayout) throws(RamBatchError) -> Entry {
        try need(1, at: offset)
        let tag = payload[offset]
        guard let kind = PageBatch.Kind(rawValue: tag & PageBatch.Tag.kindMask) else {
            throw RamBatchError(.tag, offset: offset, value: UInt64(tag))
        }
        let hasBlock = tag & PageBatch.Tag.hasBlock != 0
        let pageField = tag >> PageBatch.Tag.pageShift
        guard hasBlock ? pageField > PageBatch.Tag.largestGap : !entries.isEmpty else {
            throw RamBatchError(.tag, offset: offset, value: UInt64(tag))
        }
        offset += 1
        var entry = Entry(kind: kind)
        if hasBlock {
            try need(2, at: offset)
            entry.block = Int(PageBatch.load(payload, offset, UInt16.self))
            guard entry.block < layout.blocks.count else {
                throw RamBatchError(.block, offset: offset, value: UInt64(entry.block))
            }
            offset += 2
        } else {
            entry.block = entries[entries.count - 1].block
        }
        let pageOffset = offset
        switch pageField {
        case PageBatch.Tag.page24:
            try need(3, at: offset)
            entry.page = UInt64(payload[offset]) << 16 | UInt64(PageBatch.load(payload, offset + 1, UInt16.self))
            offset += 3
        case PageBatch.Tag.page32:
            try need(4, at: offset)
            entry.page = UInt64(PageBatch.load(payload, offset, UInt32.self))
            offset += 4
        default:
            entry.page = entries[entries.count - 1].page + 1 + UInt64(pageField)
        }
        guard entry.page < layout.blocks[entry.block].pageCount else {
            throw RamBatchError(.page, offset: pageOffset, value: entry.page)
        }
        return entry
    }

    private func need(_ count: Int, at offset: Int) throws(RamBatchError) {
        guard count <= payload.count - offset else {
            throw RamBatchError(.truncatedEntry, offset: offset, value: UInt64(count))
        }
    }
}
