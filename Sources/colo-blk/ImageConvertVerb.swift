import ArgumentParser
import Node

struct ImageConvertVerb: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "convert", abstract: "Writes the disk of an image and the files below it into one new file.")

    @OptionGroup var source: ImageSource

    @Option(name: [.customShort("O"), .customLong("output-format")], help: "Format of the new file: raw or qcow2.")
    var outputFormat: FormatChoice = .raw

    @Argument(help: "The new file.")
    var target: String

    @Flag(name: [.customShort("p"), .customLong("progress")], help: "Show how far it is.")
    var progress = false

    mutating func run() async throws {
        do {
            let place = try source.claim()
            defer { withExtendedLifetime(place) {} }
            let chain = try source.open()
            var converter = try ImageConverter(chain, to: target, format: outputFormat.format)
            let bar = ProgressBar("converting", isShown: progress)
            converter.progress = { bar.show($0, of: $1) }
            _ = try converter.run()
            bar.finish()
        } catch let code as ExitCode {
            throw code
        } catch {
            throw fail("\(error)")
        }
    }
}
