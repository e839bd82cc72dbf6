import AsyncIO
import Qcow2

/// The formats of images that are read here.
public enum ImageFormat: String, Sendable, CaseIterable {
    case raw
    case qcow2

    /// What the first bytes of a file look like. Everything that is not another format's magic is raw.
    static func guess(_ file: DirectFile) throws(ImageChainError) -> ImageFormat {
        let head = AlignedBuffer(minimumCount: 512)
        let count: Int
        do throws(IOError) { count = try file.readAvailable(at: 0, into: head.slice(0, 512)) } catch {
            throw .io(error)
        }
        let bytes = Array(head.slice(0, count))
        if bytes.starts(with: [0x51, 0x46, 0x49, 0xFB]) { return .qcow2 }
        for (name, magic) in others where bytes.starts(with: magic) {
            throw .unsupportedFormat(path: file.path, format: name)
        }
        return .raw
    }

    private static let others: [(String, [UInt8])] = [
        ("qed", Array("QED\0".utf8)), ("vmdk", Array("KDMV".utf8)), ("vmdk", Array("# Disk DescriptorFile".utf8)),
        ("vhdx", Array("vhdxfile".utf8)), ("vpc", Array("conectix".utf8)),
        ("luks", [0x4C, 0x55, 0x4B, 0x53, 0xBA, 0xBE]),
    ]
}
