import ArgumentParser
import Node

struct Image: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Looks into disk images, raw and qcow2, with the files below them, and converts them.",
        subcommands: [ImageInfoVerb.self, ImageCheckVerb.self, ImageMapVerb.self, ImageConvertVerb.self])
}

enum OutputChoice: String, ExpressibleByArgument, CaseIterable {
    case human, json
}

enum FormatChoice: String, ExpressibleByArgument, CaseIterable {
    case raw, qcow2

    var format: ImageFormat { self == .raw ? .raw : .qcow2 }
}

/// What every verb on an image's file takes.
struct ImageSource: ParsableArguments {
    @Argument(help: "The image's file.")
    var file: String

    @Option(name: [.customShort("f"), .customLong("format")], help: "Its format: raw or qcow2; guessed by default.")
    var format: FormatChoice?

    @Flag(
        name: [.customShort("U"), .customLong("force-share")],
        help: "Read it although it belongs to a store that is in use; it may change meanwhile.")
    var forceShare = false

    /// Refuses files of a store that is in use; the value keeps an idle store idle while it lives.
    func claim() throws -> ImagePlaceInStore? {
        guard let place = try ImagePlaceInStore.find(file) else { return nil }
        guard !place.isInUse || forceShare else {
            throw fail(
                "\(file) belongs to the store \(place.store), which is in use: it changes while it is read. Stop the "
                    + "daemon first, or say --force-share")
        }
        return place
    }

    /// Opens the chain and says what an operator should know.
    func open() throws -> ImageChain {
        let chain = try ImageChain(path: file, format: format?.format)
        for warning in chain.warnings { printError("warning: \(warning)") }
        return chain
    }
}

struct OutputOption: ParsableArguments {
    @Option(name: .long, help: "human or json, with qemu-img's keys.")
    var output: OutputChoice = .human
}
