import Checkpointer
import Units

/// What the agent tells about itself, for the progress line.
struct AgentFigures: Sendable {
    var committed = Epoch.none
    var uncommitted = 0
    /// Nanoseconds from our reply to QEMU, which stops the guest, to our last acknowledgement, which lets it run.
    var lastPauseNanoseconds: UInt64 = 0
    var lastDirtyPages = 0
    /// Bytes of the last sealed epoch on the link, all kinds of frames.
    var lastEpochBytes: UInt64 = 0
    /// Bytes sent or waiting that the secondary has not yet taken in.
    var outstandingBytes: UInt64 = 0
    var lastCommitLagNanoseconds: UInt64 = 0
    /// Pages of the first checkpoint that the secondary held already.
    var firstIdentical: UInt64 = 0
    /// The share of the guest's time that the last pauses took; nil before the second one.
    var pauseShare: Double?
    /// Nil when the network is not held.
    var network: NetworkFigures?
}

/// The guest's held packets, for people.
struct NetworkFigures: Sendable {
    var packets = 0
    var bytes: UInt64 = 0
    var dropped: UInt64 = 0
    /// How long the last packets were held; nil when none has left yet.
    var times: HoldTimes.Summary?
    /// Whether everything that was ever let out belongs to a committed epoch.
    var isInForce = false
}

extension AgentCore {
    /// With what is only counted when somebody asks.
    var currentFigures: AgentFigures {
        var current = figures
        current.pauseShare = policy.pauses.measured
        current.network = network?.figures
        return current
    }
}
