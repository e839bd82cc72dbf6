import RamCache
import Units

/// Bytes that outlive a process and not a power loss.
final class Memory {
    let base: UnsafeMutableRawPointer
    let count: Int

    init(count: Int) {
        self.count = count
        base = .allocate(byteCount: max(count, 1), alignment: 64)
        base.initializeMemory(as: UInt8.self, repeating: 0, count: max(count, 1))
    }

    deinit { base.deallocate() }

    func copy() -> Memory {
        let copy = Memory(count: count)
        copy.base.copyMemory(from: base, byteCount: count)
        return copy
    }

    var bytes: [UInt8] { Array(UnsafeRawBufferPointer(start: base, count: count)) }
}

/// What the daemon keeps in shared memory for one session: the cache, its marker, and the staging.
final class CacheDirectory {
    let ram: Memory
    var marker = [UInt8](repeating: 0, count: 2 * RamMarker.slotBytes)
    var slots: Memory
    var mapHeader: [UInt8] = []
    var entries: [UInt64] = []

    init(layout: RamLayout) {
        ram = Memory(count: Int(layout.total))
        slots = Memory(count: Int(layout.total))
    }

    private init(_ other: CacheDirectory) {
        ram = other.ram.copy()
        slots = other.slots.copy()
        marker = other.marker
        mapHeader = other.mapHeader
        entries = other.entries
    }

    func copy() -> CacheDirectory { CacheDirectory(self) }
}

/// A host's shared memory: the caches of sessions.
struct SharedMemory {
    var caches: [Identifier: CacheDirectory] = [:]

    func copy() -> SharedMemory { SharedMemory(caches: caches.mapValues { $0.copy() }) }
}
