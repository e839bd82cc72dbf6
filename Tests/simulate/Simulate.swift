import Glibc
import Simulator

/// Runs the simulator. Exit code 0: every promise held; 1: one was broken; 64: the command line is wrong.
@main
struct Simulate {
    static let usage = """
        Two hosts, a link and a guest in virtual time, with faults; every promise is checked at every step.

          simulate                       seeds 1 to 1000
          simulate --seed N              one seed, with its trace
          simulate --seeds N [--from M]  N seeds, from M
          simulate --hours H [--from M]  seeds from M until H hours have passed (H may be 0.5)
          simulate ... --mutation NAME   with a known bug planted (--mutation list names them)
          simulate ... --workers N       on N threads; 2 unless it is said

        """

    private var plan = SimulationPlan()
    private var isSingle = false
    private var words = CommandLine.arguments.dropFirst()

    static func main() {
        var command = Simulate()
        command.parse()
        command.run()
    }

    private func refuse(_ what: String) -> Never {
        print("simulate: \(what)\n\n\(Self.usage)", terminator: "")
        exit(64)
    }

    private mutating func value<T>(_ option: String, _ parse: (String) -> T?) -> T {
        guard let word = words.popFirst(), let parsed = parse(word) else { refuse("\(option) takes another value") }
        return parsed
    }

    private mutating func parse() {
        while let word = words.popFirst() {
            switch word {
            case "--seed":
                plan.first = value(word) { UInt64($0) }
                plan.count = 1
                isSingle = true
            case "--seeds": plan.count = value(word) { UInt64($0) }
            case "--from": plan.first = value(word) { UInt64($0) }
            case "--workers": plan.workers = value(word) { Int($0) }
            case "--hours":
                let hours = value(word) { Double($0) }
                plan.count = .max / 2
                plan.limit = .milliseconds(Int(hours * 3_600_000))
            case "--mutation":
                let name = value(word) { $0 }
                guard let mutation = Mutation(rawValue: name) else {
                    refuse("known bugs: " + Mutation.allCases.map(\.rawValue).joined(separator: ", "))
                }
                plan.mutation = mutation
            case "--help", "-h":
                print(Self.usage, terminator: "")
                exit(0)
            default: refuse("what is \(word)?")
            }
        }
    }

    private func run() {
        let isSingle = isSingle
        let summary = plan.run { outcome in
            if outcome.failure != nil || isSingle { print(outcome.report) }
            if isSingle, outcome.failure == nil { print(outcome.trace.joined(separator: "\n")) }
        }
        print(summary)
        exit(summary.failed == 0 ? 0 : 1)
    }
}
