import Glibc
import Units

/// Pages on their way from the migration socket to the encoder.
///
/// `@unchecked Sendable`: it has one owner at a time. The agent's event loop fills it, hands it to the encoder's queue
/// and does not touch it again until the encoder hands it back.
final class PageChunk: @unchecked Sendable {
    struct Entry {
        var block: UInt16
        var page: UInt32
        var isZero: Bool
    }

    /// Pages that fit, 256 KiB of them.
    static let capacity = 64

    /// Bytes of the pages of a full chunk.
    static let bytes = capacity * Sizes.page

    private(set) var entries: [Entry] = []
    private let memory: UnsafeMutableRawPointer

    init() {
        memory = .allocate(byteCount: Self.bytes, alignment: Sizes.page)
        entries.reserveCapacity(Self.capacity)
    }

    deinit { memory.deallocate() }

    var isFull: Bool { entries.count == Self.capacity }
    var isEmpty: Bool { entries.isEmpty }

    func removeAll() { entries.removeAll(keepingCapacity: true) }

    /// Copies one page: the only copy between the socket's buffer and the encoder. Traps when full.
    func append(block: UInt16, page: UInt32, data: UnsafeRawPointer) {
        precondition(!isFull)
        memcpy(memory + entries.count * Sizes.page, data, Sizes.page)
        entries.append(Entry(block: block, page: page, isZero: false))
    }

    func appendZero(block: UInt16, page: UInt32) {
        precondition(!isFull)
        entries.append(Entry(block: block, page: page, isZero: true))
    }

    func data(at index: Int) -> UnsafeRawPointer { UnsafeRawPointer(memory + index * Sizes.page) }
}
