/// The JSON text that QEMU puts behind the device sections of a migration ("vmdesc"), as far as it tells which device
/// sections there are.
///
/// ```
/// {"page_size": 4096, "devices": [{"name": "timer", "instance_id": 0, "vmsd_name": ..., "fields": [...]}, ...]}
/// ```
/// QEMU 10 puts "configuration" before "page_size". One entry of "devices" stands for each section, in stream order.
struct VmstateDescription: Sendable, Equatable {
    struct Device: Sendable, Equatable {
        var name: String
        var instance: UInt32
    }

    var devices: [Device]

    /// Reads the text; nil when it is anything but one JSON object with the known keys that fills `bytes` exactly.
    init?(_ bytes: UnsafeRawBufferPointer) {
        var scanner = JSONScanner(bytes)
        var devices: [Device]?
        var isKnown = false
        let isComplete = scanner.object { (scanner, key) in
            switch key {
            case "devices":
                guard devices == nil, let list = Self.devices(&scanner) else { return false }
                devices = list
                return true
            case "page_size", "configuration":
                isKnown = true
                return scanner.skipValue(depth: 1)
            default:
                return scanner.skipValue(depth: 1)
            }
        }
        guard isComplete, scanner.isAtEnd, isKnown, let devices, !devices.isEmpty else { return nil }
        self.devices = devices
    }

    private static func devices(_ scanner: inout JSONScanner) -> [Device]? {
        var devices: [Device] = []
        let isComplete = scanner.array { scanner in
            var name: String?
            var instance: Int64?
            let isObject = scanner.object { (scanner, key) in
                switch key {
                case "name":
                    guard name == nil, let text = scanner.string() else { return false }
                    name = text
                    return true
                case "instance_id":
                    guard instance == nil, let number = scanner.integer() else { return false }
                    instance = number
                    return true
                default:
                    return scanner.skipValue(depth: 3)
                }
            }
            guard isObject, let name, let instance else { return false }
            devices.append(Device(name: name, instance: UInt32(truncatingIfNeeded: instance)))
            return true
        }
        return isComplete ? devices : nil
    }

    /// Whether `sections` is a row of device sections (type, id, name, instance, version, contents, footer) that begins
    /// with the first device of this description and goes through all of them in order up to its last byte.
    ///
    /// The contents have no length, so the next header is searched for: `7e`, id of this section, `04`, any id, name,
    /// instance of the next device. The work is one pass over the bytes.
    func describes(_ sections: UnsafeRawBufferPointer) -> Bool {
        var headers = devices.map(Self.header)[...]
        guard let first = headers.popFirst(), Self.isHeader(first, at: 0, of: sections) else { return false }
        var id = UnsafeRawBufferPointer(rebasing: sections[1..<5])
        var position = 5 + first.count + 4
        for header in headers {
            // Footer, type and id of the next section stand before its header.
            let last = sections.count - (5 + 5 + header.count + 4)
            while true {
                guard position <= last else { return false }
                if sections[position] == MigrationWire.footer,
                    sections[position + 1..<position + 5].elementsEqual(id),
                    Self.isHeader(header, at: position + 5, of: sections)
                {
                    break
                }
                position += 1
            }
            id = UnsafeRawBufferPointer(rebasing: sections[position + 6..<position + 10])
            position += 10 + header.count + 4
        }
        guard sections.count - position >= 5 else { return false }
        let end = sections.count - 5
        return sections[end] == MigrationWire.footer && sections[end + 1..<end + 5].elementsEqual(id)
    }

    /// The bytes that stand behind type and id: length and name, instance.
    private static func header(_ device: Device) -> [UInt8] {
        let name = Array(device.name.utf8)
        let instance = (0..<4).map { UInt8(device.instance >> (24 - 8 * $0) & 0xFF) }
        return [UInt8(truncatingIfNeeded: name.count)] + name + instance
    }

    private static func isHeader(_ header: [UInt8], at offset: Int, of sections: UnsafeRawBufferPointer) -> Bool {
        guard sections.count - offset >= 5 + header.count + 4, sections[offset] == MigrationWire.sectionFull else {
            return false
        }
        return sections[offset + 5..<offset + 5 + header.count].elementsEqual(header)
    }
}
