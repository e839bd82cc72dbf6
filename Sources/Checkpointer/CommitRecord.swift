import Units

/// The only truth about a replica: what checkpoint is committed, and of what files it consists.
///
/// Written into one of two slots of 4 KiB, alternately; layout in docs/store-format.md. Everything that a record does
/// not vouch for is a leftover.
public struct CommitRecord: Equatable, Sendable {
    /// What the replica is.
    public enum Role: UInt8, Sendable, CaseIterable {
        /// Follows a primary.
        case replica = 0
        /// Was started as the guest; no primary of an older generation may write to it ever again.
        case promoted = 1
    }

    /// A file of the RAM store.
    public struct RamFile: Equatable, Sendable {
        public enum Kind: UInt8, Sendable, CaseIterable {
            /// A full image `base-N.ram`; its length is exact. Its checksums in `base-N.sum` belong to it unnamed.
            case base = 1
            /// Deltas in append order; what is behind the recorded length was never committed.
            case log = 2
        }

        public var kind: Kind
        /// See `FileSafeName`; within the guest's `ram` folder (`disk` durability) or its tmpfs folder (`memory`).
        public var name: String
        /// Bytes that count.
        public var length: UInt64
        /// CRC-32C, or another digest that the kind's own format defines.
        public var digest: UInt32

        public init(kind: Kind, name: String, length: UInt64, digest: UInt32) {
            self.kind = kind
            self.name = name
            self.length = length
            self.digest = digest
        }
    }

    /// The committed device state, in the guest's `device` folder.
    public struct DeviceFile: Equatable, Sendable {
        public var name: String
        /// Bytes.
        public var length: UInt64
        /// CRC-32C of the whole file.
        public var checksum: UInt32

        public init(name: String, length: UInt64, checksum: UInt32) {
            self.name = name
            self.length = length
            self.checksum = checksum
        }
    }

    /// A disk, in the guest's folder `disks/ID`.
    public struct Disk: Equatable, Sendable {
        public var id: String
        /// Bytes.
        public var size: UInt64

        public init(id: String, size: UInt64) {
            self.id = id
            self.size = size
        }
    }

    /// The most RAM files, and the most disks, that a slot has room for.
    public static let filesMax = 16

    public var store: Identifier
    public var session: Identifier
    public var guest: String
    /// Grows by one with each record; its lowest bit is the slot.
    public var sequence: UInt64
    public var generation: Generation
    /// The committed checkpoint.
    public var epoch: Epoch
    public var role: Role
    public var durability: Durability
    /// Wall clock of the secondary at the commit, milliseconds since 1970; for people only.
    public var wallClockMilliseconds: UInt64
    /// Section id of "ram" in the guest's migration stream.
    public var ramSectionID: UInt32
    public var ramFiles: [RamFile]
    /// Nil only while nothing but a generation is recorded.
    public var device: DeviceFile?
    public var disks: [Disk]

    public init(
        store: Identifier, session: Identifier, guest: String, sequence: UInt64, generation: Generation, epoch: Epoch,
        role: Role, durability: Durability, wallClockMilliseconds: UInt64, ramSectionID: UInt32,
        ramFiles: [RamFile], device: DeviceFile?, disks: [Disk]
    ) {
        self.store = store
        self.session = session
        self.guest = guest
        self.sequence = sequence
        self.generation = generation
        self.epoch = epoch
        self.role = role
        self.durability = durability
        self.wallClockMilliseconds = wallClockMilliseconds
        self.ramSectionID = ramSectionID
        self.ramFiles = ramFiles
        self.device = device
        self.disks = disks
    }

    /// The slot that this record belongs into: 0 or 1.
    public var slot: Int { Int(sequence & 1) }

    /// Offset of the record's slot in the commit file in bytes.
    public var fileOffset: UInt64 { UInt64(slot * CommitSlot.length) }
}
