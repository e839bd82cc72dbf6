import QEMU
import Testing

@Suite("The configuration section")
struct MachineConfigurationTests {
    private func problem(_ bytes: [UInt8]) -> MachineConfiguration.Problem? {
        do throws(MachineConfiguration.Problem) {
            _ = try MachineConfiguration(parsing: bytes)
            return nil
        } catch {
            return error
        }
    }

    private let front = StreamWriter().configurationPayload
    private let capabilities =
        [5] + named("configuration/capabilities") + be(UInt32(1)) + be(UInt32(2))
        + named("x-ignore-shared") + named("other")
    private let pageBits = [5] + named("configuration/target-page-bits") + be(UInt32(1)) + be(UInt32(12))
    private let uuid = [5] + named("configuration/uuid") + be(UInt32(1)) + Array(1...16)

    @Test("The machine's name and all known subsections are read")
    func all() throws {
        let plain = try MachineConfiguration(parsing: front)
        #expect(plain.machineName == "pc-i440fx-7.2")
        #expect(plain.subsections == [])
        let full = try MachineConfiguration(parsing: front + capabilities + pageBits + uuid)
        #expect(
            full.subsections == [
                .capabilities(["x-ignore-shared", "other"]), .targetPageBits(12), .uuid(Array(1...16)),
            ])
    }

    @Test("A payload that is cut anywhere is refused, but not between its subsections")
    func cuts() {
        let bytes = front + capabilities + pageBits + uuid
        let ends = [front.count, front.count + capabilities.count, bytes.count - uuid.count, bytes.count]
        let whole = (0...bytes.count).filter { problem(Array(bytes[..<$0])) == nil }
        #expect(whole == ends)
    }

    @Test("What is not understood is refused by name")
    func refusals() {
        #expect(problem(front + [8]) == .trailingBytes(1))
        #expect(problem(be(UInt32(0))) == .emptyName)
        #expect(problem(be(UInt32(1)) + [0xFF]) == .nameNotText)
        #expect(problem(be(UInt32.max)) == .tooLong(limit: 60 << 10))
        #expect(problem([UInt8](repeating: 0, count: 61 << 10)) == .tooLong(limit: 60 << 10))
        #expect(problem(front + uuid + uuid) == .repeatedSubsection("configuration/uuid"))
        #expect(problem(front + [5] + named("configuration/new")) == .unknownSubsection("configuration/new"))
        #expect(problem(front + [5, 0]) == .emptyName)
    }
}
