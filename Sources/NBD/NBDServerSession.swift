import Units

/// The server's half of one NBD connection, without any I/O: bytes in, replies out, requests to a handler.
///
/// The caller owns the input buffer. It calls ``start(output:)`` once, then ``consume(_:output:handler:)`` with
/// everything it holds whenever that is at least ``bytesNeeded``, drops what was consumed, sends `output`, and calls
/// again as long as its buffer still holds ``bytesNeeded``. Confined to whoever drives it; no locks, no clock.
public struct NBDServerSession {
    private enum State: Equatable {
        /// Greeting not sent. Next: clientFlags.
        case idle
        /// The client's 4 bytes of flags are awaited. Next: option, finished.
        case clientFlags
        /// An option's 16 bytes are awaited. Next: optionData, finished.
        case option
        /// The data of an option are awaited. Next: option, request, finished.
        case optionData(number: UInt32, length: Int)
        /// A request's 28 bytes are awaited. Next: payload, discard, finished.
        case request
        /// The data of a good write are awaited whole. Next: request.
        case payload(NBDRequest)
        /// The data of a refused write are thrown away as they come. Next: request.
        case discard(NBDRequest, NBDErrno, left: Int)
        /// The client has left or was dropped. Next: none.
        case finished
    }

    private var state = State.idle
    private var negotiation: NBDNegotiation
    /// Index of the export that the client has chosen; nil before.
    public private(set) var selectedExport: Int?

    public init(exports: [NBDExport]) {
        negotiation = NBDNegotiation(exports: exports)
    }

    public var exports: [NBDExport] { negotiation.exports }

    /// The connection can be closed once all output has been sent.
    public var isFinished: Bool { state == .finished }

    /// Fewer bytes than this make no progress; the caller's buffer must be able to hold so many, at most 32 MiB. More
    /// is welcome: a buffer of 64 KiB or above takes many small requests in one call.
    public var bytesNeeded: Int {
        switch state {
        case .idle, .finished: 0
        case .clientFlags: 4
        case .option: 16
        case .optionData(_, let length): max(length, 1)
        case .request: NBDRequest.length
        case .payload(let request): request.payloadLength
        case .discard: 1
        }
    }

    /// Appends the server's greeting, which the client waits for.
    public mutating func start(output: inout [UInt8]) {
        precondition(state == .idle, "a session starts once")
        NBDReply.append(NBDMagic.greeting, to: &output)
        NBDReply.append(NBDMagic.option, to: &output)
        NBDReply.append(NBDHandshakeFlag.fixedNewstyle | NBDHandshakeFlag.noZeroes, to: &output)
        state = .clientFlags
    }

    /// Takes in a prefix of `bytes` and returns its length. Replies are appended to `output` in the order of the
    /// requests. Stops early, with requests left, when `output` holds `NBDLimits.outputHigh` bytes or more.
    /// After an error the connection must be dropped; `output` may then still be sent.
    public mutating func consume(
        _ bytes: UnsafeRawBufferPointer, output: inout [UInt8], handler: inout some NBDRequestHandler
    ) throws(NBDError) -> Int {
        precondition(state != .idle, "the greeting comes first")
        var used = 0
        do {
            while used < bytes.count, output.count < NBDLimits.outputHigh {
                let rest = UnsafeRawBufferPointer(rebasing: bytes[used...])
                guard rest.count >= bytesNeeded, state != .finished else { break }
                used += try step(rest, output: &output, handler: &handler)
            }
        } catch {
            state = .finished
            throw error
        }
        if state == .finished, used == 0, !bytes.isEmpty { throw .finished }
        return used
    }

    /// Takes in one thing, for which `rest` is long enough; returns its length.
    private mutating func step(
        _ rest: UnsafeRawBufferPointer, output: inout [UInt8], handler: inout some NBDRequestHandler
    ) throws(NBDError) -> Int {
        switch state {
        case .idle, .finished:
            return 0
        case .clientFlags:
            try clientFlags(UInt32(bigEndian: rest.loadUnaligned(as: UInt32.self)))
            return 4
        case .option:
            try optionHeader(rest, output: &output)
            return 16
        case .optionData(let number, let length):
            try answer(number, UnsafeRawBufferPointer(rebasing: rest[..<length]), output: &output)
            return length
        case .request:
            try accept(try NBDRequest(rest), output: &output, handler: &handler)
            return NBDRequest.length
        case .payload(let request):
            let payload = UnsafeRawBufferPointer(rebasing: rest[..<request.payloadLength])
            let error = handler.write(
                export: selected, offset: request.offset, bytes: payload, fua: request.has(NBDCommandFlag.fua))
            NBDReply.simple(cookie: request.cookie, error, to: &output)
            state = .request
            return request.payloadLength
        case .discard(let request, let error, let left):
            let dropped = min(left, rest.count)
            if dropped == left {
                NBDReply.simple(cookie: request.cookie, error, to: &output)
                state = .request
            } else {
                state = .discard(request, error, left: left - dropped)
            }
            return dropped
        }
    }

    private mutating func clientFlags(_ flags: UInt32) throws(NBDError) {
        let known = UInt32(NBDHandshakeFlag.fixedNewstyle | NBDHandshakeFlag.noZeroes)
        guard flags & ~known == 0 else { throw .unknownClientFlags(flags) }
        guard flags & UInt32(NBDHandshakeFlag.fixedNewstyle) != 0 else { throw .notFixedNewstyle }
        negotiation.noZeroes = flags & UInt32(NBDHandshakeFlag.noZeroes) != 0
        state = .option
    }

    private mutating func optionHeader(_ rest: UnsafeRawBufferPointer, output: inout [UInt8]) throws(NBDError) {
        let magic = UInt64(bigEndian: rest.loadUnaligned(as: UInt64.self))
        guard magic == NBDMagic.option else { throw .badOptionMagic(magic) }
        let number = UInt32(bigEndian: rest.loadUnaligned(fromByteOffset: 8, as: UInt32.self))
        let length = UInt32(bigEndian: rest.loadUnaligned(fromByteOffset: 12, as: UInt32.self))
        guard length <= NBDLimits.optionMax else { throw .optionTooLong(option: number, length: length) }
        if length == 0 {
            try answer(number, UnsafeRawBufferPointer(start: nil, count: 0), output: &output)
        } else {
            state = .optionData(number: number, length: Int(length))
        }
    }

    private mutating func answer(
        _ number: UInt32, _ data: UnsafeRawBufferPointer, output: inout [UInt8]
    ) throws(NBDError) {
        switch try negotiation.option(number, data, output: &output) {
        case .next: state = .option
        case .finished: state = .finished
        case .transmission(let index):
            selectedExport = index
            state = .request
        }
    }

    /// The chosen export; transmission begins with one.
    private var selected: Int {
        guard let selectedExport else { preconditionFailure("transmission without an export") }
        return selectedExport
    }

    /// Validates a request and performs it, unless its data have to come first.
    private mutating func accept(
        _ request: NBDRequest, output: inout [UInt8], handler: inout some NBDRequestHandler
    ) throws(NBDError) {
        let structured = negotiation.structuredReplies
        let refusal = request.validate(for: exports[selected], structuredReplies: structured)
        if request.command == .write {
            guard request.byteCount <= NBDLimits.requestMax else { throw .writeTooLong(request.byteCount) }
            guard let refusal else {
                state = .payload(request)
                return
            }
            if request.payloadLength == 0 {
                NBDReply.simple(cookie: request.cookie, refusal, to: &output)
            } else {
                state = .discard(request, refusal, left: request.payloadLength)
            }
            return
        }
        if request.command == .disconnect {
            state = .finished
            return
        }
        guard let refusal else { return perform(request, output: &output, handler: &handler) }
        if request.command == .read, structured {
            NBDReply.structuredError(cookie: request.cookie, refusal, to: &output)
        } else {
            NBDReply.simple(cookie: request.cookie, refusal, to: &output)
        }
    }

    /// Performs a validated request that carries no data.
    private func perform(_ request: NBDRequest, output: inout [UInt8], handler: inout some NBDRequestHandler) {
        let fua = request.has(NBDCommandFlag.fua)
        let error: NBDErrno?
        switch request.command {
        case .read:
            return read(request, output: &output, handler: &handler)
        case .flush:
            error = handler.flush(export: selected)
        case .trim:
            error = handler.trim(export: selected, range: request.range, fua: fua)
        case .writeZeroes:
            error = handler.zero(
                export: selected, range: request.range, mayPunchHole: !request.has(NBDCommandFlag.noHole),
                fast: request.has(NBDCommandFlag.fastZero), fua: fua)
        case .cache:
            error = handler.cache(export: selected, range: request.range)
        case .write, .disconnect, .blockStatus, nil:
            preconditionFailure("such a request was answered before")
        }
        NBDReply.simple(cookie: request.cookie, error, to: &output)
    }

    /// Lets the handler fill the data in place; takes the reply back and refuses when it cannot.
    private func read(_ request: NBDRequest, output: inout [UInt8], handler: inout some NBDRequestHandler) {
        let structured = negotiation.structuredReplies
        let start = output.count
        NBDReply.readHeader(
            cookie: request.cookie, offset: request.offset, byteCount: request.byteCount, structured: structured,
            to: &output)
        let data = output.count
        output.append(contentsOf: repeatElement(0, count: Int(request.byteCount)))
        let error = output.withUnsafeMutableBytes { memory in
            handler.read(
                export: selected, offset: request.offset, into: UnsafeMutableRawBufferPointer(rebasing: memory[data...])
            )
        }
        guard let error else { return }
        output.removeSubrange(start...)
        if structured {
            NBDReply.structuredError(cookie: request.cookie, error, to: &output)
        } else {
            NBDReply.simple(cookie: request.cookie, error, to: &output)
        }
    }
}
