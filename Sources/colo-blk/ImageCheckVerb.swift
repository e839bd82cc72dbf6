import ArgumentParser
import Node

struct ImageCheckVerb: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "check", abstract: "Checks a qcow2 file's tables against its refcounts. Changes nothing.",
        discussion: "Exits with 0 when it is clean, 2 when it is damaged, 3 when it has leaks only.")

    @OptionGroup var source: ImageSource
    @OptionGroup var output: OutputOption

    mutating func run() async throws {
        do {
            let place = try source.claim()
            defer { withExtendedLifetime(place) {} }
            guard let report = try ImageCheckReport.check(path: source.file, format: source.format?.format) else {
                throw fail("\(source.file): this format has nothing to check", ExitStatus.nothingToCheck)
            }
            for finding in report.findings { printError(finding) }
            switch output.output {
            case .json: print(try report.text())
            case .human: for line in report.lines { print(line) }
            }
            if report.verdict != .clean { throw ExitCode(report.verdict.rawValue) }
        } catch let code as ExitCode {
            throw code
        } catch {
            throw fail("\(error)")
        }
    }
}
