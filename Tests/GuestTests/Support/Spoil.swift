import Glibc

/// Turns one bit of a file around.
func spoil(_ path: String, at offset: Int) throws {
    let file = open(path, O_RDWR)
    guard file >= 0 else { throw TestFailure("\(path): \(describe(errno: errno))") }
    defer { close(file) }
    var byte: UInt8 = 0
    guard pread(file, &byte, 1, off_t(offset)) == 1 else { throw TestFailure("\(path) is too short") }
    byte ^= 0x10
    guard pwrite(file, &byte, 1, off_t(offset)) == 1 else { throw TestFailure("\(path) cannot be written") }
}
