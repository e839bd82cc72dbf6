import Units

/// The guest's RAM blocks as its migration stream lists them. Block indices of RAM batches point into this list.
public struct RamLayoutPayload: Equatable, Sendable, LinkPayload {
    /// One RAM block.
    public struct Block: Equatable, Sendable {
        /// QEMU's idstr; 1 to 255 bytes, not a file name.
        public var name: String
        /// Bytes.
        public var length: UInt64

        public init(name: String, length: UInt64) {
            self.name = name
            self.length = length
        }
    }

    /// Section id of "ram" in the migration stream.
    public var ramSectionID: UInt32
    /// Payload of the configuration section, verbatim; at most 64 KiB.
    public var configuration: [UInt8]
    /// At most 1,024; names unique.
    public var blocks: [Block]

    public init(ramSectionID: UInt32, configuration: [UInt8], blocks: [Block]) {
        self.ramSectionID = ramSectionID
        self.configuration = configuration
        self.blocks = blocks
    }

    static let lengths = 10...10 + LinkLimits.configurationMax + LinkLimits.ramBlocksMax * (1 + 255 + 8)

    public var kind: FrameKind { .ramLayout }

    public func encode(into writer: inout ByteWriter) {
        precondition(configuration.count <= LinkLimits.configurationMax && blocks.count <= LinkLimits.ramBlocksMax)
        writer.write(ramSectionID)
        writer.write(UInt32(configuration.count))
        writer.write(UInt16(blocks.count))
        writer.write(bytes: configuration)
        for block in blocks {
            precondition((1...255).contains(block.name.utf8.count), "a RAM block's name has 1 to 255 bytes")
            writer.write(block.length)
            writer.write(shortText: block.name)
        }
    }

    public static func decode(_ payload: UnsafeRawBufferPointer) throws(LinkError) -> RamLayoutPayload {
        var reader = PayloadReader(.ramLayout, payload)
        let section: UInt32 = try reader.read()
        let configurationLength: UInt32 = try reader.read()
        guard configurationLength <= LinkLimits.configurationMax else {
            throw reader.bad("configuration", at: 4, "has \(configurationLength) bytes; 65536 are allowed")
        }
        let count = Int(try reader.read(UInt16.self))
        guard count <= LinkLimits.ramBlocksMax else {
            throw reader.bad("block count", at: 8, "is \(count); \(LinkLimits.ramBlocksMax) are allowed")
        }
        let configuration = Array(try reader.bytes(Int(configurationLength)))
        var blocks: [Block] = []
        var names: Set<String> = []
        var total: UInt64 = 0
        for _ in 0..<count {
            let start = reader.offset
            let length: UInt64 = try reader.read()
            let (sum, overflow) = total.addingReportingOverflow(length)
            guard length > 0, !overflow else { throw reader.bad("block length", at: start, "\(length) cannot be") }
            total = sum
            let name = try reader.shortText("block name")
            guard !name.isEmpty, names.insert(name).inserted else {
                throw reader.bad("block name", at: start + 8, "is empty or appears twice")
            }
            blocks.append(Block(name: name, length: length))
        }
        try reader.finish()
        return RamLayoutPayload(ramSectionID: section, configuration: configuration, blocks: blocks)
    }
}
