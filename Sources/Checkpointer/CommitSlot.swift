import Units

/// The 4,096 bytes of a commit record on disk.
public enum CommitSlot {
    /// Bytes of one slot; the commit file has two.
    public static let length = 4096
    /// "COLOCMIT".
    public static let magic: UInt64 = 0x434F_4C4F_434D_4954
    /// The only version that this release reads and writes.
    public static let version: UInt16 = 1

    /// Byte offsets of the fields; docs/store-format.md shows the same, and a test compares the two.
    enum Offset {
        static let magic = 0
        static let version = 8
        static let role = 10
        static let durability = 11
        static let ramSectionID = 12
        static let store = 16
        static let session = 32
        static let sequence = 48
        static let generation = 56
        static let epoch = 64
        static let wallClock = 72
        static let guestNameLength = 80
        static let ramFileCount = 81
        static let diskCount = 82
        static let devicePresent = 83
        static let reserved = 84
        static let guestName = 88
        static let device = 152
        static let ramFiles = 232
        static let disks = 1512
        static let padding = 2792
        static let checksum = 4092
    }

    /// Bytes of the device entry, of a RAM file entry and of a disk entry.
    static let entryLength = 80

    /// Why a slot does not hold a record.
    public enum Fault: Error, Equatable, Sendable, CustomStringConvertible {
        /// Another number of bytes than a slot has was given.
        case wrongLength(Int)
        /// Nothing but zeroes: never written.
        case empty
        /// Something else stands there.
        case badMagic(UInt64)
        /// The slot was torn or has rotted.
        case badChecksum(computed: UInt32, carried: UInt32)
        /// A newer release wrote it.
        case newerVersion(UInt16)
        /// A field has a value that it cannot have, though the checksum is right.
        case badField(String, offset: Int)

        public var description: String {
            switch self {
            case .wrongLength(let count): "commit slot: \(count) bytes are there; a slot has \(CommitSlot.length)"
            case .empty: "commit slot: empty"
            case .badMagic(let magic):
                "commit slot: byte 0 holds 0x\(String(magic, radix: 16)), which no commit record starts with"
            case .badChecksum(let computed, let carried):
                "commit slot: torn or damaged (CRC 0x\(String(computed, radix: 16)), byte 4092 says "
                    + "0x\(String(carried, radix: 16)))"
            case .newerVersion(let version):
                "commit slot: written in format \(version), this release reads format \(CommitSlot.version);"
                    + " use the release that wrote it"
            case .badField(let field, let offset):
                "commit slot: \(field) at byte \(offset) has an impossible value; the record is not colo-blk's"
            }
        }
    }

    /// Encodes a record. Traps when a name, or the number of files, is outside its limits: check ``fits(_:)`` for what
    /// comes from outside.
    public static func encode(_ record: CommitRecord) -> [UInt8] {
        precondition(fits(record), "the record has names or counts that a slot has no room for")
        var writer = ByteWriter(reservingCapacity: length)
        writer.write(magic)
        writer.write(version)
        writer.write(record.role.rawValue)
        writer.write(record.durability.rawValue)
        writer.write(record.ramSectionID)
        for id in [record.store, record.session] {
            writer.write(id.high)
            writer.write(id.low)
        }
        writer.write(record.sequence)
        writer.write(record.generation.rawValue)
        writer.write(record.epoch.rawValue)
        writer.write(record.wallClockMilliseconds)
        writer.write(UInt8(record.guest.utf8.count))
        writer.write(UInt8(record.ramFiles.count))
        writer.write(UInt8(record.disks.count))
        writer.write(UInt8(record.device == nil ? 0 : 1))
        writer.writeZeroes(Offset.guestName - writer.count)
        writer.write(utf8: record.guest)
        writer.writeZeroes(Offset.device - writer.count)
        if let device = record.device {
            appendEntry(kind: 0, name: device.name, word: device.checksum, length: device.length, to: &writer)
        }
        writer.writeZeroes(Offset.ramFiles - writer.count)
        for file in record.ramFiles {
            appendEntry(
                kind: file.kind.rawValue, name: file.name, word: file.digest, length: file.length, to: &writer)
        }
        writer.writeZeroes(Offset.disks - writer.count)
        for disk in record.disks { appendEntry(kind: 0, name: disk.id, word: 0, length: disk.size, to: &writer) }
        writer.writeZeroes(Offset.checksum - writer.count)
        writer.write(CRC32C.checksum(writer.bytes))
        return writer.bytes
    }

    /// Whether a slot has room for the record and every name is one.
    public static func fits(_ record: CommitRecord) -> Bool {
        let names =
            record.ramFiles.map(\.name) + record.disks.map(\.id) + [record.guest, record.device?.name ?? "none"]
        return record.ramFiles.count <= CommitRecord.filesMax && record.disks.count <= CommitRecord.filesMax
            && names.allSatisfy { FileSafeName.isValid($0) }
            && Set(record.disks.map(\.id)).count == record.disks.count
            && Set(record.ramFiles.map(\.name)).count == record.ramFiles.count
    }

    /// kind u8, name length u8, zero u16, word u32, length u64, name in 64 bytes.
    private static func appendEntry(
        kind: UInt8, name: String, word: UInt32, length: UInt64, to writer: inout ByteWriter
    ) {
        writer.write(kind)
        writer.write(UInt8(name.utf8.count))
        writer.write(UInt16(0))
        writer.write(word)
        writer.write(length)
        writer.write(utf8: name)
        writer.writeZeroes(FileSafeName.lengthMax - name.utf8.count)
    }

    /// Decodes a slot. The order of the checks: magic, checksum, version, fields; so that a torn slot is never taken
    /// for one of a newer version.
    public static func decode(_ bytes: [UInt8]) throws(Fault) -> CommitRecord {
        guard bytes.count == length else { throw .wrongLength(bytes.count) }
        let slot = SlotReader(bytes)
        let magic = slot.load(Offset.magic, as: UInt64.self)
        guard magic == Self.magic else { throw bytes.allSatisfy { $0 == 0 } ? .empty : .badMagic(magic) }
        let carried = slot.load(Offset.checksum, as: UInt32.self)
        let computed = CRC32C.checksum(Array(bytes[..<Offset.checksum]))
        guard computed == carried else { throw .badChecksum(computed: computed, carried: carried) }
        let version = slot.load(Offset.version, as: UInt16.self)
        guard version <= Self.version else { throw .newerVersion(version) }
        guard version == Self.version else { throw .badField("version", offset: Offset.version) }
        return try decodeFields(slot)
    }

    private static func decodeFields(_ slot: SlotReader) throws(Fault) -> CommitRecord {
        guard let role = CommitRecord.Role(rawValue: slot.bytes[Offset.role]) else {
            throw .badField("role", offset: Offset.role)
        }
        guard let durability = Durability(rawValue: slot.bytes[Offset.durability]) else {
            throw .badField("durability", offset: Offset.durability)
        }
        let ramFileCount = Int(slot.bytes[Offset.ramFileCount])
        let diskCount = Int(slot.bytes[Offset.diskCount])
        guard ramFileCount <= CommitRecord.filesMax else {
            throw .badField("RAM file count", offset: Offset.ramFileCount)
        }
        guard diskCount <= CommitRecord.filesMax else { throw .badField("disk count", offset: Offset.diskCount) }
        let devicePresent = slot.bytes[Offset.devicePresent]
        guard devicePresent <= 1 else { throw .badField("device state present", offset: Offset.devicePresent) }
        let guest = try slot.name(Offset.guestName, length: Int(slot.bytes[Offset.guestNameLength]), "guest name")

        var ramFiles: [CommitRecord.RamFile] = []
        for index in 0..<ramFileCount {
            let offset = Offset.ramFiles + index * entryLength
            guard let kind = CommitRecord.RamFile.Kind(rawValue: slot.bytes[offset]) else {
                throw .badField("RAM file kind", offset: offset)
            }
            let entry = try slot.entry(offset, "RAM file name")
            ramFiles.append(.init(kind: kind, name: entry.name, length: entry.length, digest: entry.word))
        }
        var disks: [CommitRecord.Disk] = []
        for index in 0..<diskCount {
            let entry = try slot.entry(Offset.disks + index * entryLength, "disk id")
            disks.append(.init(id: entry.name, size: entry.length))
        }
        var device: CommitRecord.DeviceFile?
        if devicePresent == 1 {
            let entry = try slot.entry(Offset.device, "device state name")
            device = .init(name: entry.name, length: entry.length, checksum: entry.word)
        }
        let record = CommitRecord(
            store: slot.identifier(Offset.store), session: slot.identifier(Offset.session), guest: guest,
            sequence: slot.load(Offset.sequence, as: UInt64.self),
            generation: Generation(slot.load(Offset.generation, as: UInt64.self)),
            epoch: Epoch(slot.load(Offset.epoch, as: UInt64.self)), role: role, durability: durability,
            wallClockMilliseconds: slot.load(Offset.wallClock, as: UInt64.self),
            ramSectionID: slot.load(Offset.ramSectionID, as: UInt32.self), ramFiles: ramFiles, device: device,
            disks: disks)
        // Whatever is reserved or unused must be zero, so that one record has one encoding.
        guard fits(record), encode(record) == slot.bytes else {
            throw .badField("a reserved or unused part", offset: 84)
        }
        return record
    }
}

/// Reads fields at fixed offsets of a whole slot.
private struct SlotReader {
    let bytes: [UInt8]

    init(_ bytes: [UInt8]) {
        self.bytes = bytes
    }

    func load<T: FixedWidthInteger>(_ offset: Int, as type: T.Type) -> T {
        bytes[offset..<offset + MemoryLayout<T>.size].reduce(0) { $0 << 8 | T($1) }
    }

    func identifier(_ offset: Int) -> Identifier {
        Identifier(high: load(offset, as: UInt64.self), low: load(offset + 8, as: UInt64.self))
    }

    func name(_ offset: Int, length: Int, _ field: String) throws(CommitSlot.Fault) -> String {
        guard length <= FileSafeName.lengthMax,
            let name = String(validating: bytes[offset..<offset + length], as: UTF8.self), FileSafeName.isValid(name)
        else { throw .badField(field, offset: offset) }
        return name
    }

    func entry(
        _ offset: Int, _ field: String
    ) throws(CommitSlot.Fault) -> (name: String, word: UInt32, length: UInt64) {
        let name = try name(offset + 16, length: Int(bytes[offset + 1]), field)
        return (name, load(offset + 4, as: UInt32.self), load(offset + 8, as: UInt64.self))
    }
}
