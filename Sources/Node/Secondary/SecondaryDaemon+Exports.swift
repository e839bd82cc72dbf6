import NIOCore

/// Checkpoints served over NBD for as long as somebody wants them.
extension SecondaryDaemon {
    /// Opens an export that ends when the verb leaves; the verb is told when it ends before.
    func export(_ request: ControlRequest, _ connection: ControlConnection) async throws -> ControlReply {
        guard let options = request.export else { return ControlReply(error: "an export without its options") }
        let replica = try known(request.guest)
        let (number, report) = try await replica.export(options) { reason in
            connection.tell(ControlReply(error: reason))
        }
        guard connection.whenItLeaves({ await replica.endExport(number) }) else {
            await replica.endExport(number)
            return ControlReply(error: "the verb has left")
        }
        var reply = ControlReply()
        reply.export = report
        return reply
    }
}
