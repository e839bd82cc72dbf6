import ArgumentParser
import Node

struct Check: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Says of everything in a stopped store what it is, and whether it is what the last commit says.",
        discussion: """
            Changes nothing. Exit code 0: consistent; 4: damaged; 5: something cannot be read; 6: nothing is committed;
            7: the store is in use.
            """)

    @Argument(help: "The store's folder, or one guest's: STORE or STORE/GUEST.")
    var path: String

    @Flag(name: .long, help: "Do not read the disks' contents, nor compare the RAM cache with the files on disk.")
    var quick = false

    @Option(name: .long, help: "human or json.")
    var output: OutputChoice = .human

    mutating func run() async throws {
        let report: StoreCheckReport
        do {
            report = try StoreCheck(path: path, options: .init(quick: quick)).run()
        } catch {
            switch error {
            case .inUse(let text): throw fail(text, ExitStatus.inUse)
            case .unreadable(let text): throw fail(text, ExitStatus.unavailable)
            case .notThere(let text): throw fail(text)
            }
        }
        do {
            switch output {
            case .json: print(try report.text())
            case .human: for line in CheckText.lines(report) { print(line) }
            }
        } catch { throw fail("\(error)") }
        switch report.verdict {
        case .consistent: return
        case .damaged:
            throw fail("\(path) is damaged: see what is marked 'damaged' above", ExitStatus.differs)
        case .unreadable:
            throw fail("parts of \(path) cannot be read: see what is marked 'unreadable' above", ExitStatus.unavailable)
        case .nothingCommitted:
            throw fail("nothing has been committed in \(path): there is no checkpoint", ExitStatus.nothingCommitted)
        }
    }
}

/// `colo-blk check` for people.
enum CheckText {
    static func lines(_ report: StoreCheckReport) -> [String] {
        var lines = ["store        \(report.store): \(report.verdict.rawValue)"]
        for guest in report.guests {
            lines.append("")
            lines.append("guest        \(guest.guest): \(guest.verdict.rawValue)")
            if let epoch = guest.epoch, let generation = guest.generation {
                lines.append(
                    "checkpoint   \(epoch), generation \(generation), \(guest.role ?? ""), "
                        + "durability \(guest.durability ?? "")")
            }
            for item in guest.items {
                let state = item.state.rawValue.padding(to: 13)
                lines.append("\(state)\(item.what), \(item.file): \(item.text)")
            }
        }
        return lines
    }
}

extension String {
    fileprivate func padding(to count: Int) -> String {
        self + String(repeating: " ", count: max(1, count - self.count))
    }
}
