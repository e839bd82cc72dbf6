import Foundation
import TestSupport

/// The colo-blk under test for the verbs on images: COLO_BLK_BIN, as in the guest tests.
enum ImageBinary {
    static let path = ProcessInfo.processInfo.environment["COLO_BLK_BIN"]

    /// Whether the suites can run.
    static let isReady = path != nil && ImageRecipe.canCook

    static let missing = "COLO_BLK_BIN is not set, or qemu-img and qemu-io are missing"

    static func run(_ arguments: [String]) throws -> Program.Outcome {
        guard let path else { throw RecipeFailed(description: missing) }
        return try Program.run(path, ["image"] + arguments)
    }

    /// A JSON text as comparable values.
    static func json(_ text: String) throws -> NSObject {
        let value = try JSONSerialization.jsonObject(with: Data(text.utf8), options: .fragmentsAllowed)
        guard let object = value as? NSObject else { throw RecipeFailed(description: "no JSON: \(text)") }
        return object
    }

    /// Writes bytes into a file.
    static func patch(_ path: String, at offset: Int, _ bytes: [UInt8]) throws {
        let handle = try FileHandle(forUpdating: URL(filePath: path))
        try handle.seek(toOffset: UInt64(offset))
        try handle.write(contentsOf: Data(bytes))
        try handle.close()
    }

    static func size(_ path: String) throws -> Int {
        try FileManager.default.attributesOfItem(atPath: path)[.size] as? Int ?? 0
    }

    /// A big-endian field of a file.
    static func field(_ path: String, at offset: Int, _ length: Int) throws -> Int {
        let handle = try FileHandle(forReadingFrom: URL(filePath: path))
        try handle.seek(toOffset: UInt64(offset))
        let bytes = try handle.read(upToCount: length) ?? Data()
        try handle.close()
        return bytes.reduce(0) { $0 << 8 | Int($1) }
    }
}
