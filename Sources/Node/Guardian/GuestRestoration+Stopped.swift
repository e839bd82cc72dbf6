import QEMU

/// A guest that somebody else than we has stopped stays so: an operator may copy its disks, or look into it.
///
/// QEMU starts a guest when it leaves COLO, whatever it was before, so that such a guest runs for some milliseconds and is
/// stopped again. One that is off is no exception for us: QEMU itself leaves it alone.
extension GuestRestoration {
    /// Why the guest stands still; nil when it runs, or when a checkpoint or the end of a copy has stopped it. A guest
    /// that sleeps is woken: in COLO's way of starting it, it would never wake again.
    func foundStopped(_ report: inout Report) async -> String? {
        guard keepsStopped, let answer = await attempt("query-status", nil, &report),
            answer["running"]?.boolValue == false, let state = answer["status"]?.stringValue
        else { return nil }
        switch state {
        case "colo", "finish-migrate", "postmigrate", "inmigrate": return nil
        case "suspended":
            await attempt("system_wakeup", nil, &report)
            await waitUntilRunning(limit: .milliseconds(100), &report)
            return nil
        default: return state
        }
    }

    /// Stops the guest again that leaving COLO has started.
    func stopAgain(_ state: String, wasColo: Bool, _ report: inout Report) async {
        guard state != "shutdown" else { return }
        // QEMU starts it a moment after it has left COLO.
        guard await waitUntilRunning(limit: wasColo ? .milliseconds(100) : .zero, &report) else { return }
        await attempt("stop", nil, &report)
    }

    @discardableResult
    private func waitUntilRunning(limit: Duration, _ report: inout Report) async -> Bool {
        let deadline = clock.now + limit
        while true {
            if await attempt("query-status", nil, &report)?["running"]?.boolValue == true { return true }
            guard clock.now < deadline, !report.guestGone else { return false }
            try? await clock.sleep(for: .milliseconds(1))
        }
    }
}
