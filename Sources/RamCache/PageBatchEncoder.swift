import Glibc
import Units

/// Turns changed pages into batches (format: ``PageBatch``). Reusable; allocates only when it is made.
///
/// Owned by one thread at a time. The shadow pages belong to the caller; the encoder keeps them equal to what the
/// receiver will hold after decoding everything that was encoded.
public final class PageBatchEncoder {
    /// Counts since the encoder was made.
    public struct Statistics: Sendable, Equatable {
        /// Pages given to the encoder.
        public var pages: UInt64 = 0
        /// Pages dropped because they equal their shadow.
        public var identical: UInt64 = 0
        /// Pages sent as a flag.
        public var zero: UInt64 = 0
        /// Pages sent as a delta.
        public var delta: UInt64 = 0
        /// Pages sent whole (before zstd).
        public var raw: UInt64 = 0
        public var batches: UInt64 = 0
        /// Batches that zstd made smaller.
        public var compressedBatches: UInt64 = 0
        /// Payload bytes before zstd.
        public var rawBytes: UInt64 = 0
        /// Bytes of all finished batches, headers included.
        public var bytes: UInt64 = 0

        public init() {}

        /// Adds the counts of another encoder.
        public mutating func add(_ other: Statistics) {
            pages += other.pages
            identical += other.identical
            zero += other.zero
            delta += other.delta
            raw += other.raw
            batches += other.batches
            compressedBatches += other.compressedBatches
            rawBytes += other.rawBytes
            bytes += other.bytes
        }
    }

    /// A longer delta is not worth it: a page rewritten nearly whole compresses better as it is.
    static let largestDelta = 3072
    /// zstd is not tried on fewer payload bytes.
    private static let smallestCompressed = 128
    /// After a failure this many bytes of a longer payload are tried before all of it is.
    private static let probeBytes = 16 << 10
    /// zstd costs as much as finding the differences: when it saves less than one part in so many, the result is used,
    /// and the try counts as a failure.
    private static let worthwhileShare = 8
    /// After n failures in a row, 2^n batches go without a try, at most this many.
    private static let largestSkip = 16

    public private(set) var statistics = Statistics()
    /// Pages in the batch that is being filled, 0...64.
    public private(set) var pageCount = 0
    /// Whether unchanged pages are dropped and changed ones sent as deltas.
    public let useDelta: Bool

    private let compressor: ZstdCompressor
    /// Header and raw payload.
    private let plain: UnsafeMutableRawBufferPointer
    /// Header and compressed payload.
    private let packed: UnsafeMutableRawBufferPointer
    private var used = PageBatch.headerBytes
    private var lastBlock: UInt16 = 0
    private var lastPage: UInt64 = 0
    private var failures = 0
    private var skips = 0

    /// - Parameters:
    ///   - compressionLevel: zstd's level; 1 is the best trade on page deltas.
    ///   - useDelta: false = no shadow is kept, every page is sent whole or as zero.
    public init(compressionLevel: Int32 = 1, useDelta: Bool) {
        self.useDelta = useDelta
        compressor = ZstdCompressor(level: compressionLevel)
        plain = .allocate(byteCount: PageBatch.maximumBytes + PageDelta.scratchBytes, alignment: 64)
        packed = .allocate(
            byteCount: PageBatch.headerBytes + ZstdCompressor.bound(PageBatch.maximumRawBytes), alignment: 64)
    }

    deinit {
        plain.deallocate()
        packed.deallocate()
    }

    /// Whether ``finish()`` must be called before the next page.
    public var isFull: Bool { pageCount == PageBatch.maximumPages }
    /// Whether there is nothing to finish.
    public var isEmpty: Bool { pageCount == 0 }

    /// Adds one page of 4096 bytes. Traps when the batch is full.
    ///
    /// - Parameters:
    ///   - page: index of the page inside its block, below 2^32.
    ///   - shadow: the page as the receiver has it (4096 bytes); becomes equal to `data`. Nil or `useDelta` false:
    ///     the page is sent without looking at it.
    /// - Returns: false when the page equals its shadow and was dropped.
    @discardableResult
    public func add(
        block: UInt16, page: UInt64, data: UnsafeRawPointer, shadow: UnsafeMutableRawPointer?
    ) -> Bool {
        if PageDelta.isZero(data) { return addZero(block: block, page: page, shadow: shadow) }
        precondition(!isFull, "finish the batch before adding to it")
        statistics.pages += 1
        let start = used
        let address = appendAddress(block: block, page: page)
        if useDelta, let shadow {
            let length = PageDelta.encode(data, shadow: shadow, into: base + used)
            if length == 0 {
                used = start
                statistics.identical += 1
                return false
            }
            if length <= Self.largestDelta {
                used += length
                statistics.delta += 1
                take(.delta, tagAt: start, address)
                return true
            }
        }
        memcpy(base + used, data, Sizes.page)
        used += Sizes.page
        statistics.raw += 1
        take(.raw, tagAt: start, address)
        return true
    }

    /// The same for bytes with their count; traps unless there are 4096.
    @discardableResult
    public func add(
        block: UInt16, page: UInt64, data: UnsafeRawBufferPointer, shadow: UnsafeMutableRawPointer?
    ) -> Bool {
        guard data.count == Sizes.page, let address = data.baseAddress else {
            preconditionFailure("a page has 4096 bytes")
        }
        return add(block: block, page: page, data: address, shadow: shadow)
    }

    /// Adds one page of 4096 bytes as it is, without looking at what the receiver holds. Traps when the batch is full.
    public func addWhole(block: UInt16, page: UInt64, data: UnsafeRawPointer) {
        precondition(!isFull, "finish the batch before adding to it")
        statistics.pages += 1
        let start = used
        let address = appendAddress(block: block, page: page)
        memcpy(base + used, data, Sizes.page)
        used += Sizes.page
        statistics.raw += 1
        take(.raw, tagAt: start, address)
    }

    /// Counts a page that the receiver is known to hold already.
    public func skipKnown() {
        statistics.pages += 1
        statistics.identical += 1
    }

    /// Adds a page that is known to be zero; its shadow is cleared. Traps when the batch is full.
    ///
    /// - Returns: false when the shadow was zero already and the page was dropped.
    @discardableResult
    public func addZero(block: UInt16, page: UInt64, shadow: UnsafeMutableRawPointer?) -> Bool {
        precondition(!isFull, "finish the batch before adding to it")
        statistics.pages += 1
        if useDelta, let shadow {
            if PageDelta.isZero(shadow) {
                statistics.identical += 1
                return false
            }
            memset(shadow, 0, Sizes.page)
        }
        let start = used
        let address = appendAddress(block: block, page: page)
        statistics.zero += 1
        take(.zero, tagAt: start, address)
        return true
    }

    /// Ends the batch and lends its bytes until the next call of any method; nil when it is empty.
    public func finish() -> UnsafeRawBufferPointer? {
        guard pageCount > 0 else { return nil }
        let rawLength = used - PageBatch.headerBytes
        let codec: PageBatch.Codec
        let batch: UnsafeMutableRawBufferPointer
        if let length = compress(rawLength) {
            codec = .zstd
            batch = UnsafeMutableRawBufferPointer(rebasing: packed[0..<PageBatch.headerBytes + length])
        } else {
            codec = .none
            batch = UnsafeMutableRawBufferPointer(rebasing: plain[0..<used])
        }
        writeHeader(batch, codec: codec, rawLength: rawLength)
        statistics.batches += 1
        statistics.rawBytes += UInt64(rawLength)
        statistics.bytes += UInt64(batch.count)
        reset()
        return UnsafeRawBufferPointer(batch)
    }

    /// Ends the batch and appends it to `output`; false when it is empty.
    public func finish(into output: inout [UInt8]) -> Bool {
        guard let batch = finish() else { return false }
        output.append(contentsOf: batch)
        return true
    }

    /// Forgets the pages of the unfinished batch. Their shadows stay as they are, so the caller must send those
    /// pages whole, or start over.
    public func discard() { reset() }

    private var base: UnsafeMutableRawPointer {
        guard let address = plain.baseAddress else { preconditionFailure("an allocated buffer has an address") }
        return address
    }

    private func reset() {
        used = PageBatch.headerBytes
        pageCount = 0
    }

    /// The tag's bits and what must be remembered once the entry is taken.
    private struct Address {
        var tag: UInt8
        var block: UInt16
        var page: UInt64
    }

    /// Leaves room for the tag and writes block and page behind it as far as they are needed.
    private func appendAddress(block: UInt16, page: UInt64) -> Address {
        precondition(page <= UInt64(UInt32.max))
        var tag: UInt8 = 0
        used += 1
        let sameBlock = pageCount > 0 && block == lastBlock
        if !sameBlock {
            tag |= PageBatch.Tag.hasBlock
            (base + used).storeBytes(of: block.bigEndian, as: UInt16.self)
            used += 2
        }
        if sameBlock, page > lastPage, page - lastPage - 1 <= UInt64(PageBatch.Tag.largestGap) {
            tag |= UInt8(page - lastPage - 1) << PageBatch.Tag.pageShift
        } else if page < 1 << 24 {
            tag |= PageBatch.Tag.page24 << PageBatch.Tag.pageShift
            plain[used] = UInt8(truncatingIfNeeded: page >> 16)
            (base + used + 1).storeBytes(of: UInt16(truncatingIfNeeded: page).bigEndian, as: UInt16.self)
            used += 3
        } else {
            tag |= PageBatch.Tag.page32 << PageBatch.Tag.pageShift
            (base + used).storeBytes(of: UInt32(truncatingIfNeeded: page).bigEndian, as: UInt32.self)
            used += 4
        }
        return Address(tag: tag, block: block, page: page)
    }

    private func take(_ kind: PageBatch.Kind, tagAt offset: Int, _ address: Address) {
        plain[offset] = address.tag | kind.rawValue
        lastBlock = address.block
        lastPage = address.page
        pageCount += 1
    }

    /// Compresses the payload; nil when zstd was not tried or does not pay.
    private func compress(_ rawLength: Int) -> Int? {
        guard rawLength >= Self.smallestCompressed else { return nil }
        guard skips == 0 else {
            skips -= 1
            return nil
        }
        let source = UnsafeRawBufferPointer(rebasing: plain[PageBatch.headerBytes..<used])
        let target = UnsafeMutableRawBufferPointer(rebasing: packed[PageBatch.headerBytes...])
        let isWorthTrying =
            failures == 0 || rawLength <= Self.probeBytes
            || pays(UnsafeRawBufferPointer(rebasing: source.prefix(Self.probeBytes)), target)
        let length = isWorthTrying ? compressor.compress(source, into: target) : nil
        if let length, length < rawLength - rawLength / Self.worthwhileShare {
            failures = 0
        } else {
            failures += 1
            skips = min(1 << min(failures, 10), Self.largestSkip)
        }
        guard let length, Self.pays(length, of: rawLength) else { return nil }
        statistics.compressedBatches += 1
        return length
    }

    private static func pays(_ length: Int, of rawLength: Int) -> Bool { length < rawLength - rawLength / 32 }

    private func pays(_ probe: UnsafeRawBufferPointer, _ target: UnsafeMutableRawBufferPointer) -> Bool {
        compressor.compress(probe, into: target).map { Self.pays($0, of: probe.count) } ?? false
    }

    private func writeHeader(_ batch: UnsafeMutableRawBufferPointer, codec: PageBatch.Codec, rawLength: Int) {
        func store<T: FixedWidthInteger>(_ value: T, _ offset: Int) {
            batch.storeBytes(of: value.bigEndian, toByteOffset: offset, as: T.self)
        }
        store(PageBatch.magic, 0)
        store(PageBatch.version, 4)
        store(codec.rawValue, 5)
        store(UInt16(0), 6)
        store(UInt16(pageCount), 8)
        store(UInt16(0), 10)
        store(UInt32(rawLength), 12)
        store(UInt32(batch.count - PageBatch.headerBytes), 16)
        store(PageBatch.checksum(of: UnsafeRawBufferPointer(batch)), 20)
    }
}
