/// Device state, and the messages around it.
extension ColoPrimaryStream {
    /// Everything behind the first device section's type byte; see ``DeviceStateCollector`` for its end.
    mutating func stepInitialDevices<Sink: MigrationSink>(
        _ window: inout StreamWindow, into sink: inout Sink
    ) throws(MigrationStreamError.Reason) -> Bool {
        try collector.append(window.rest)
        window.advance(window.remaining)
        if let complete = collector.finished(afterSilence: false) {
            state = .awaitingReady
            sink.initialStateComplete(deviceState: complete)
        }
        return true
    }

    private func peekMessage(
        _ expected: ColoMessage, in window: StreamWindow
    ) throws(MigrationStreamError.Reason) -> Bool {
        guard let value = window.peek(UInt32.self) else { return false }
        guard value == expected.rawValue else { throw .wrongMessage(found: value, expected: expected) }
        return true
    }

    mutating func stepRequest<Sink: MigrationSink>(
        _ window: inout StreamWindow, into sink: inout Sink
    ) throws(MigrationStreamError.Reason) -> Bool {
        guard try peekMessage(.checkpointRequest, in: window) else { return false }
        window.advance(4)
        checkpoint += 1
        state = .awaitingReply
        sink.checkpointRequested()
        return true
    }

    mutating func stepSend<Sink: MigrationSink>(
        _ window: inout StreamWindow, into sink: inout Sink
    ) throws(MigrationStreamError.Reason) -> Bool {
        guard try peekMessage(.vmstateSend, in: window) else { return false }
        window.advance(4)
        hasRamEnded = false
        isAcknowledgedAhead = false
        item = .section
        state = .checkpointRam
        sink.epochBoundary()
        return true
    }

    mutating func stepSize(_ window: inout StreamWindow) throws(MigrationStreamError.Reason) -> Bool {
        guard try peekMessage(.vmstateSize, in: window), let size = window.peek(UInt64.self, at: 4) else {
            return false
        }
        guard size <= UInt64(limits.maxDeviceStateBytes) else {
            throw .deviceStateTooLarge(bytes: size, limit: limits.maxDeviceStateBytes)
        }
        guard size > 0 else { throw .malformedDeviceState("it is empty") }
        window.advance(12)
        deviceState = []
        // Grows with what comes, not with what was announced.
        deviceState.reserveCapacity(min(Int(size), 64 << 10))
        deviceStateLeft = Int(size)
        state = .checkpointDevices
        return true
    }

    mutating func stepCheckpointDevices<Sink: MigrationSink>(
        _ window: inout StreamWindow, into sink: inout Sink
    ) throws(MigrationStreamError.Reason) -> Bool {
        let taken = min(deviceStateLeft, window.remaining)
        guard let piece = window.peek(bytes: taken) else { return false }
        deviceState.append(contentsOf: piece)
        deviceStateLeft -= taken
        if deviceStateLeft == 0 { try checkDeviceState() }
        window.advance(taken)
        guard deviceStateLeft == 0 else { return true }
        let complete = deviceState
        deviceState = []
        state = isAcknowledgedAhead ? .running : .awaitingReceived
        sink.checkpointComplete(deviceState: complete)
        return true
    }

    /// The first section's type, the last section's footer and the end mark must be in their places.
    private func checkDeviceState() throws(MigrationStreamError.Reason) {
        let count = deviceState.count
        guard deviceState.first == MigrationWire.sectionFull else {
            throw .malformedDeviceState("it does not begin with a device section (0x04)")
        }
        guard count > 6, deviceState[count - 1] == MigrationWire.endOfFile,
            deviceState[count - 6] == MigrationWire.footer
        else {
            throw .malformedDeviceState("it does not end with a footer (0x7e) and the end mark (0x00)")
        }
    }
}
