import TestSupport
import Testing

@Suite("Peers")
struct PeersTests {
    /// The scripts install them; where one is missing, the suites that need it are skipped, and this says so.
    @Test(
        "every peer program is there",
        arguments: ["qemu-img", "qemu-io", "nbdinfo", "nbdcopy", "nbdkit", "fio"])
    func peerIsThere(name: String) throws {
        let path = try #require(Program.path(of: name), "\(name) is missing: Scripts/test installs it")
        #expect(path.hasSuffix("/\(name)"))
    }
}
