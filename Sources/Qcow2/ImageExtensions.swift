import Units

/// The header extensions that matter to a reader; unknown ones are skipped, as the format demands.
struct ImageExtensions {
    var backingFormat: String?
    var dataFile: String?
    var bitmaps: ImagePlace?
    /// Names that the image itself gives to feature bits: kind (0 incompatible), bit, name.
    private var names: [(kind: UInt8, bit: UInt8, name: String)] = []

    private static let end: UInt32 = 0
    private static let backingFormatKind: UInt32 = 0xE279_2ACA
    private static let featureNamesKind: UInt32 = 0x6803_F857
    private static let bitmapsKind: UInt32 = 0x2385_2875
    private static let dataFileKind: UInt32 = 0x4441_5441
    private static let featureNameBytes = 48

    /// Walks the extensions, which are at most the first cluster's bytes.
    init(_ fields: ImageFields, from start: Int, cluster: UInt64) throws(ImageError) {
        let nameOffset = fields.u64(8)
        // Without a backing file they may fill the cluster; with one they end before its name.
        let end = Int(min(nameOffset > 0 ? nameOffset : cluster, UInt64(fields.bytes.count)))
        var offset = start
        while offset + 8 <= end {
            let kind = fields.u32(offset)
            if kind == Self.end { break }
            let length = UInt64(fields.u32(offset + 4))
            guard length <= UInt64(end - offset - 8) else {
                throw .badField(
                    name: "length of the header extension 0x\(String(kind, radix: 16))", offset: UInt64(offset + 4),
                    value: length, allowed: "0 to \(end - offset - 8)")
            }
            try take(kind, fields, offset + 8, Int(length))
            offset += 8 + (Int(length) + 7) / 8 * 8
        }
    }

    private mutating func take(
        _ kind: UInt32, _ fields: ImageFields, _ offset: Int, _ length: Int
    ) throws(ImageError) {
        switch kind {
        case Self.backingFormatKind:
            guard length < 16, let name = fields.text(offset, length) else {
                throw .badField(
                    name: "backing format name", offset: UInt64(offset), value: UInt64(length),
                    allowed: "at most 15 bytes of text")
            }
            backingFormat = name
        case Self.dataFileKind:
            dataFile = fields.text(offset, length) ?? "(no text)"
        case Self.featureNamesKind:
            for place in stride(from: offset, through: offset + length - Self.featureNameBytes, by: 48) {
                let raw = fields.bytes[place + 2..<place + Self.featureNameBytes].prefix { $0 != 0 }
                let name = String(decoding: raw, as: UTF8.self)
                names.append((fields.bytes[place], fields.bytes[place + 1], name))
            }
        case Self.bitmapsKind:
            guard length >= 24 else {
                throw .badField(
                    name: "length of the bitmaps extension", offset: UInt64(offset - 4), value: UInt64(length),
                    allowed: "24 or more")
            }
            bitmaps = ImagePlace(
                offset: fields.u64(offset + 16), length: fields.u64(offset + 8), count: Int(fields.u32(offset)))
        default:
            break
        }
    }

    /// What the image calls an incompatible feature that this reader does not know.
    func incompatibleName(_ bit: Int) -> String? {
        names.first { $0.kind == 0 && Int($0.bit) == bit && !$0.name.isEmpty }?.name
    }
}

/// What the feature bits say, and what stands in the way of reading.
struct ImageFeatures {
    private(set) var isDirty = false
    private(set) var isMarkedCorrupt = false
    private(set) var hasLazyRefcounts = false
    private(set) var hasExtendedL2 = false
    private(set) var compression: ImageCompression = .zlib
    private(set) var bitmapsAreConsistent = false

    init(
        _ fields: ImageFields, version: Int, length: Int, _ extensions: ImageExtensions
    ) throws(ImageError) {
        switch fields.u32(32) {
        case 0: break
        case 1: throw Self.encrypted("AES encryption")
        case 2: throw Self.encrypted("LUKS encryption")
        default:
            throw .badField(name: "crypt_method", offset: 32, value: UInt64(fields.u32(32)), allowed: "0, 1 or 2")
        }
        guard version == 3 else { return }
        let incompatible = fields.u64(72)
        let unknown = incompatible & ~0x1F
        if unknown != 0 {
            let bit = unknown.trailingZeroBitCount
            let name = extensions.incompatibleName(bit).map { "the feature '\($0)'" } ?? "a feature"
            throw .unsupported(
                feature: "\(name) (incompatible bit \(bit))", offset: 72,
                remedy: "Convert it with the program that made it.")
        }
        if incompatible & 4 != 0 {
            throw .unsupported(
                feature: "the external data file '\(extensions.dataFile ?? "(not named)")'", offset: 72,
                remedy: "Convert it with qemu-img convert first.")
        }
        isDirty = incompatible & 1 != 0
        isMarkedCorrupt = incompatible & 2 != 0
        hasExtendedL2 = incompatible & 16 != 0
        hasLazyRefcounts = fields.u64(80) & 1 != 0
        bitmapsAreConsistent = fields.u64(88) & 1 != 0
        let kind = length > 104 ? fields.bytes[104] : 0
        guard let compression = ImageCompression(rawValue: kind) else {
            throw .unsupported(
                feature: "compression type \(kind)", offset: 104, remedy: "Convert it with the program that made it.")
        }
        guard (kind != 0) == (incompatible & 8 != 0) else {
            throw .badField(
                name: "compression_type", offset: 104, value: UInt64(kind),
                allowed: incompatible & 8 != 0 ? "1, as incompatible bit 3 is set" : "0, as incompatible bit 3 is clear"
            )
        }
        self.compression = compression
        let bits = fields.u32(20)
        guard !hasExtendedL2 || bits >= 14 else {
            throw .badField(
                name: "cluster_bits", offset: 20, value: UInt64(bits), allowed: "14 to 21 with extended L2 entries")
        }
    }

    private static func encrypted(_ name: String) -> ImageError {
        .unsupported(feature: name, offset: 32, remedy: "Decrypt it with qemu-img convert first.")
    }
}
