import Units

/// The server's half of one NBD connection, without any I/O: bytes in, validated requests and replies to options out.
///
/// The caller owns the input buffer. It calls ``start(output:)`` once, then ``consume(_:output:requests:limit:)`` with
/// everything it holds whenever that is at least ``bytesNeeded``, performs the requests in any order and whenever it
/// likes, answers each of them with ``NBDReply``, drops what was consumed, sends `output`, and calls again as long as
/// its buffer still holds ``bytesNeeded``. Who performs every request at once may use the form with an
/// ``NBDRequestHandler``. When ``awaitsTLS`` is true, TLS comes next. Confined to whoever drives it; no locks, no clock.
public struct NBDServerSession {
    private enum State: Equatable {
        /// Greeting not sent. Next: clientFlags.
        case idle
        /// The client's 4 bytes of flags are awaited. Next: option, finished.
        case clientFlags
        /// An option's 16 bytes are awaited. Next: optionData, request, tls, finished.
        case option
        /// The data of an option are awaited. Next: option, request, finished.
        case optionData(number: UInt32, length: Int)
        /// STARTTLS was agreed; the caller must encrypt. Next: option, finished.
        case tls
        /// A request's 28 bytes are awaited. Next: payload, discard, finished.
        case request
        /// The data of a good write are awaited whole. Next: request.
        case payload(NBDRequest)
        /// The data of a refused write are thrown away as they come. Next: request.
        case discard(NBDRequest, left: Int)
        /// The client has left or was dropped. Next: none.
        case finished
    }

    /// How much a call may hand out. Both are soft: as long as anything is left of both, one more request is taken.
    public struct Intake: Sendable {
        /// Requests.
        public var requests: Int
        /// Bytes of data, of writes and of reads.
        public var bytes: Int

        public init(requests: Int, bytes: Int) {
            self.requests = requests
            self.bytes = bytes
        }
    }

    private var state = State.idle
    private var negotiation: NBDNegotiation
    /// Kept between calls, so that performing at once allocates nothing.
    private var requestStorage: [NBDRequest] = []
    /// Index of the export that the client has chosen; nil before.
    public private(set) var selectedExport: Int?

    /// Traps without an export.
    public init(exports: [NBDExport], tls: NBDTLSMode = .off) {
        negotiation = NBDNegotiation(exports: exports, tls: tls)
    }

    public var exports: [NBDExport] { negotiation.exports }

    /// The connection can be closed once all output has been sent and all requests were answered.
    public var isFinished: Bool { state == .finished }

    /// The client has agreed to TLS: once all output has been sent, the caller puts TLS under the connection and calls
    /// ``tlsStarted()``. Nothing is consumed before. Bytes that came in the clear behind the agreement are a fault: the
    /// caller drops such a connection with ``NBDError/clearBytesBeforeTLS``.
    public var awaitsTLS: Bool { state == .tls }

    /// The client negotiates still: a caller bounds the time of that.
    public var isNegotiating: Bool {
        switch state {
        case .idle, .clientFlags, .option, .optionData, .tls: true
        case .request, .payload, .discard, .finished: false
        }
    }

    /// Fewer bytes than this make no progress; the caller's buffer must be able to hold so many, at most 32 MiB. More
    /// is welcome: a buffer of 64 KiB or above takes many small requests in one call.
    public var bytesNeeded: Int {
        switch state {
        case .idle, .finished: 0
        case .clientFlags: 4
        case .option: 16
        case .optionData(_, let length): max(length, 1)
        case .tls: 1
        case .request: NBDRequest.length
        case .payload(let request): request.payloadLength
        case .discard: 1
        }
    }

    /// Appends the server's greeting, which the client waits for.
    public mutating func start(output: inout [UInt8]) {
        precondition(state == .idle, "a session starts once")
        output.appendBigEndian(NBDMagic.greeting)
        output.appendBigEndian(NBDMagic.option)
        output.appendBigEndian(NBDHandshakeFlag.fixedNewstyle | NBDHandshakeFlag.noZeroes)
        state = .clientFlags
    }

    /// From here on the connection is encrypted; what was agreed in the clear is forgotten, as the protocol wants it.
    public mutating func tlsStarted() {
        precondition(state == .tls, "TLS starts when the client has asked for it")
        negotiation.encrypted()
        state = .option
    }

    /// Takes in a prefix of `bytes` and returns its length. Answers to options are appended to `output`; the requests
    /// that the prefix completes are appended to `requests`, refused ones among them, in the client's order. Stops early
    /// when `limit` is used up, or when `output` holds `NBDLimits.outputHigh` bytes. After an error the connection must
    /// be dropped; `output` may then still be sent, and the requests appended before may still be performed.
    public mutating func consume(
        _ bytes: UnsafeRawBufferPointer, output: inout [UInt8], requests: inout [NBDRequest], limit: Intake
    ) throws(NBDError) -> Int {
        precondition(state != .idle, "the greeting comes first")
        var used = 0
        var left = limit
        do {
            while used < bytes.count, output.count < NBDLimits.outputHigh, left.requests > 0, left.bytes > 0 {
                let rest = UnsafeRawBufferPointer(rebasing: bytes[used...])
                guard rest.count >= bytesNeeded, state != .finished, state != .tls else { break }
                let before = requests.count
                used += try step(rest, at: used, output: &output, requests: &requests)
                if requests.count > before {
                    left.requests -= 1
                    left.bytes -= requests[before].weight
                }
            }
        } catch {
            state = .finished
            throw error
        }
        if state == .finished, used == 0, !bytes.isEmpty { throw .finished }
        return used
    }

    /// Takes in one thing, for which `rest` is long enough; returns its length. `place` is where `rest` begins in the
    /// caller's bytes.
    private mutating func step(
        _ rest: UnsafeRawBufferPointer, at place: Int, output: inout [UInt8], requests: inout [NBDRequest]
    ) throws(NBDError) -> Int {
        switch state {
        case .idle, .tls, .finished:
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
            let request = try NBDRequest(rest)
            let payload = request.payloadLength
            try accept(request, requests: &requests)
            // The usual small write lies whole behind its header: one step for both.
            guard case .payload(var whole) = state, rest.count >= NBDRequest.length + payload else {
                return NBDRequest.length
            }
            whole.payloadOffset = place + NBDRequest.length
            requests.append(whole)
            state = .request
            return NBDRequest.length + payload
        case .payload(var request):
            request.payloadOffset = place
            requests.append(request)
            state = .request
            return request.payloadLength
        case .discard(let request, let left):
            let dropped = min(left, rest.count)
            if dropped == left {
                requests.append(request)
                state = .request
            } else {
                state = .discard(request, left: left - dropped)
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
        case .tls: state = .tls
        case .finished: state = .finished
        case .transmission(let index):
            selectedExport = index
            state = .request
        }
    }

    /// Judges a request and hands it out, unless its data have to come first.
    private mutating func accept(_ fresh: NBDRequest, requests: inout [NBDRequest]) throws(NBDError) {
        guard let selectedExport else { preconditionFailure("transmission without an export") }
        var request = fresh
        request.isStructured = negotiation.structuredReplies
        request.refusal = request.validate(
            for: exports[selectedExport], structuredReplies: request.isStructured,
            allocation: negotiation.tellsAllocation(of: selectedExport))
        switch request.command {
        case .write:
            guard request.byteCount <= NBDLimits.requestMax else { throw .writeTooLong(request.byteCount) }
            if request.refusal == nil {
                state = .payload(request)
            } else if request.payloadLength == 0 {
                requests.append(request)
            } else {
                state = .discard(request, left: request.payloadLength)
            }
        case .disconnect:
            state = .finished
        default:
            requests.append(request)
        }
    }

    mutating func takeRequestStorage() -> [NBDRequest] {
        var storage: [NBDRequest] = []
        swap(&storage, &requestStorage)
        return storage
    }

    mutating func giveBack(_ storage: inout [NBDRequest]) {
        storage.removeAll(keepingCapacity: true)
        swap(&storage, &requestStorage)
    }
}

/// Whether a server encrypts.
public enum NBDTLSMode: String, Sendable, CaseIterable {
    /// STARTTLS is refused.
    case off
    /// The client decides.
    case allow
    /// Before TLS, everything but STARTTLS and ABORT is refused.
    case required
}
