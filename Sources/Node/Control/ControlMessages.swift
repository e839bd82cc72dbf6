import QEMU

/// What a verb asks of the daemon. One JSON object a line over the control socket of the store; one line comes back.
public struct ControlRequest: Codable, Sendable {
    public enum Verb: String, Codable, Sendable {
        case status, failover, detach, remove, ramInfo, ramVerify, export, verify, follow
        /// For a disk by itself; see ``DiskService``.
        case diskStatus, diskCheckpoint, diskRollback
    }

    public var verb: Verb
    /// Absent: every guest, where that makes sense.
    public var guest: String?
    public var failover: FailoverOptions?
    public var export: ExportOptions?
    public var ramVerify: RamVerifyOptions?
    public var verify: VerifyOptions?

    public init(
        verb: Verb, guest: String? = nil, failover: FailoverOptions? = nil, ramVerify: RamVerifyOptions? = nil,
        export: ExportOptions? = nil
    ) {
        self.export = export
        self.verb = verb
        self.guest = guest
        self.failover = failover
        self.ramVerify = ramVerify
    }
}

public struct ControlReply: Codable, Sendable {
    /// Why it was refused, with the remedy; nil when it was done.
    public var error: String?
    public var statuses: [GuestStatus]?
    public var export: ExportReport?
    public var failover: FailoverReport?
    public var ramInfo: RamInfo?
    public var ramVerify: RamVerifyReport?
    public var verify: VerifyReport?
    /// Told again and again while something goes on.
    public var progress: VerifyProgress?
    public var event: GuestEvent?
    public var disk: DiskStatus?
    public var diskChange: DiskChange?

    public init(
        error: String? = nil, statuses: [GuestStatus]? = nil, failover: FailoverReport? = nil, disk: DiskStatus? = nil,
        diskChange: DiskChange? = nil
    ) {
        self.error = error
        self.statuses = statuses
        self.failover = failover
        self.disk = disk
        self.diskChange = diskChange
    }
}

public struct FailoverOptions: Codable, Sendable {
    /// Print what would be run, change nothing.
    public var dryRun: Bool
    /// Leave the guest paused; `cont` over its QMP socket starts it.
    public var paused: Bool
    /// Go on although the primary still answers.
    public var force: Bool
    /// Send all RAM in the restore stream rather than map it: for a QEMU that cannot map files.
    public var fullStream: Bool
    /// The QEMU to start instead of the one that the primary ran.
    public var qemu: String?
    public var extraArguments: [String]
    /// Must say with exit code 0 that the primary is off before anything is changed; see ``HookCommand``.
    public var fenceCommand: String?

    public init(
        dryRun: Bool = false, paused: Bool = false, force: Bool = false, fullStream: Bool = false,
        qemu: String? = nil, extraArguments: [String] = [], fenceCommand: String? = nil
    ) {
        self.fenceCommand = fenceCommand
        self.dryRun = dryRun
        self.paused = paused
        self.force = force
        self.fullStream = fullStream
        self.qemu = qemu
        self.extraArguments = extraArguments
    }
}

public struct FailoverReport: Codable, Sendable {
    public var guest: String
    public var epoch: UInt64
    public var generation: UInt64
    public var arguments: [String]
    /// Things that could not be carried over, in words.
    public var findings: [String]
    /// Absent in a dry run.
    public var pid: Int32?
    public var qmpSocket: String?
    /// Milliseconds from the decision (the request is read) until QEMU reported that the guest runs.
    public var millisecondsToRunning: Double?

    public init(
        guest: String, epoch: UInt64, generation: UInt64, arguments: [String], findings: [String], pid: Int32? = nil,
        qmpSocket: String? = nil, millisecondsToRunning: Double? = nil
    ) {
        self.guest = guest
        self.epoch = epoch
        self.generation = generation
        self.arguments = arguments
        self.findings = findings
        self.pid = pid
        self.qmpSocket = qmpSocket
        self.millisecondsToRunning = millisecondsToRunning
    }
}

extension FailoverReport {
    /// The command as one line for a shell.
    public var commandLine: String { FailoverCommand.text(arguments) }
}

/// What `colo-blk status` tells of one guest.
public struct GuestStatus: Codable, Sendable {
    public enum State: String, Codable, Sendable {
        /// A primary is connected and the first checkpoint is on its way.
        case syncing
        /// A primary is connected and checkpoints are being committed.
        case protected
        /// A primary is connected, and the guest does not run: no checkpoint comes until it does. The message says why.
        case halted = "guest halted"
        /// A primary was connected and is silent, or has gone without a farewell; the message says which.
        case primaryLost = "primary lost"
        /// No primary is connected: the guest, or its QEMU, was ended on purpose, as the message says.
        case shutOff = "shut off"
        /// No primary is connected.
        case idle
        /// The replica has become the guest.
        case failedOver = "failed over"
        /// The replica was to become the guest, which did not start; the message says why. It may be tried again.
        case failoverFailed = "failover failed"
        /// The replica cannot be started; the message says why.
        case damaged
    }

    public struct Disk: Codable, Sendable {
        public var id: String
        public var bytes: UInt64
        /// `good`, or why the disk takes no more writes.
        public var health = "good"
    }

    /// How long the guest stood still for its checkpoints, since the daemon started.
    public struct Pauses: Codable, Sendable {
        public var count: UInt64
        public var p50Milliseconds: Double
        public var p90Milliseconds: Double
        public var p99Milliseconds: Double
        public var maxMilliseconds: Double
    }

    public struct Proof: Codable, Sendable {
        public enum Verdict: String, Codable, Sendable { case proven, failed, notYet = "not yet" }
        public var verdict: Verdict
        /// The checkpoint that was tried.
        public var epoch: UInt64?
        /// Why it failed, with QEMU's own words.
        public var message: String?
        public var milliseconds: Double?
    }

    /// The guest's packets, as its primary said last.
    public struct Network: Codable, Sendable {
        /// Whether everything that was ever let out belongs to a committed checkpoint.
        public var isHeld: Bool
        /// Packets that wait for their checkpoint.
        public var packets: UInt64
        /// Packets for which there was no room.
        public var dropped: UInt64
        /// How long the last packets had been held.
        public var p50Milliseconds: Double
        public var p95Milliseconds: Double
        public var maxMilliseconds: Double
    }

    public var guest: String
    public var state: State
    /// More about the state, in words; with a remedy where there is one.
    public var message: String?
    public var generation: UInt64
    /// Absent: nothing has been committed yet.
    public var committedEpoch: UInt64?
    /// Wall-clock milliseconds since 1970 of the last commit.
    public var committedAtMilliseconds: UInt64?
    /// Seconds since the last commit.
    public var commitAgeSeconds: Double?
    /// Seconds since the primary was last heard.
    public var silentSeconds: Double?
    public var durability: String
    /// A checkpoint that is served over NBD.
    public struct Export: Codable, Sendable {
        public var epoch: UInt64
        public var writable: Bool
        /// NBD URIs, one for each disk.
        public var uris: [String]
        public var clients: Int
        /// Bytes set aside for it: blocks that have changed since, and what its clients wrote.
        public var heldBytes: UInt64
    }

    public var disks: [Disk]
    /// `good`, or why the RAM of the checkpoint cannot be had.
    public var ramHealth: String?
    /// Something that an operator must read.
    public var warning: String?
    /// Whether the last checkpoint is far older than the interval; absent without a primary.
    public var isLate: Bool?
    /// The time between checkpoints that the primary was told to keep.
    public var intervalMilliseconds: Double?
    /// Bytes that the primary has sent, or that wait there, and that have not been taken in.
    public var lagBytes: UInt64?
    /// From the end of a pause to the word that its checkpoint is committed.
    public var lagMilliseconds: Double?
    /// Pages that the guest changes in a second, over the last checkpoints.
    public var dirtyPagesPerSecond: Double?
    public var pauses: Pauses?
    /// The share of its time that the guest stood still in the last checkpoints.
    public var pausedShare: Double?
    /// Absent: its packets are not held.
    public var network: Network?
    /// Absent: none.
    public var exports: [Export]?
    public var ramBytes: UInt64
    public var proof: Proof
    /// Checkpoints committed since the daemon started.
    public var commits: UInt64
    /// Of the last commit, from the seal's arrival to the record: milliseconds.
    public var lastCommitMilliseconds: Double?
    /// After a failover: the guest's process and its QMP socket.
    public var pid: Int32?
    public var qmpSocket: String?

    /// A guest whose folder cannot be opened.
    static func unopened(_ name: String, reason: String) -> GuestStatus {
        GuestStatus(
            guest: name, state: .damaged, message: reason, generation: 0, durability: "-", disks: [], ramBytes: 0,
            proof: Proof(verdict: .notYet), commits: 0)
    }
}
