import TestSupport
import Testing

@testable import Node

/// Something that the code could do wrong, put into the record of what it did.
private struct PlantedFault: CustomTestStringConvertible, Sendable {
    enum Place: Sendable { case run, recovery }

    let name: String
    let place: Place
    let durable: Bool
    let plant: @Sendable ([FileEvent]) -> [FileEvent]

    init(
        _ name: String, _ place: Place = .run, durable: Bool = true,
        _ plant: @escaping @Sendable ([FileEvent]) -> [FileEvent]
    ) {
        self.name = name
        self.place = place
        self.durable = durable
        self.plant = plant
    }

    var testDescription: String { name + (durable ? "" : " (memory durability)") }

    /// The fault is that something is not done.
    static func omit(
        _ name: String, _ place: Place = .run, durable: Bool = true,
        _ isOmitted: @escaping @Sendable (FileEvent) -> Bool
    ) -> PlantedFault {
        PlantedFault(name, place, durable: durable) { events in events.filter { !isOmitted($0) } }
    }

    /// The fault is that something is done earlier: ahead of the changes directly before it that it must follow.
    static func hurry(
        _ name: String, _ place: Place = .run, durable: Bool = true,
        change isHurried: @escaping @Sendable (FileEvent) -> Bool,
        past isPassed: @escaping @Sendable (FileEvent) -> Bool
    ) -> PlantedFault {
        PlantedFault(name, place, durable: durable) { events in
            var result: [FileEvent] = []
            for event in events {
                var index = result.count
                if isHurried(event) { while index > 0, isPassed(result[index - 1]) { index -= 1 } }
                result.insert(event, at: index)
            }
            return result
        }
    }
}

extension FileEvent {
    fileprivate var isOfHidden: Bool { path.hasPrefix("hidden-") && path.hasSuffix(".qcow2") }
    fileprivate var isOfUnfinished: Bool { path.hasSuffix(".new") }
    fileprivate var isOfSecondary: Bool { path == "secondary.raw" }
    fileprivate var isRemoval: Bool { if case .remove = self { true } else { false } }
    fileprivate var isAllow: Bool { if case .allow = self { true } else { false } }
    fileprivate var isContents: Bool {
        switch self {
        case .write, .zero: true
        default: false
        }
    }
}

private let plantedFaults: [PlantedFault] = [
    .omit("pre-images are not synced") { $0.isSync && $0.isOfHidden },
    .omit("a sealed epoch is not synced") { $0.isSync && $0.isOfSecondary },
    .omit("a hidden disk is not synced before it gets its name") { $0.isSync && $0.isOfUnfinished },
    .omit("a hidden disk's name is not synced") { $0.isSyncDirectory },
    .omit("a pre-image is not written") { $0.isContents && $0.isOfHidden },
    .hurry(
        "a block is overwritten before its pre-image is durable", change: { $0.isContents && $0.isOfSecondary },
        past: { $0.isOfHidden && $0.isSync }),
    .hurry(
        "a block is overwritten before its pre-image is written", durable: false,
        change: { $0.isContents && $0.isOfSecondary }, past: { $0.isOfHidden && $0.isContents }),
    .hurry("a hidden disk is removed before its commit", durable: false, change: \.isRemoval, past: { !$0.isContents }),
    .hurry(
        "the commit record is written before the epoch is synced", change: \.isAllow,
        past: { $0.isSync && $0.isOfSecondary }),
    PlantedFault("data and tables of a hidden disk are synced together") { events in
        events.enumerated().filter { index, event in
            guard event.isSync, event.isOfHidden else { return true }
            let next = events[(index + 1)...].first { $0.isSync || $0.isContents && $0.isOfSecondary }
            return next != event
        }.map(\.element)
    },
    .omit("a rolled back disk is not synced", .recovery) { $0.isSync && $0.isOfSecondary },
    .hurry(
        "a hidden disk is removed before it is written back", .recovery, change: { $0.isRemoval && $0.isOfHidden },
        past: \.isOfSecondary),
    .omit("a hidden disk's removal is not synced before the next one is written back", .recovery, \.isSyncDirectory),
]

@Suite("Faults that are planted to be found")
struct PlantedFaultTests {
    /// Short, and rich in what the faults need: holes, two hidden disks, second overwrites.
    private static let telling = ["a", "b", "c", "z", "aS", "cD", "cB", "cSz", "cSa", "cSbD", "zSc", "xScD", "cSzD"]

    @Test("a planted fault is found", arguments: plantedFaults)
    fileprivate func found(fault: PlantedFault) throws {
        let lab = try DiskCrashLab(durable: fault.durable, seed: 77)
        switch fault.place {
        case .run: lab.plant = fault.plant
        case .recovery:
            lab.recoveryPlant = fault.plant
            lab.secondCrashEvery = 3
        }
        let finding = #expect(throws: DiskCrashLab.Finding.self) {
            for text in Self.telling {
                try lab.examine(try #require(DiskSequence(text, durable: fault.durable)))
            }
        }
        if let finding { print("\(fault.name): \(finding.description.prefix { $0 != "\n" })") }
    }

    @Test("without a planted fault the same sequences pass", arguments: [true, false])
    func notFound(durable: Bool) throws {
        let lab = try DiskCrashLab(durable: durable, seed: 77)
        lab.secondCrashEvery = 3
        for text in Self.telling { try lab.examine(try #require(DiskSequence(text, durable: durable))) }
    }
}
