import Units

/// A frame, or an event of our own, that is not legal now. The session ends with it.
public struct ProtocolViolation: Error, Equatable, Sendable, CustomStringConvertible {
    /// Who broke the order.
    public enum Culprit: Sendable, Equatable {
        /// The other side sent something wrong.
        case peer
        /// This side was about to.
        case ourselves
    }

    public let culprit: Culprit
    /// What came.
    public let came: SessionFrame
    /// What would have been legal, or what is wrong with what came.
    public let expected: String
    /// The epoch that the frame carried.
    public let epoch: Epoch
    /// Where the frame starts in the stream of the peer, in bytes; 0 for our own.
    public let streamOffset: UInt64

    public init(culprit: Culprit, came: SessionFrame, expected: String, epoch: Epoch, streamOffset: UInt64) {
        self.culprit = culprit
        self.came = came
        self.expected = expected
        self.epoch = epoch
        self.streamOffset = streamOffset
    }

    public var description: String {
        switch culprit {
        case .peer:
            "link: \(came)(\(epoch)) at byte \(streamOffset) of the peer's stream is out of order: \(expected);"
                + " the session ends, attach again"
        case .ourselves:
            "link: \(came)(\(epoch)) must not be sent now: \(expected); the session ends, attach again"
        }
    }
}
