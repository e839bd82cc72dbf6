import RamCache
import Units

/// RAM of a guest with a large and a small block.
struct Memory: PageBatchTarget {
    static let layout: RamLayout = {
        do {
            return try RamLayout(blocks: [
                .init(name: "pc.ram", length: 40 * 4096), .init(name: "vga", length: 3 * 4096),
            ])
        } catch { preconditionFailure("\(error)") }
    }()

    final class Storage {
        let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: Int(Memory.layout.total), alignment: 4096)
        init() { bytes.initializeMemory(as: UInt8.self, repeating: 0) }
        deinit { bytes.deallocate() }
    }

    let storage = Storage()

    func address(_ block: Int, _ page: UInt64) -> UnsafeMutableRawPointer {
        precondition(page < Memory.layout.blocks[block].pageCount, "a page that the guest has not")
        guard let base = storage.bytes.baseAddress else { preconditionFailure("memory has an address") }
        return base + Memory.layout.globalPage(block: block, page: page) * Sizes.page
    }

    mutating func reference(block: Int, page: UInt64) -> UnsafeRawPointer? { UnsafeRawPointer(address(block, page)) }
    mutating func destination(block: Int, page: UInt64) throws(Never) -> UnsafeMutableRawPointer {
        address(block, page)
    }
    mutating func zero(block: Int, page: UInt64) throws(Never) {
        address(block, page).initializeMemory(as: UInt8.self, repeating: 0, count: Sizes.page)
    }

    var checksum: UInt32 { CRC32C.checksum(UnsafeRawBufferPointer(storage.bytes)) }
}

/// A batch: refused as a whole, or applied; and what was applied goes through our own encoder unchanged.
private func fuzzBatch(_ bytes: UnsafeRawBufferPointer) {
    let decoder = PageBatchDecoder()
    var memory = Memory()
    let before = memory.checksum
    do throws(RamBatchError) {
        let summary = try decoder.prepare(bytes, layout: Memory.layout)
        precondition((1...PageBatch.maximumPages).contains(summary.pages))
        decoder.apply(to: &memory)
    } catch {
        precondition(!error.description.isEmpty)
        decoder.apply(to: &memory)
        precondition(memory.checksum == before, "a refused batch left something behind")
        return
    }
    let encoder = PageBatchEncoder(useDelta: true)
    let shadow = Memory()
    var copy = Memory()
    let second = PageBatchDecoder()
    for block in Memory.layout.blocks.indices {
        for page in 0..<Memory.layout.blocks[block].pageCount {
            encoder.add(
                block: UInt16(block), page: page, data: UnsafeRawPointer(memory.address(block, page)),
                shadow: shadow.address(block, page))
        }
    }
    precondition(shadow.checksum == memory.checksum, "the shadow is not what was sent")
    guard let batch = encoder.finish() else {
        precondition(memory.checksum == before)
        return
    }
    do throws(RamBatchError) { try second.prepare(batch, layout: Memory.layout) } catch {
        preconditionFailure("our own batch is refused: \(error)")
    }
    second.apply(to: &copy)
    precondition(copy.checksum == memory.checksum, "another memory came out than went in")
}

/// A delta log: reads to its end or to the first thing that is wrong, always forward.
private func fuzzLog(_ bytes: UnsafeRawBufferPointer) {
    let session = Identifier(high: 1, low: 2)
    let header = DeltaLog.header(
        session: session, layoutDigest: Memory.layout.digest, firstEpoch: Epoch(5), beginsSession: true)
    do throws(RamFormatError) {
        var reader = try header.withReader(session)
        let start = reader.offset
        while true {
            let at = Int(reader.offset - start)
            let record = try reader.next(UnsafeRawBufferPointer(rebasing: bytes[at...]))
            guard let record else { break }
            precondition(Int(reader.offset - start) > at && Int(reader.offset - start) <= bytes.count)
            if case .batch(let batch, _) = record { _ = try? PageBatch.verify(batch) }
        }
    } catch {
        precondition(!error.description.isEmpty)
    }
    // The same bytes as every other file of the store.
    _ = try? DeltaLogReader(header: bytes, session: session, layoutDigest: Memory.layout.digest)
    _ = try? StagingMapHeader(decoding: bytes)
    _ = RamMarker.newest(in: bytes)
    _ = try? RamLayout(decoding: bytes)
    _ = try? BaseImageSums(decoding: bytes, session: session, layout: Memory.layout, epoch: Epoch(5))
}

extension [UInt8] {
    fileprivate func withReader(_ session: Identifier) throws(RamFormatError) -> DeltaLogReader {
        var outcome: Result<DeltaLogReader, RamFormatError>?
        withUnsafeBytes { raw in
            do throws(RamFormatError) {
                outcome = .success(
                    try DeltaLogReader(header: raw, session: session, layoutDigest: Memory.layout.digest))
            } catch { outcome = .failure(error) }
        }
        guard let outcome else { preconditionFailure("the closure ran") }
        return try outcome.get()
    }
}

/// Fills in lengths and checksum of a batch header, so that the checks behind them are reached.
private func sealed(_ payload: UnsafeRawBufferPointer, pages: UInt8, codec: UInt8, rawLength: UInt16) -> [UInt8] {
    var writer = ByteWriter()
    writer.write(PageBatch.magic)
    writer.write(PageBatch.version)
    writer.write(codec & 1)
    writer.write(UInt16(0))
    writer.write(UInt16(pages))
    writer.write(UInt16(0))
    writer.write(codec & 1 == 0 ? UInt32(payload.count) : UInt32(rawLength))
    writer.write(UInt32(payload.count))
    var crc = CRC32C()
    crc.update(writer.bytes)
    crc.update(payload)
    writer.write(crc.value)
    writer.write(bytes: payload)
    return writer.bytes
}

/// The first byte chooses: a batch as it is; one whose header is made right; a log and the other files.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzz(_ start: UnsafePointer<UInt8>, _ count: Int) -> CInt {
    guard count >= 5 else { return 0 }
    let bytes = UnsafeRawBufferPointer(start: start, count: count)
    let rest = UnsafeRawBufferPointer(rebasing: bytes[5...])
    switch bytes[0] % 3 {
    case 0: fuzzBatch(rest)
    case 1:
        let batch = sealed(
            rest, pages: bytes[1], codec: bytes[2], rawLength: UInt16(bytes[3]) << 8 | UInt16(bytes[4]))
        batch.withUnsafeBytes { fuzzBatch($0) }
    default: fuzzLog(rest)
    }
    return 0
}
