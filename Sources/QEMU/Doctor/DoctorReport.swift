/// What stands between a guest and its protection, as a pure function of QEMU's answers.
public struct DoctorReport: Sendable, Equatable, Codable {
    /// The worst first; findings of the same severity in the order of the examination.
    public var findings: [Finding]

    public init(findings: [Finding]) {
        self.findings = findings
    }

    /// An attach must be refused.
    public var hasBlockers: Bool { findings.contains { $0.severity == .blocker } }

    public func finding(_ code: String) -> Finding? { findings.first { $0.code == code } }

    /// What the user has said he accepts.
    public struct Overrides: Sendable, Equatable {
        /// `--force`: a replica under an old TCG may silently differ from its primary.
        public var tcgDirtyLoss: Bool
        /// `--hold-network`: ids of the networks where it is in the way when packets cannot be held.
        public var heldNetworks: Set<String>

        public init(tcgDirtyLoss: Bool = false, heldNetworks: Set<String> = []) {
            self.tcgDirtyLoss = tcgDirtyLoss
            self.heldNetworks = heldNetworks
        }
    }

    /// Examines a guest.
    /// - Parameters:
    ///   - arguments: the guest's command line, or nil when it could not be read, with the reason.
    public static func examine(
        _ answers: GuestAnswers, arguments: [String]?, argumentsProblem: String? = nil, outOfBand: Bool = true,
        overrides: Overrides = Overrides()
    ) -> DoctorReport {
        var doctor = Doctor(answers: answers, overrides: overrides)
        doctor.examineMonitor(outOfBand: outOfBand)
        doctor.examineState()
        doctor.examineVersion()
        doctor.examineAccelerator()
        doctor.examineDisks()
        doctor.examineMemory()
        doctor.examineRemains()
        doctor.examineStartability(arguments, problem: argumentsProblem)
        let ordered = Finding.Severity.allCases.reversed().flatMap { severity in
            doctor.findings.filter { $0.severity == severity }
        }
        return DoctorReport(findings: ordered)
    }
}
