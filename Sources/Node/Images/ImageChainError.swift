import AsyncIO
import Qcow2
import Units

/// Why an image, or a file below it, cannot be read.
public enum ImageChainError: Error, Equatable, Sendable, CustomStringConvertible {
    case io(IOError)
    /// The image's own bytes are at fault, or ask for what cannot be read here.
    case image(path: String, ImageError)
    /// A file that is in its own chain.
    case loop(path: String)
    case tooDeep(path: String, limit: Int)
    /// The file has, or is said to have, a format that cannot be read here.
    case unsupportedFormat(path: String, format: String)
    /// The name of the file below is no path.
    case unsupportedBacking(path: String, name: String)
    /// No regular file.
    case notAFile(path: String)
    /// A range that is not inside the disk.
    case outside(path: String, ByteRange, size: UInt64)

    public var description: String {
        switch self {
        case .io(let error): error.description
        case .image(let path, let error): "\(path): \(error.description)"
        case .loop(let path):
            "\(path) is in its own backing chain. The chain is damaged or hostile; look at it with "
                + "'colo-blk image info' link by link."
        case .tooDeep(let path, let limit):
            "\(path): the backing chain has more than \(limit) files. Merge some of them with qemu-img commit."
        case .unsupportedFormat(let path, let format):
            "\(path): the format \(format) cannot be read here, only raw and qcow2. Convert it with qemu-img convert."
        case .unsupportedBacking(let path, let name):
            "\(path): its backing file '\(name)' is no path of a file. Use qemu-img for this chain."
        case .notAFile(let path): "\(path) is no regular file. Name the image's file."
        case .outside(let path, let range, let size):
            "\(path): the range \(range) is not inside the disk of \(size) bytes."
        }
    }
}
