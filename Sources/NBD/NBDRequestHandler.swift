import Units

/// Performs the requests of a session at once, on the caller's thread. Ranges were validated: inside the export, aligned,
/// permitted.
///
/// Each method answers at once: nil for success, or the error number that the client is told. `export` is the index
/// into the exports that the session was made with.
public protocol NBDRequestHandler {
    /// Fills all of `memory` with the contents from `offset` on.
    mutating func read(export: Int, offset: UInt64, into memory: UnsafeMutableRawBufferPointer) -> NBDErrno?

    /// Takes in data; `bytes` are valid during the call only. With `fua` they must be as safe as after a flush.
    mutating func write(export: Int, offset: UInt64, bytes: UnsafeRawBufferPointer, fua: Bool) -> NBDErrno?

    /// Makes a range read as zeroes. `mayPunchHole` is false when the client wants the space to stay allocated; with
    /// `fast`, answer `.notSupported` at once rather than take as long as writing zeroes would.
    mutating func zero(export: Int, range: ByteRange, mayPunchHole: Bool, fast: Bool, fua: Bool) -> NBDErrno?

    /// The contents of a range no longer matter.
    mutating func trim(export: Int, range: ByteRange, fua: Bool) -> NBDErrno?

    /// Everything acknowledged before must be safe, as far as the export promises.
    mutating func flush(export: Int) -> NBDErrno?

    /// The client will soon read a range; only a hint.
    mutating func cache(export: Int, range: ByteRange) -> NBDErrno?

    /// Tells the runs of a range from its start on, at least one and at most `limit`. Only asked where the export
    /// ``NBDExport/tellsAllocation``. An empty answer is an error to the client.
    mutating func extents(export: Int, range: ByteRange, limit: Int) -> [NBDExtent]
}

extension NBDRequestHandler {
    public mutating func cache(export: Int, range: ByteRange) -> NBDErrno? { nil }
    public mutating func extents(export: Int, range: ByteRange, limit: Int) -> [NBDExtent] { [] }
}

extension NBDServerSession {
    /// Takes in a prefix of `bytes`, performs its requests with `handler`, and returns the prefix's length. Replies are
    /// appended to `output` in the order of the requests. Stops early, with requests left, when `output` holds
    /// `NBDLimits.outputHigh` bytes or more. After an error the connection must be dropped; `output` may then still be
    /// sent.
    public mutating func consume(
        _ bytes: UnsafeRawBufferPointer, output: inout [UInt8], handler: inout some NBDRequestHandler
    ) throws(NBDError) -> Int {
        var used = 0
        var requests = takeRequestStorage()
        defer { giveBack(&requests) }
        while used < bytes.count, output.count < NBDLimits.outputHigh {
            let rest = UnsafeRawBufferPointer(rebasing: bytes[used...])
            let room = NBDLimits.outputHigh - output.count
            let outcome = Result { () throws(NBDError) in
                try consume(rest, output: &output, requests: &requests, limit: Intake(requests: 256, bytes: room))
            }
            for request in requests { perform(request, rest, output: &output, handler: &handler) }
            requests.removeAll(keepingCapacity: true)
            let taken = try outcome.get()
            used += taken
            if taken == 0 || isFinished { break }
        }
        return used
    }

    private func perform(
        _ request: NBDRequest, _ bytes: UnsafeRawBufferPointer, output: inout [UInt8],
        handler: inout some NBDRequestHandler
    ) {
        guard let export = selectedExport else { preconditionFailure("transmission without an export") }
        if let refusal = request.refusal {
            return output.appendReply { NBDReply.failure(of: request, refusal, into: $0) }
        }
        let error: NBDErrno?
        switch request.command {
        case .read:
            return read(request, export, output: &output, handler: &handler)
        case .write:
            let end = request.payloadOffset + Int(request.byteCount)
            let payload = UnsafeRawBufferPointer(rebasing: bytes[request.payloadOffset..<end])
            error = handler.write(export: export, offset: request.offset, bytes: payload, fua: request.isForced)
        case .flush:
            error = handler.flush(export: export)
        case .trim:
            error = handler.trim(export: export, range: request.range, fua: request.isForced)
        case .writeZeroes:
            error = handler.zero(
                export: export, range: request.range, mayPunchHole: request.mayPunchHole, fast: request.isFast,
                fua: request.isForced)
        case .cache:
            error = handler.cache(export: export, range: request.range)
        case .blockStatus:
            let limit = request.wantsOneExtent ? 1 : NBDLimits.extentsMax
            let extents = handler.extents(export: export, range: request.range, limit: limit).prefix(limit)
            guard !extents.isEmpty else {
                return output.appendReply { NBDReply.failure(of: request, .io, into: $0) }
            }
            output.appendReply { NBDReply.blockStatus(cookie: request.cookie, count: extents.count, into: $0) }
            for extent in extents {
                output.appendReply { memory in
                    extent.put(into: memory)
                    return NBDExtent.length
                }
            }
            return
        case .disconnect, nil:
            preconditionFailure("such a request is not handed out")
        }
        output.appendReply { NBDReply.simple(cookie: request.cookie, error, into: $0) }
    }

    /// Lets the handler fill the data in place; takes the reply back and refuses when it cannot.
    private func read(
        _ request: NBDRequest, _ export: Int, output: inout [UInt8], handler: inout some NBDRequestHandler
    ) {
        let start = output.count
        output.appendReply { NBDReply.readHeader(of: request, into: $0) }
        let data = output.count
        output.append(contentsOf: repeatElement(0, count: Int(request.byteCount)))
        let error = output.withUnsafeMutableBytes { memory in
            handler.read(
                export: export, offset: request.offset, into: UnsafeMutableRawBufferPointer(rebasing: memory[data...]))
        }
        guard let error else { return }
        output.removeSubrange(start...)
        output.appendReply { NBDReply.failure(of: request, error, into: $0) }
    }
}
