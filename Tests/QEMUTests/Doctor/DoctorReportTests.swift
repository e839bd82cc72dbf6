import QEMU
import Testing

@Suite struct DoctorReportTests {
    private func examine(
        _ sample: GuestSample = .plain, overrides: DoctorReport.Overrides = .init(), oob: Bool = true,
        _ change: (inout GuestAnswers) -> Void = { _ in }
    ) -> DoctorReport {
        var answers = sample.answers
        change(&answers)
        return DoctorReport.examine(answers, arguments: sample.arguments, outOfBand: oob, overrides: overrides)
    }

    private func severity(_ report: DoctorReport, _ code: String) -> Finding.Severity? {
        report.finding(code)?.severity
    }

    private static func version(_ major: Int64, _ minor: Int64, _ micro: Int64) -> JSONValue {
        ["qemu": ["major": .integer(major), "minor": .integer(minor), "micro": .integer(micro)], "package": ""]
    }

    @Test func aHealthyGuestHasNoBlockersAndIsStartable() {
        let report = examine()
        #expect(!report.hasBlockers, "\(report.findings)")
        for code in ["running", "x-colo", "version", "accelerator", "disks", "startable", "out-of-band"] {
            #expect(severity(report, code) == .ok, "\(code)")
        }
        #expect(report.findings == report.findings.sorted { $0.severity > $1.severity })
    }

    @Test func everythingThatIsNotOkSaysWhatToDo() {
        let report = examine(.libvirt, oob: false) {
            $0.answers["query-status"] = ["running": false, "status": "paused"]
            $0.answers["query-migrate"] = ["status": "active", "blocked-reasons": ["the 9p device is mounted"]]
            $0.answers["query-migrate-capabilities"] = []
            $0.answers["query-kvm"] = ["enabled": false]
            $0.answers["query-block-jobs"] = [["device": "backup0", "type": "backup"]]
            $0.answers["query-memory-devices"] = [["type": "dimm"]]
            $0.answers["query-iothreads"] = [["id": "io1"]]
            $0.peripherals = [.init(name: "nic1", type: "e1000", hotplugged: true)]
            $0.machineProperties["suppress-vmdesc"] = true
        }
        for code in [
            "running", "migration-running", "migration-blocked", "x-colo", "tcg-dirty-loss", "block-job",
            "memory-device", "hotplugged-device", "inherited-descriptor",
        ] {
            #expect(severity(report, code) == .blocker, "\(code)")
        }
        for code in ["tcg-deadlock", "suppress-vmdesc", "out-of-band"] {
            #expect(severity(report, code) == .warning, "\(code)")
        }
        #expect(severity(report, "iothreads") == .note && severity(report, "vhost") == .note)
        #expect(report.findings.allSatisfy { $0.severity < .warning || $0.remedy != nil })
        #expect(report.finding("startable") == nil)
        #expect(report.findings.filter { $0.code == "hotplugged-device" }.count == 1)
    }

    @Test func tcgLosesDirtyPagesOnlyWhenOldAndAligned() {
        let tcg: (inout GuestAnswers) -> Void = { $0.answers["query-kvm"] = ["enabled": false] }
        #expect(severity(examine(change(tcg) { _ in }), "tcg-dirty-loss") == .blocker)
        let odd = examine(change(tcg) { $0.answers["query-memory-size-summary"] = ["base-memory": 268_443_648] })
        #expect(severity(odd, "tcg-dirty-loss") == .ok)
        let new = examine(change(tcg) { $0.answers["query-version"] = Self.version(9, 0, 0) })
        #expect(severity(new, "tcg-dirty-loss") == .ok)
        let accepted = examine(change(tcg) { _ in }, overrides: .init(tcgDirtyLoss: true))
        #expect(severity(accepted, "tcg-dirty-loss") == .warning && !accepted.hasBlockers)
        #expect(examine().finding("tcg-dirty-loss") == nil)
    }

    private func change(
        _ changes: ((inout GuestAnswers) -> Void)...
    ) -> GuestSample {
        var sample = GuestSample.plain
        for change in changes { change(&sample.answers) }
        return sample
    }

    @Test(
        arguments: [
            (7, 2, 22, false), (9, 2, 0, false), (10, 0, 0, true), (10, 0, 2, true), (10, 0, 12, true),
            (10, 0, 13, false), (10, 1, 0, true), (10, 1, 9, true), (10, 2, 0, false), (11, 0, 0, false),
        ] as [(Int64, Int64, Int64, Bool)])
    func versionsThatCannotEnterColoAreWarnedOf(major: Int64, minor: Int64, micro: Int64, bad: Bool) {
        let report = examine { $0.answers["query-version"] = Self.version(major, minor, micro) }
        #expect((severity(report, "colo-entry") == .warning) == bad)
        #expect(!report.hasBlockers)
    }

    @Test func ourRemainsAreANoteAndOurJobsNoBlocker() {
        let report = examine {
            $0.answers["query-block-jobs"] = [["device": "colo-blk-mirror-0", "type": "mirror"]]
            $0.answers["query-named-block-nodes"] = [["node-name": "colo-blk-nbd-0"]]
            $0.answers["query-migrate"] = ["status": "colo"]
        }
        #expect(severity(report, "remains") == .note && !report.hasBlockers)
        #expect(examine().finding("remains") == nil)
    }

    @Test func aGuestWithoutDisksAndADiskWithoutDeviceAreNotes() {
        #expect(severity(examine { $0.answers["query-block"] = [] }, "no-disks") == .note)
        let loose = examine {
            var disk = GuestSample.disk("hd1", node: "#2", qdev: "x", file: "/img/d1.raw").objectValue ?? [:]
            disk["qdev"] = nil
            $0.answers["query-block"] = [.object(disk)]
        }
        #expect(severity(loose, "disk-without-device") == .note)
    }

    @Test func anUnknownCommandLineIsABlockerAndAStrangeProcessAWarning() {
        let unknown = DoctorReport.examine(
            GuestSample.plain.answers, arguments: nil, argumentsProblem: "permission denied")
        #expect(unknown.finding("command-line")?.text.contains("permission denied") == true && unknown.hasBlockers)
        let strange = DoctorReport.examine(GuestSample.plain.answers, arguments: ["/usr/sbin/libvirtd", "--daemon"])
        #expect(severity(strange, "not-qemu") == .warning)
    }

    @Test func aQEMUThatAnswersNothingIsRefusedAndNothingTraps() {
        let report = DoctorReport.examine(GuestAnswers(), arguments: ["qemu-system-x86_64"])
        #expect(report.hasBlockers && severity(report, "version") == .blocker)
    }

    @Test func theReportIsJson() throws {
        let report = examine()
        #expect(try JSONValue(encoding: report).decoded(as: DoctorReport.self) == report)
    }
}
