import ArgumentParser
import Node

struct ImageInfoVerb: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "info", abstract: "Shows what an image says of itself, and what libqcow makes of it.")

    @OptionGroup var source: ImageSource
    @OptionGroup var output: OutputOption

    @Flag(name: .long, help: "Show the files below it, too; with json, an array.")
    var backingChain = false

    @Flag(name: .long, help: "Do not ask libqcow.")
    var noLibqcow = false

    mutating func run() async throws {
        do {
            let place = try source.claim()
            defer { withExtendedLifetime(place) {} }
            let chain = try source.open()
            let infos = try ImageInfo.describe(chain, libqcow: !noLibqcow)
            switch output.output {
            case .json:
                print(try ImageInfo.text(backingChain ? infos : [infos[0]], asArray: backingChain))
            case .human:
                for (index, info) in infos.enumerated() where backingChain || index == 0 {
                    if index > 0 { print("") }
                    for line in info.lines { print(line) }
                }
            }
        } catch let code as ExitCode {
            throw code
        } catch {
            throw fail("\(error)")
        }
    }
}
