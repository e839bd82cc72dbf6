import Logging
import QEMU

/// How our mirror jobs end without harm to the guest.
///
/// QEMU (7.2.22; both seen, with cores and block graphs) has two faults that a careless end of a mirror meets:
///
/// - A job that is cancelled by force, or ended by an error of its target, frees its bitmap of requests under way before
///   it waits for them. A write of the guest that is under way then clears a bit in freed memory, and QEMU dies of a
///   corrupted heap, soon or later.
/// - A job that ends while QEMU flushes its disks one after the other, which it does whenever it stops the guest, exchanges
///   the node below the guest's device in the middle of that. QEMU then gives up a reference of the disk's node where it
///   had taken one of the job's filter: the filter stays for ever, and in the end the disk is freed under its guest.
///
/// So a mirror whose server answers is asked to finish, which has it wait for the guest's writes; all others are cancelled
/// while the guest is stopped, which leaves no write under way. Mirrors are started so that an error of their target
/// pauses them instead of ending them. And COLO, whose end has QEMU stop the guest, is left when the jobs are gone.
/// A connection that ends may do so in the middle of a flush; a command of the monitor never runs there. So connections
/// are cut only where nothing else helps.
extension GuestRestoration {
    /// Frees QEMU if its main loop waits for our NBD server.
    func unhang(_ nbdNodes: Set<String>) async {
        do {
            _ = try await qmp.execute("query-block-jobs", nil, timeout: .milliseconds(100))
        } catch {
            log.debug("the monitor does not answer", metadata: ["error": "\(error)"])
            await yank(nbdNodes)
        }
    }

    /// Ends our jobs. Returns whether the guest was stopped for it, and is stopped still.
    func endJobs(_ nbdNodes: Set<String>, answered: Bool, _ report: inout Report) async -> Bool {
        if answered {
            if await cancelJobs(force: false, until: clock.now + .milliseconds(150), &report) { return false }
        } else if await ourJobs(&report)?.isEmpty == true {
            return false
        }
        let hasStopped = await stop(nbdNodes, answered: answered, &report)
        if await cancelJobs(force: true, until: clock.now + .milliseconds(200), &report) { return hasStopped }
        await yank(nbdNodes)
        _ = await cancelJobs(force: true, until: clock.now + .milliseconds(100), &report)
        return hasStopped
    }

    /// Stops a guest that runs; false when it did not. QEMU waits for the guest's requests then: those that a server
    /// has which hangs must fail first.
    private func stop(_ nbdNodes: Set<String>, answered: Bool, _ report: inout Report) async -> Bool {
        guard await attempt("query-status", nil, &report)?["running"]?.boolValue == true else { return false }
        do {
            try await qmp.execute("stop", timeout: answered ? stepTimeout : .milliseconds(150))
        } catch {
            report.problems.append("\(error)")
            log.warning("restoration step failed", metadata: ["error": "\(error)"])
            if case .closed = error { report.guestGone = true }
            if case .timedOut = error, !answered { await yank(nbdNodes) }
        }
        return true
    }

    /// Cancels our jobs and waits for their end. Returns whether none is left.
    ///
    /// - Parameter force: whether they end at once. Otherwise those that are not ready are left alone, since QEMU takes
    ///   every cancellation of them for one by force.
    func cancelJobs(force: Bool, until deadline: ContinuousClock.Instant, _ report: inout Report) async -> Bool {
        var cancelled: Set<String> = []
        while true {
            guard let jobs = await ourJobs(&report) else { return false }
            guard !jobs.isEmpty else { return true }
            guard clock.now < deadline else { return false }
            if !force, jobs.contains(where: { !$0.isReady }) { return false }
            for job in jobs where cancelled.insert(job.name).inserted {
                let arguments: JSONValue = ["device": .string(job.name), "force": .bool(force)]
                if await attempt("block-job-cancel", arguments, &report) != nil { report.removed += 1 }
            }
            try? await clock.sleep(for: .milliseconds(2))
        }
    }

    /// Nil: QEMU does not say.
    private func ourJobs(_ report: inout Report) async -> [(name: String, isReady: Bool)]? {
        await attempt("query-block-jobs", nil, &report)?.arrayValue?.compactMap { job in
            guard let name = job["device"]?.stringValue, GuestNames.isOurs(name) else { return nil }
            return (name, job["ready"]?.boolValue ?? false)
        }
    }
}
