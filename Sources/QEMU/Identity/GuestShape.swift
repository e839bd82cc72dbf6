/// What of a guest's machine may change while the guest runs, to see whether it did.
public struct GuestShape: Sendable, Equatable {
    /// Media by drive; an empty text for none.
    private let media: [String: String]
    /// Types by device.
    private let devices: [String: String]
    private let cpuCount: Int
    private let memoryDeviceCount: Int

    public init(_ answers: GuestAnswers) {
        let drives = GuestMedium.all(in: answers).map { ($0.name, $0.filename ?? "") }
        media = Dictionary(drives, uniquingKeysWith: { first, _ in first })
        devices = Dictionary(answers.peripherals.map { ($0.name, $0.type) }, uniquingKeysWith: { first, _ in first })
        cpuCount = answers.list("query-cpus-fast").count
        memoryDeviceCount = answers.list("query-memory-devices").count
    }

    /// What is another than before, in words; nil when nothing is.
    public func change(since before: GuestShape) -> String? {
        var changes: [String] = []
        for name in Set(media.keys).union(before.media.keys).sorted() where media[name] != before.media[name] {
            let now = media[name] ?? ""
            changes.append("drive \(name) holds \(now.isEmpty ? "nothing" : now)")
        }
        for name in Set(devices.keys).union(before.devices.keys).sorted() where devices[name] != before.devices[name] {
            changes.append("device \(name) \(devices[name] == nil ? "is gone" : "was plugged in")")
        }
        if cpuCount != before.cpuCount { changes.append("\(cpuCount) processors instead of \(before.cpuCount)") }
        if memoryDeviceCount != before.memoryDeviceCount {
            changes.append("\(memoryDeviceCount) memory devices instead of \(before.memoryDeviceCount)")
        }
        return changes.isEmpty ? nil : changes.joined(separator: ", ")
    }
}
