import Units

/// The first frame of the primary: who it is and what it wants to protect.
public struct Hello: Equatable, Sendable, LinkPayload {
    /// A disk that the primary will replicate.
    public struct Disk: Equatable, Sendable {
        /// Names the disk's folder in the store; see `FileSafeName`.
        public var id: String
        /// Bytes.
        public var size: UInt64

        public init(id: String, size: UInt64) {
            self.id = id
            self.size = size
        }
    }

    /// Version of the protocol that the agent speaks; ``FrameHeader/version``.
    public var protocolVersion: UInt16
    /// Names the guest's folder in the store; see `FileSafeName`.
    public var guest: String
    /// Drawn anew for each attach.
    public var session: Identifier
    public var durability: Durability
    /// Where the agent runs, for messages: host name and process id.
    public var label: String
    /// In the order that disk frames use as index; at most 16, ids unique.
    public var disks: [Disk]
    /// The last generation that the primary knows; 0 when it knows none.
    public var generation: Generation
    /// Release of the agent, for messages.
    public var agentVersion: String

    public init(
        protocolVersion: UInt16 = UInt16(FrameHeader.version), guest: String, session: Identifier,
        durability: Durability, label: String, disks: [Disk], generation: Generation, agentVersion: String
    ) {
        self.protocolVersion = protocolVersion
        self.guest = guest
        self.session = session
        self.durability = durability
        self.label = label
        self.disks = disks
        self.generation = generation
        self.agentVersion = agentVersion
    }

    static let lengths = 33...4096

    public var kind: FrameKind { .hello }

    public func encode(into writer: inout ByteWriter) {
        precondition(disks.count <= LinkLimits.disksMax, "a guest has at most \(LinkLimits.disksMax) disks")
        writer.write(protocolVersion)
        writer.write(durability.rawValue)
        writer.write(UInt8(disks.count))
        writer.write(session)
        writer.write(generation.rawValue)
        writer.write(fileSafeName: guest)
        writer.write(shortText: label)
        writer.write(shortText: agentVersion)
        for disk in disks {
            writer.write(disk.size)
            writer.write(fileSafeName: disk.id)
        }
    }

    public static func decode(_ payload: UnsafeRawBufferPointer) throws(LinkError) -> Hello {
        var reader = PayloadReader(.hello, payload)
        let version: UInt16 = try reader.read()
        let durabilityValue: UInt8 = try reader.read()
        guard let durability = Durability(rawValue: durabilityValue) else {
            throw reader.bad("durability", at: 2, "has the unknown value \(durabilityValue)")
        }
        let diskCount = Int(try reader.read(UInt8.self))
        guard diskCount <= LinkLimits.disksMax else {
            throw reader.bad("disk count", at: 3, "is \(diskCount); \(LinkLimits.disksMax) are allowed")
        }
        let session = try reader.identifier()
        let generation = Generation(try reader.read())
        let guest = try reader.fileSafeName("guest name")
        let label = try reader.shortText("label")
        let agentVersion = try reader.shortText("agent version")
        var disks: [Disk] = []
        for _ in 0..<diskCount {
            let size: UInt64 = try reader.read()
            let start = reader.offset
            let id = try reader.fileSafeName("disk id")
            guard !disks.contains(where: { $0.id == id }) else {
                throw reader.bad("disk id", at: start, "\(id) appears twice")
            }
            disks.append(Disk(id: id, size: size))
        }
        try reader.finish()
        return Hello(
            protocolVersion: version, guest: guest, session: session, durability: durability, label: label,
            disks: disks, generation: generation, agentVersion: agentVersion)
    }
}
