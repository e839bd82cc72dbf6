import FoundationEssentials
import Testing

/// docs/doctor.md against the code.
@Suite struct DoctorDocumentTests {
    private func read(_ path: String) throws -> String {
        let root = #filePath.split(separator: "/", omittingEmptySubsequences: false).dropLast(4)
        return try String(contentsOfFile: root.joined(separator: "/") + "/" + path, encoding: .utf8)
    }

    @Test func everyCodeIsExplainedAndNothingElseIs() throws {
        let sources = [
            "Doctor/Doctor.swift", "Identity/FailoverBuilder.swift", "Identity/FailoverBuilder+Disks.swift",
            "Identity/FailoverBuilder+Backends.swift", "Identity/FailoverBuilder+Media.swift",
            "Identity/FailoverCommand.swift",
        ]
        var codes: Set<String> = []
        for source in sources {
            let text = try read("Sources/QEMU/\(source)")
            for match in text.matches(of: /\.(?:ok|note|warning|blocker),\s*"([a-z0-9-]+)"/) {
                codes.insert(String(match.1))
            }
        }
        codes.formUnion(["tcg-dirty-loss", "vhost", "network-queues"])
        var documented: Set<String> = []
        for match in try read("docs/doctor.md").matches(of: /(?m)^\| `([a-z0-9-]+)` \|/) {
            documented.insert(String(match.1))
        }
        documented.subtract(["ok", "note", "warning", "blocker"])
        #expect(codes.count > 25)
        #expect(codes == documented, "\(codes.symmetricDifference(documented).sorted())")
    }
}
