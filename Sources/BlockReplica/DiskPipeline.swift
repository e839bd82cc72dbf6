import Units

/// Something was asked of a disk that its stage or its epochs do not allow.
public enum PipelineError: Error, Equatable, Sendable, CustomStringConvertible {
    /// The store has traces of an earlier session that must be rolled back first.
    case notRecovered
    /// The disk takes writes only while replication runs.
    case notRunning(DiskPipeline.Stage)
    /// An earlier failure left the disk and its hidden disks in need of recovery.
    case failed
    /// Epochs must rise.
    case epochNotNewer(Epoch, newest: Epoch)
    /// The epoch was never begun, or has been committed.
    case unknownEpoch(Epoch)
    /// The epoch is sealed: nothing can be added to it.
    case alreadySealed(Epoch)
    /// Epochs are sealed and committed in order.
    case outOfOrder(Epoch, first: Epoch)
    /// Only what is sealed can be committed.
    case notSealed(Epoch)

    public var description: String {
        switch self {
        case .notRecovered: "the disk has not been recovered since it was opened; recover it to a committed epoch first"
        case .notRunning(let stage): "replication of this disk is not running (stage: \(stage.rawValue))"
        case .failed: "an earlier error left this disk in need of recovery; recover it to the last committed epoch"
        case .epochNotNewer(let epoch, let newest): "epoch \(epoch) cannot begin behind epoch \(newest)"
        case .unknownEpoch(let epoch): "epoch \(epoch) is not in progress on this disk"
        case .alreadySealed(let epoch): "epoch \(epoch) is sealed and takes no more writes"
        case .outOfOrder(let epoch, let first): "epoch \(epoch) must wait for epoch \(first)"
        case .notSealed(let epoch): "epoch \(epoch) is not sealed and cannot be committed"
        }
    }
}

/// The stages of one replicated disk and the life of its epochs: what may happen next. It does no I/O.
///
/// Stages, in QEMU's words, with their legal successors:
/// - `none`: opened, not recovered → `running`
/// - `running`: takes writes → `failover`, `none`
/// - `failover`: a guest is about to run on this disk; no more writes → `done`, `failoverFailed`
/// - `failoverFailed`: that guest did not start → `failover`, `none`
/// - `done`: a guest runs on this disk → (none)
public struct DiskPipeline: Equatable, Sendable {
    public enum Stage: String, Sendable {
        case none = "none"
        case running = "running"
        case failover = "failover"
        case failoverFailed = "failover failed"
        case done = "done"
    }

    /// An epoch between its beginning and its commit.
    public struct OpenEpoch: Equatable, Sendable {
        public let epoch: Epoch
        /// Whether overwritten blocks are kept in a hidden disk.
        public let preserve: Bool
        public internal(set) var isSealed: Bool
    }

    public private(set) var stage: Stage = .none
    /// Whether an error has put the files out of step with this value.
    public private(set) var hasFailed = false
    /// Begun and not committed, rising.
    public private(set) var epochs: [OpenEpoch] = []
    /// The newest epoch that was begun, committed or recovered.
    public private(set) var newest = Epoch.none

    public init() {}

    /// The disk shows exactly this checkpoint and nothing newer.
    public mutating func recovered(to committed: Epoch) throws(PipelineError) {
        guard stage != .done, stage != .failover else { throw .notRunning(stage) }
        stage = .running
        hasFailed = false
        epochs = []
        newest = committed
    }

    /// `preserve` false is for the very first epoch, before which there is nothing to come back to. An epoch that begins
    /// while another waits for its commit preserves in any case: that other one may become the checkpoint.
    public mutating func begin(_ epoch: Epoch, preserve: Bool) throws(PipelineError) {
        try checkRunning()
        guard epoch > newest else { throw .epochNotNewer(epoch, newest: newest) }
        epochs.append(OpenEpoch(epoch: epoch, preserve: preserve || !epochs.isEmpty, isSealed: false))
        newest = epoch
    }

    /// Whether a write of this epoch may be taken now.
    public func checkWrite(_ epoch: Epoch) throws(PipelineError) {
        try checkRunning()
        guard let found = epochs.first(where: { $0.epoch == epoch }) else { throw .unknownEpoch(epoch) }
        guard !found.isSealed else { throw .alreadySealed(epoch) }
    }

    /// The only epoch whose writes may reach the disk now: the oldest that is not sealed.
    public var drainable: OpenEpoch? { epochs.first { !$0.isSealed } }

    /// Whether this epoch's last writes may be drained now.
    public func checkSeal(_ epoch: Epoch) throws(PipelineError) {
        try checkWrite(epoch)
        if let first = drainable, first.epoch != epoch { throw .outOfOrder(epoch, first: first.epoch) }
    }

    /// All of the epoch has reached the disk.
    public mutating func seal(_ epoch: Epoch) throws(PipelineError) {
        try checkSeal(epoch)
        for index in epochs.indices where epochs[index].epoch == epoch { epochs[index].isSealed = true }
    }

    /// The epoch is committed: the hidden disks of it and of all before it are of no more use. An error while draining a
    /// later epoch does not stand in the way.
    public mutating func commit(_ epoch: Epoch) throws(PipelineError) {
        if stage == .none { throw .notRecovered }
        guard stage == .running else { throw .notRunning(stage) }
        if let open = epochs.first(where: { $0.epoch <= epoch && !$0.isSealed }) { throw .notSealed(open.epoch) }
        epochs.removeAll { $0.epoch <= epoch }
    }

    /// An error while draining: nothing more may reach the disk until it has been recovered.
    public mutating func fail() { hasFailed = true }

    /// A guest is to run on this disk: writes are over.
    public mutating func beginFailover() throws(PipelineError) {
        guard stage == .running || stage == .failoverFailed else { throw .notRunning(stage) }
        stage = .failover
    }

    /// The guest runs, or it did not start.
    public mutating func endFailover(succeeded: Bool) throws(PipelineError) {
        guard stage == .failover else { throw .notRunning(stage) }
        stage = succeeded ? .done : .failoverFailed
    }

    private func checkRunning() throws(PipelineError) {
        if stage == .none { throw .notRecovered }
        guard stage == .running else { throw .notRunning(stage) }
        guard !hasFailed else { throw .failed }
    }
}
