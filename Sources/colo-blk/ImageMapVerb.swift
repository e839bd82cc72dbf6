import ArgumentParser
import Node

struct ImageMapVerb: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "map", abstract: "Shows which file of a chain holds each piece of the disk, and where.")

    @OptionGroup var source: ImageSource
    @OptionGroup var output: OutputOption

    mutating func run() async throws {
        do {
            let place = try source.claim()
            defer { withExtendedLifetime(place) {} }
            let chain = try source.open()
            switch output.output {
            case .json:
                var begin = "["
                try chain.forEachMapEntry { (entry) throws(ImageChainError) in
                    print(begin + entry.json, terminator: "")
                    begin = ",\n"
                }
                print(begin == "[" ? "[]" : "]")
            case .human:
                print(columns("Offset", "Length", "Mapped to", "File"))
                try chain.forEachMapEntry { (entry) throws(ImageChainError) in
                    guard entry.data, !entry.zero else { return }
                    let place = entry.offset.map { hexadecimal($0) } ?? "(compressed)"
                    print(columns(hexadecimal(entry.start), hexadecimal(entry.length), place, entry.path))
                }
            }
        } catch let code as ExitCode {
            throw code
        } catch {
            throw fail("\(error)")
        }
    }

    private func hexadecimal(_ value: UInt64) -> String { value == 0 ? "0" : "0x" + String(value, radix: 16) }

    private func columns(_ first: String, _ second: String, _ third: String, _ last: String) -> String {
        [first, second, third].map { $0 + String(repeating: " ", count: max(16 - $0.count, 1)) }.joined() + last
    }
}
