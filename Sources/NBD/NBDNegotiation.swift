import Units

/// The haggling before transmission: answers options until the client has chosen an export or leaves.
struct NBDNegotiation {
    /// What an option led to.
    enum Outcome: Equatable {
        /// The next option is awaited.
        case next
        /// Transmission begins with the export of this index.
        case transmission(Int)
        /// The client has left.
        case finished
    }

    let exports: [NBDExport]
    /// The client does without the 124 zeroes behind the answer to EXPORT_NAME.
    var noZeroes = false
    private(set) var structuredReplies = false
    private var optionsSeen = 0

    init(exports: [NBDExport]) {
        self.exports = exports
    }

    /// Answers one option; `data` is complete.
    mutating func option(
        _ number: UInt32, _ data: UnsafeRawBufferPointer, output: inout [UInt8]
    ) throws(NBDError) -> Outcome {
        optionsSeen += 1
        guard optionsSeen <= NBDLimits.optionsMax else { throw .tooManyOptions }
        switch NBDOption(rawValue: number) {
        case .exportName:
            return try exportName(data, output: &output)
        case .abort:
            NBDReply.option(number, .ack, to: &output)
            return .finished
        case .list:
            list(data, output: &output)
        case .info, .go:
            if let index = infoOrGo(number, data, output: &output), number == NBDOption.go.rawValue {
                return .transmission(index)
            }
        case .structuredReply:
            if data.isEmpty {
                structuredReplies = true
                NBDReply.option(number, .ack, to: &output)
            } else {
                NBDReply.refusal(number, .invalid, "this option carries no data", to: &output)
            }
        case .listMetaContext, .setMetaContext:
            metaContext(number, data, output: &output)
        case .startTLS:
            NBDReply.refusal(number, .policy, "no TLS here: this is a local socket", to: &output)
        case nil:
            NBDReply.refusal(number, .unsupported, "option \(number) is not known here", to: &output)
        }
        return .next
    }

    /// The transmission flags of an export in this session.
    func flags(of export: NBDExport) -> UInt16 {
        (structuredReplies ? export.flags.union(.doNotFragment) : export.flags).rawValue
    }

    /// The index of the export of that name; the empty name is the first export.
    private func index(of name: String) -> Int? {
        exports.firstIndex { $0.name == name } ?? (name.isEmpty && !exports.isEmpty ? 0 : nil)
    }

    private func exportName(_ data: UnsafeRawBufferPointer, output: inout [UInt8]) throws(NBDError) -> Outcome {
        guard data.count <= NBDLimits.nameMax, let name = String(validating: data, as: UTF8.self) else {
            throw .unknownExport("(a name of \(data.count) bytes)")
        }
        guard let index = index(of: name) else { throw .unknownExport(name) }
        NBDReply.append(exports[index].size, to: &output)
        NBDReply.append(flags(of: exports[index]), to: &output)
        if !noZeroes { output.append(contentsOf: repeatElement(0, count: 124)) }
        return .transmission(index)
    }

    private func list(_ data: UnsafeRawBufferPointer, output: inout [UInt8]) {
        let number = NBDOption.list.rawValue
        guard data.isEmpty else {
            return NBDReply.refusal(number, .invalid, "this option carries no data", to: &output)
        }
        for export in exports {
            var entry = ByteWriter()
            entry.write(UInt32(export.name.utf8.count))
            entry.write(utf8: export.name)
            NBDReply.option(number, .server, entry.bytes, to: &output)
        }
        NBDReply.option(number, .ack, to: &output)
    }

    /// A length of four bytes and so many bytes of text.
    private static func text(_ reader: inout ByteReader) throws(ByteReader.Truncated) -> String? {
        let length = Int(try reader.read(UInt32.self))
        return try reader.readString(length)
    }

    /// Parses `name, count, count * u16`; nil when the bytes are not exactly that.
    private static func infoRequest(_ data: UnsafeRawBufferPointer) -> (name: String, wanted: [UInt16])? {
        var reader = ByteReader(data)
        do {
            guard let name = try text(&reader) else { return nil }
            let count = Int(try reader.read(UInt16.self))
            guard reader.remaining == count * 2 else { return nil }
            var wanted: [UInt16] = []
            for _ in 0..<count { wanted.append(try reader.read()) }
            return (name, wanted)
        } catch {
            return nil
        }
    }

    /// Answers INFO and GO alike; returns the export's index when all is well.
    private func infoOrGo(_ number: UInt32, _ data: UnsafeRawBufferPointer, output: inout [UInt8]) -> Int? {
        guard let request = Self.infoRequest(data) else {
            NBDReply.refusal(number, .invalid, "the option's data are malformed", to: &output)
            return nil
        }
        guard request.name.utf8.count <= NBDLimits.nameMax else {
            NBDReply.refusal(number, .tooBig, "an export's name has at most 4096 bytes", to: &output)
            return nil
        }
        guard let index = index(of: request.name) else {
            NBDReply.refusal(number, .unknownExport, "no export of that name is offered", to: &output)
            return nil
        }
        let export = exports[index]
        var info = ByteWriter()
        info.write(NBDInfo.export)
        info.write(export.size)
        info.write(flags(of: export))
        NBDReply.option(number, .info, info.bytes, to: &output)
        if request.wanted.contains(NBDInfo.name) {
            var name = ByteWriter()
            name.write(NBDInfo.name)
            name.write(utf8: export.name)
            NBDReply.option(number, .info, name.bytes, to: &output)
        }
        // Sent whether asked for or not, so that every client knows the limits.
        var sizes = ByteWriter()
        sizes.write(NBDInfo.blockSize)
        sizes.write(export.blockMin)
        sizes.write(export.blockPreferred)
        sizes.write(export.blockMax)
        NBDReply.option(number, .info, sizes.bytes, to: &output)
        NBDReply.option(number, .ack, to: &output)
        return index
    }

    /// No metadata context is offered: a well-formed question is answered with an empty list.
    private func metaContext(_ number: UInt32, _ data: UnsafeRawBufferPointer, output: inout [UInt8]) {
        guard structuredReplies else {
            return NBDReply.refusal(number, .invalid, "structured replies must be agreed first", to: &output)
        }
        guard let name = Self.metaContextRequest(data) else {
            return NBDReply.refusal(number, .invalid, "the option's data are malformed", to: &output)
        }
        guard index(of: name) != nil else {
            return NBDReply.refusal(number, .unknownExport, "no export of that name is offered", to: &output)
        }
        NBDReply.option(number, .ack, to: &output)
    }

    /// Parses `name, count, count * text`; nil when the bytes are not exactly that.
    private static func metaContextRequest(_ data: UnsafeRawBufferPointer) -> String? {
        var reader = ByteReader(data)
        do {
            guard let name = try text(&reader), name.utf8.count <= NBDLimits.nameMax else { return nil }
            let count: UInt32 = try reader.read()
            for _ in 0..<count {
                guard try text(&reader) != nil else { return nil }
            }
            return reader.remaining == 0 ? name : nil
        } catch {
            return nil
        }
    }
}
