import Glibc

/// Private memory from the kernel that reads as zeroes and takes no room until it is written. Freed with its owner.
final class AnonymousMemory {
    let base: UnsafeMutableRawPointer
    let byteCount: Int

    /// Traps when the kernel has no address space left, which does not depend on anything from outside: layouts are
    /// bounded before they come here.
    init(byteCount: Int) {
        let result = mmap(
            nil, max(byteCount, 1), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        guard let result, result != MAP_FAILED else { preconditionFailure("mmap of \(byteCount) bytes failed") }
        base = result
        self.byteCount = byteCount
    }

    deinit { munmap(base, max(byteCount, 1)) }
}
