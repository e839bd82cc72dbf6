import Checkpointer
import Link
import Units

/// What this replica tells of itself.
extension GuestReplica {
    /// Tells when the state is another one than the last that was told.
    func noteState() {
        let status = status()
        guard status.state != notedState else { return }
        let before = notedState
        notedState = status.state
        tell(.state, status.message, before: before)
    }

    func tell(_ kind: GuestEvent.Kind, _ message: String?, before: GuestStatus.State? = nil) {
        events.emit(
            GuestEvent(
                number: 0, milliseconds: MonotonicClock.wallMilliseconds(), guest: name, kind: kind, state: state(),
                before: before, committedEpoch: store.record?.epoch.rawValue, generation: store.generation.rawValue,
                message: message))
    }

    // MARK: Figures of the primary

    /// Remembers what the primary says of the guest's pauses and of its own queues.
    func keep(_ figures: PrimaryFigures) {
        primary = figures
        if figures.pauseNanoseconds > 0 { pauses.record(figures.pauseNanoseconds) }
    }

    /// Remembers whether the guest runs.
    func keep(_ guest: GuestState) {
        haltWords = guest.code == .halted ? guest.message : nil
        noteState()
    }

    func shutOffMessage(_ words: String) -> String {
        "\(words); the last checkpoint is of before that, and nothing starts it by itself"
    }

    /// Fills in what is known of the primary, and how the replica's parts are.
    func addHealth(to status: inout GuestStatus) {
        status.dirtyPagesPerSecond = history.pagesPerSecond
        if let primary, session != nil {
            status.intervalMilliseconds = Double(primary.intervalNanoseconds) / 1e6
            status.lagBytes = primary.outstandingBytes
            status.lagMilliseconds = Double(primary.lagNanoseconds) / 1e6
            status.pausedShare = Double(primary.pausedMillionths) / 1e6
            if primary.network > 0 {
                status.network = GuestStatus.Network(
                    isHeld: primary.network > 1, packets: primary.heldPackets, dropped: primary.droppedPackets,
                    p50Milliseconds: Double(primary.holdMedianNanoseconds) / 1e6,
                    p95Milliseconds: Double(primary.holdP95Nanoseconds) / 1e6,
                    maxMilliseconds: Double(primary.holdLongestNanoseconds) / 1e6)
            }
        }
        if let median = pauses.percentile(0.5) {
            func milliseconds(_ value: UInt64?) -> Double { Double(value ?? 0) / 1e6 }
            status.pauses = GuestStatus.Pauses(
                count: pauses.count, p50Milliseconds: milliseconds(median),
                p90Milliseconds: milliseconds(pauses.percentile(0.9)),
                p99Milliseconds: milliseconds(pauses.percentile(0.99)),
                maxMilliseconds: milliseconds(pauses.maximum))
        }
        for (index, health) in store.diskHealth.enumerated() where status.disks.indices.contains(index) {
            status.disks[index].health = health
        }
        status.ramHealth = store.ramHealth
        status.isLate = isLate(status)
        if status.isLate == true, let age = status.commitAgeSeconds {
            let times =
                status.intervalMilliseconds.map { " (\(Fixed.text(age * 1000 / max($0, 1), 0)) intervals)" } ?? ""
            status.warning =
                "the last checkpoint is \(Fixed.text(age, 1)) s old\(times): a failover now would lose "
                + "that much. Look at the link, at this host's disks, and at the primary's attach"
        }
    }

    /// Tells when checkpoints have come to lag, and when they no longer do.
    func noteLateness() {
        let status = status()
        let isLate = status.isLate == true
        guard isLate != notedLate else { return }
        notedLate = isLate
        let age = Fixed.text(status.commitAgeSeconds ?? 0, 1)
        let waiting = ByteText.text(status.lagBytes ?? 0)
        tell(
            .lag,
            isLate
                ? "checkpoints lag: the last one is \(age) s old, with it \(waiting) were on their way"
                : "checkpoints no longer lag: the last one is \(age) s old")
    }

    /// A checkpoint that is far older than it should be, while a primary says that it protects the guest.
    private func isLate(_ status: GuestStatus) -> Bool? {
        guard session != nil, haltWords == nil, let age = status.commitAgeSeconds else { return nil }
        let interval = (status.intervalMilliseconds ?? 200) / 1000
        return age > max(10 * interval, 2)
    }
}
