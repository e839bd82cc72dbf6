/// The files that are present in a guest's folder, as whoever does the I/O found them.
public struct StoreListing: Equatable, Sendable {
    /// One file.
    public struct File: Equatable, Sendable {
        public var name: String
        /// Bytes.
        public var length: UInt64

        public init(name: String, length: UInt64) {
            self.name = name
            self.length = length
        }
    }

    /// A folder of a guest.
    public enum Folder: Hashable, Sendable, CustomStringConvertible {
        /// `disks/ID`.
        case disk(String)
        /// `ram`, or in memory durability the guest's tmpfs folder.
        case ram
        /// `device`.
        case device

        public var description: String {
            switch self {
            case .disk(let id): "disks/\(id)"
            case .ram: "ram"
            case .device: "device"
            }
        }
    }

    /// By disk id: each folder below `disks`.
    public var disks: [String: [File]]
    /// The folder where RAM files are.
    public var ram: [File]
    public var device: [File]

    public init(disks: [String: [File]] = [:], ram: [File] = [], device: [File] = []) {
        self.disks = disks
        self.ram = ram
        self.device = device
    }
}
