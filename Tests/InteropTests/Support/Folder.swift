import Foundation
import TestSupport

/// A folder of one test, gone with it.
final class Folder {
    let path: String

    init() throws {
        // Sockets live in it: short.
        path = FileManager.default.temporaryDirectory.appending(path: "iop-\(UUID().uuidString.prefix(8))").path
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }

    subscript(_ name: String) -> String { "\(path)/\(name)" }

    /// A file with data, zeroes and holes in pieces of many sizes. The same seed makes the same file.
    @discardableResult
    func makeDisk(_ name: String, size: Int, seed: UInt64) throws -> String {
        var random = SplitMix64(seed: seed)
        let path = self[name]
        _ = FileManager.default.createFile(atPath: path, contents: nil)
        guard let file = FileHandle(forWritingAtPath: path) else { throw InteropFailure("\(path) cannot be made") }
        defer { try? file.close() }
        try file.truncate(atOffset: UInt64(size))
        var place = 0
        while place < size {
            let length = min(
                size - place, Int.random(in: 1...(1 << Int.random(in: 9...20, using: &random)), using: &random))
            switch Int.random(in: 0..<4, using: &random) {
            case 0: break
            case 1:
                try file.seek(toOffset: UInt64(place))
                try file.write(contentsOf: Data(count: length))
            default:
                var bytes = [UInt8](repeating: 0, count: length)
                for index in stride(from: 0, to: length, by: 8) {
                    let word = random.next()
                    for byte in 0..<min(8, length - index) {
                        bytes[index + byte] = UInt8(truncatingIfNeeded: word >> UInt64(byte * 8))
                    }
                }
                try file.seek(toOffset: UInt64(place))
                try file.write(contentsOf: Data(bytes))
            }
            place += length
        }
        return path
    }
}
