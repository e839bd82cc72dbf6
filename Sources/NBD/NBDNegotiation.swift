import Units

/// The haggling before transmission: answers options until the client has chosen an export or leaves.
struct NBDNegotiation {
    /// What an option led to.
    enum Outcome: Equatable {
        /// The next option is awaited.
        case next
        /// TLS comes next.
        case tls
        /// Transmission begins with the export of this index.
        case transmission(Int)
        /// The client has left.
        case finished
    }

    let exports: [NBDExport]
    private let tls: NBDTLSMode
    private var isEncrypted = false
    /// The client does without the 124 zeroes behind the answer to EXPORT_NAME.
    var noZeroes = false
    private(set) var structuredReplies = false
    /// The export whose allocation the client wants to be told; nil for none.
    private var allocationExport: Int?
    private var optionsSeen = 0

    init(exports: [NBDExport], tls: NBDTLSMode) {
        self.exports = exports
        self.tls = tls
    }

    /// Forgets what was agreed in the clear.
    mutating func encrypted() {
        isEncrypted = true
        structuredReplies = false
        allocationExport = nil
        optionsSeen = 0
    }

    /// Whether block status of an export was agreed.
    func tellsAllocation(of export: Int) -> Bool { allocationExport == export }

    /// Answers one option; `data` is complete.
    mutating func option(
        _ number: UInt32, _ data: UnsafeRawBufferPointer, output: inout [UInt8]
    ) throws(NBDError) -> Outcome {
        optionsSeen += 1
        guard optionsSeen <= NBDLimits.optionsMax else { throw .tooManyOptions }
        let option = NBDOption(rawValue: number)
        if tls == .required, !isEncrypted, option != .abort, option != .startTLS {
            guard option != .exportName else { throw .tlsRequired }
            output.appendRefusal(number, .tlsRequired, "TLS is required here: use nbds://")
            return .next
        }
        switch option {
        case .exportName:
            return try exportName(data, output: &output)
        case .abort:
            output.appendOption(number, .ack)
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
                output.appendOption(number, .ack)
            } else {
                output.appendRefusal(number, .invalid, "this option carries no data")
            }
        case .listMetaContext, .setMetaContext:
            metaContext(number, data, output: &output)
        case .startTLS:
            return startTLS(data, output: &output)
        case nil:
            output.appendRefusal(number, .unsupported, "option \(number) is not known here")
        }
        return .next
    }

    /// The transmission flags of an export in this session.
    func flags(of export: NBDExport) -> UInt16 {
        (structuredReplies ? export.flags.union(.doNotFragment) : export.flags).rawValue
    }

    /// The index of the export of that name; the empty name is the first export.
    func index(of name: String) -> Int? {
        exports.firstIndex { $0.name == name } ?? (name.isEmpty && !exports.isEmpty ? 0 : nil)
    }

    private func exportName(_ data: UnsafeRawBufferPointer, output: inout [UInt8]) throws(NBDError) -> Outcome {
        guard data.count <= NBDLimits.nameMax, let name = String(validating: data, as: UTF8.self) else {
            throw .unknownExport("(a name of \(data.count) bytes)")
        }
        guard let index = index(of: name) else { throw .unknownExport(name) }
        output.appendBigEndian(exports[index].size)
        output.appendBigEndian(flags(of: exports[index]))
        if !noZeroes { output.append(contentsOf: repeatElement(0, count: 124)) }
        return .transmission(index)
    }

    private func list(_ data: UnsafeRawBufferPointer, output: inout [UInt8]) {
        let number = NBDOption.list.rawValue
        guard data.isEmpty else {
            return output.appendRefusal(number, .invalid, "this option carries no data")
        }
        for export in exports {
            var entry = ByteWriter()
            entry.write(UInt32(export.name.utf8.count))
            entry.write(utf8: export.name)
            entry.write(utf8: export.description)
            output.appendOption(number, .server, entry.bytes)
        }
        output.appendOption(number, .ack)
    }

    private func startTLS(_ data: UnsafeRawBufferPointer, output: inout [UInt8]) -> Outcome {
        let number = NBDOption.startTLS.rawValue
        if !data.isEmpty {
            output.appendRefusal(number, .invalid, "this option carries no data")
        } else if isEncrypted {
            output.appendRefusal(number, .invalid, "the connection is encrypted already")
        } else if tls == .off {
            output.appendRefusal(number, .policy, "no TLS here: the server was not given certificates or keys")
        } else {
            output.appendOption(number, .ack)
            return .tls
        }
        return .next
    }

    /// A length of four bytes and so many bytes of text.
    static func text(_ reader: inout ByteReader) throws(ByteReader.Truncated) -> String? {
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
            output.appendRefusal(number, .invalid, "the option's data are malformed")
            return nil
        }
        guard request.name.utf8.count <= NBDLimits.nameMax else {
            output.appendRefusal(number, .tooBig, "an export's name has at most 4096 bytes")
            return nil
        }
        guard let index = index(of: request.name) else {
            output.appendRefusal(number, .unknownExport, "no export of that name is offered")
            return nil
        }
        let export = exports[index]
        var info = ByteWriter()
        info.write(NBDInfo.export)
        info.write(export.size)
        info.write(flags(of: export))
        output.appendOption(number, .info, info.bytes)
        if request.wanted.contains(NBDInfo.name) {
            var name = ByteWriter()
            name.write(NBDInfo.name)
            name.write(utf8: export.name)
            output.appendOption(number, .info, name.bytes)
        }
        if request.wanted.contains(NBDInfo.description), !export.description.isEmpty {
            var words = ByteWriter()
            words.write(NBDInfo.description)
            words.write(utf8: export.description)
            output.appendOption(number, .info, words.bytes)
        }
        // Sent whether asked for or not, so that every client knows the limits.
        var sizes = ByteWriter()
        sizes.write(NBDInfo.blockSize)
        sizes.write(export.blockMin)
        sizes.write(export.blockPreferred)
        sizes.write(export.blockMax)
        output.appendOption(number, .info, sizes.bytes)
        output.appendOption(number, .ack)
        return index
    }

    /// Answers the question which contexts there are (LIST), or the choice of some for an export (SET), which replaces
    /// every choice before.
    private mutating func metaContext(_ number: UInt32, _ data: UnsafeRawBufferPointer, output: inout [UInt8]) {
        let isChoice = number == NBDOption.setMetaContext.rawValue
        if isChoice { allocationExport = nil }
        guard structuredReplies else {
            return output.appendRefusal(number, .invalid, "structured replies must be agreed first")
        }
        guard let question = MetaContextQuestion(data) else {
            return output.appendRefusal(number, .invalid, "the option's data are malformed")
        }
        guard question.export.utf8.count <= NBDLimits.nameMax else {
            return output.appendRefusal(number, .tooBig, "an export's name has at most 4096 bytes")
        }
        guard let index = index(of: question.export) else {
            return output.appendRefusal(number, .unknownExport, "no export of that name is offered")
        }
        let wanted = isChoice ? question.choosesAllocation : question.listsAllocation
        if wanted, exports[index].tellsAllocation {
            if isChoice { allocationExport = index }
            var context = ByteWriter()
            context.write(isChoice ? NBDAllocation.id : 0)
            context.write(utf8: NBDAllocation.name)
            output.appendOption(number, .metaContext, context.bytes)
        }
        output.appendOption(number, .ack)
    }
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT: `name, count, count * text`.
private struct MetaContextQuestion {
    let export: String
    /// SET: the context's full name is among the queries.
    private(set) var choosesAllocation = false
    /// LIST: a query covers it; no query at all asks for everything.
    private(set) var listsAllocation: Bool

    /// Nil when the bytes are not exactly that.
    init?(_ data: UnsafeRawBufferPointer) {
        var reader = ByteReader(data)
        do {
            guard let name = try NBDNegotiation.text(&reader) else { return nil }
            export = name
            let count: UInt32 = try reader.read()
            listsAllocation = count == 0
            for _ in 0..<count {
                guard let query = try NBDNegotiation.text(&reader) else { return nil }
                if query == NBDAllocation.name {
                    choosesAllocation = true
                    listsAllocation = true
                } else if query == "base:" {
                    listsAllocation = true
                }
            }
            guard reader.remaining == 0 else { return nil }
        } catch {
            return nil
        }
    }
}
