import QEMU

/// A deterministic generator (SplitMix64).
struct StreamRandom: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) {
        state = seed
    }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var value = state
        value = (value ^ value >> 30) &* 0xBF58_476D_1CE4_E5B9
        value = (value ^ value >> 27) &* 0x94D0_49BB_1331_11EB
        return value ^ value >> 31
    }

    mutating func bytes(_ count: Int) -> [UInt8] {
        (0..<count).map { _ in UInt8(truncatingIfNeeded: next()) }
    }
}

/// Big-endian bytes of a number.
func be<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
    withUnsafeBytes(of: value.bigEndian) { Array($0) }
}

/// A name with its length in one byte before it.
func named(_ name: String) -> [UInt8] {
    [UInt8(name.utf8.count)] + Array(name.utf8)
}

/// Writes what a primary QEMU would send, piece by piece; knows nothing of the parser.
struct StreamWriter {
    enum RamItem: Equatable {
        case page(block: Int, offset: UInt64, contents: [UInt8])
        case filled(block: Int, offset: UInt64, byte: UInt8)

        var block: Int {
            switch self {
            case .page(let block, _, _), .filled(let block, _, _): block
            }
        }
    }

    struct Device {
        var name: String
        var instance: UInt32
        var contents: [UInt8]
    }

    enum Description { case qemu7, qemu10 }

    static let header = Array("QEVM".utf8) + be(UInt32(3))
    static let colo = command(8, [])

    var machine = "pc-i440fx-7.2"
    /// Bytes behind the machine name.
    var subsections: [UInt8] = []
    var sectionID: UInt32 = 2
    var blocks = [
        RamBlockDescription(name: "pc.ram", length: 64 << 12),
        RamBlockDescription(name: "/rom@etc/acpi/tables", length: 4 << 12),
        RamBlockDescription(name: "pc.bios", length: 1 << 12),
    ]
    var devices = [
        Device(name: "timer", instance: 0, contents: [1, 2, 3, 4, 5, 6, 7, 8]),
        Device(name: "cpu", instance: 1, contents: Array(repeating: 0x7E, count: 40)),
        Device(name: "0000:00:02.0/vga", instance: 0, contents: Array("running {\"page_size\": 1}".utf8)),
    ]
    /// QEMU never resets this, from section to section and from checkpoint to checkpoint.
    private var lastBlock: Int?

    static func command(_ number: UInt16, _ data: [UInt8]) -> [UInt8] {
        [8] + be(number) + be(UInt16(data.count)) + data
    }

    var configurationPayload: [UInt8] { be(UInt32(machine.utf8.count)) + Array(machine.utf8) + subsections }
    var configuration: [UInt8] { [7] + configurationPayload }
    var footer: [UInt8] { [0x7E] + be(sectionID) }
    var total: UInt64 { blocks.reduce(0) { $0 + $1.length } }

    func list(_ blocks: [RamBlockDescription], total: UInt64) -> [UInt8] {
        be(total | 4) + blocks.flatMap { named($0.name) + be($0.length) } + be(UInt64(0x10))
    }

    var startHeader: [UInt8] { [1] + be(sectionID) + named("ram") + be(UInt32(0)) + be(UInt32(4)) }
    var start: [UInt8] { startHeader + list(blocks, total: total) + footer }

    mutating func items(_ items: [RamItem]) -> [UInt8] {
        var bytes: [UInt8] = []
        for item in items {
            let same = lastBlock == item.block
            let name = same ? [] : named(blocks[item.block].name)
            let flag: UInt64 = same ? 0x20 : 0
            lastBlock = item.block
            switch item {
            case .page(_, let offset, let contents): bytes += be(offset | 0x08 | flag) + name + contents
            case .filled(_, let offset, let byte): bytes += be(offset | 0x02 | flag) + name + [byte]
            }
        }
        return bytes
    }

    mutating func section(_ type: UInt8, _ list: [RamItem]) -> [UInt8] {
        [type] + be(sectionID) + items(list) + be(UInt64(0x10)) + footer
    }

    /// Device sections and the end mark.
    var deviceState: [UInt8] {
        var bytes: [UInt8] = []
        for (index, device) in devices.enumerated() {
            let id = UInt32(index + 10)
            bytes += [4] + be(id) + named(device.name) + be(device.instance) + be(UInt32(1))
            bytes += device.contents + [0x7E] + be(id)
        }
        return bytes + [0]
    }

    func description(_ kind: Description) -> [UInt8] {
        let list = devices.map {
            "{\"name\": \"\($0.name)\", \"instance_id\": \($0.instance), \"vmsd_name\": \"x\", \"version\": 1, "
                + "\"fields\": [{\"name\": \"a\", \"size\": 1, \"struct\": {\"b\": [true, null, -1.5e3]}}]}"
        }.joined(separator: ", ")
        let front =
            switch kind {
            case .qemu7: "{\"page_size\": 4096, "
            case .qemu10:
                "{\"configuration\": {\"vmsd_name\": \"configuration\", \"fields\": []}, \"page_size\": 4096, "
            }
        return Array("\(front)\"devices\": [\(list)]}".utf8)
    }

    func vmdesc(_ kind: Description) -> [UInt8] {
        let text = description(kind)
        return [6] + be(UInt32(text.count)) + text
    }

    /// Everything up to the silence.
    mutating func initial(_ rounds: [[RamItem]], description kind: Description = .qemu7) -> [UInt8] {
        var bytes = Self.header + configuration + Self.colo + start
        for (index, round) in rounds.enumerated() {
            bytes += section(index == rounds.count - 1 ? 3 : 2, round)
        }
        return bytes + deviceState + vmdesc(kind)
    }

    /// What a checkpoint sends after the reply.
    mutating func checkpoint(_ list: [RamItem], commands: [UInt8] = []) -> [UInt8] {
        let state = deviceState
        return be(UInt32(3)) + commands + section(3, list) + [0] + be(UInt32(4)) + be(UInt64(state.count)) + state
    }

    static let request = be(UInt32(1))
}

/// Contents of a page that differ from seed to seed.
func pageContents(_ seed: Int) -> [UInt8] {
    (0..<4096).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ seed &* 31 &+ $0 >> 5) }
}
