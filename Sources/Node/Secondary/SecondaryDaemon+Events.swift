/// What happens to the replicas, told as it happens.
extension SecondaryDaemon {
    /// How often states are looked at that change with nothing but time.
    private static let stateInterval = Duration.milliseconds(250)

    /// Notices that a primary has fallen silent, until the task is cancelled.
    func watchStates() async {
        while !Task.isCancelled {
            for replica in allReplicas() { await replica.noteState() }
            try? await Task.sleep(for: Self.stateInterval)
        }
    }

    /// Tells a verb of everything that happens, for as long as it stays. The answer holds what is the case now.
    func follow(_ request: ControlRequest, _ connection: ControlConnection?) async throws -> ControlReply {
        guard let connection else { return ControlReply(error: "events need a daemon: start 'colo-blk serve'") }
        let guest = request.guest
        if guest != nil { _ = try known(guest) }
        let (stream, end) = events.subscribe()
        guard connection.whenItLeaves({ end() }) else {
            end()
            return ControlReply(error: "the verb has left")
        }
        Task {
            for await event in stream where guest == nil || event.guest == guest {
                var reply = ControlReply()
                reply.event = event
                connection.tell(reply)
            }
        }
        return ControlReply(statuses: try await statuses(guest: guest))
    }
}
