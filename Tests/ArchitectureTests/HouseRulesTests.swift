import Foundation
import Testing

private let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    .deletingLastPathComponent()

private func sources() throws -> [URL] {
    let files = try #require(
        FileManager.default.enumerator(at: root.appending(path: "Sources"), includingPropertiesForKeys: nil))
    return files.compactMap { $0 as? URL }.filter { $0.pathExtension == "swift" }
}

private func codeLines(of file: URL) throws -> [(number: Int, text: String)] {
    let text = try String(contentsOf: file, encoding: .utf8)
    return text.split(separator: "\n", omittingEmptySubsequences: false).enumerated().compactMap { index, line in
        let trimmed = line.drop { $0 == " " }
        return trimmed.hasPrefix("//") ? nil : (index + 1, String(line))
    }
}

@Suite("House rules")
struct HouseRulesTests {
    @Test("no forced try and no fatalError in sources")
    func nothingIsForced() throws {
        for file in try sources() {
            for line in try codeLines(of: file) {
                for word in ["try!", "fatalError("] {
                    #expect(!line.text.contains(word), "\(file.lastPathComponent):\(line.number) says \(word)")
                }
            }
        }
    }

    @Test("unchecked Sendable has its reason in a comment within the four lines above")
    func uncheckedSendableIsExplained() throws {
        for file in try sources() {
            let lines = try String(contentsOf: file, encoding: .utf8).split(
                separator: "\n", omittingEmptySubsequences: false)
            for (index, line) in lines.enumerated() where line.contains("@unchecked Sendable") {
                let above = lines[max(0, index - 4)..<index]
                let explained = above.contains { $0.drop { $0 == " " }.hasPrefix("//") }
                #expect(explained, "\(file.lastPathComponent):\(index + 1)")
            }
        }
    }

    @Test("no file is longer than 700 lines")
    func filesStayShort() throws {
        for file in try sources() {
            let count = try String(contentsOf: file, encoding: .utf8).split(
                separator: "\n", omittingEmptySubsequences: false
            ).count
            #expect(count <= 700, "\(file.lastPathComponent) has \(count) lines: ask whether it is two")
        }
    }

    @Test("lines fit 120 columns")
    func linesFit() throws {
        for file in try sources() {
            for line in try codeLines(of: file) {
                #expect(line.text.count <= 120, "\(file.lastPathComponent):\(line.number)")
            }
        }
    }
}
