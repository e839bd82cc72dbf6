/// One block of guest memory as the migration stream names it: main memory, a ROM, firmware tables.
public struct RamBlockDescription: Sendable, Equatable, Hashable, Codable {
    /// QEMU's id string, 1 to 255 bytes of UTF-8, unique within a guest ("pc.ram", "0000:00:03.0/virtio-net-pci.rom").
    public var name: String
    /// Bytes in use; a multiple of 4096. Resizable blocks (firmware tables) say here what they use at the moment.
    public var length: UInt64

    public init(name: String, length: UInt64) {
        self.name = name
        self.length = length
    }
}
