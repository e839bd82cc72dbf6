/// Comparisons of a replica with its running guest.
extension SecondaryDaemon {
    /// Compares for as long as the verb stays, and tells it how far that is.
    func verify(_ request: ControlRequest, _ connection: ControlConnection?) async throws -> ControlReply {
        guard let options = request.verify else { return ControlReply(error: "a comparison without its options") }
        let replica = try known(request.guest)
        guard let connection else {
            var reply = ControlReply()
            reply.verify = try await replica.verify(options) { _ in }
            return reply
        }
        guard connection.whenItLeaves({ await replica.stopVerification() }) else {
            return ControlReply(error: "the verb has left")
        }
        // The report is told later: meanwhile it must be seen when the verb leaves.
        Task {
            var last = ControlReply()
            do {
                last.verify = try await replica.verify(options) { progress in
                    var reply = ControlReply()
                    reply.progress = progress
                    connection.tell(reply)
                }
            } catch {
                last.error = "\(error)"
            }
            connection.tell(last)
        }
        var begun = ControlReply()
        begun.progress = VerifyProgress(doneBytes: 0, totalBytes: 0, differences: 0)
        return begun
    }
}
