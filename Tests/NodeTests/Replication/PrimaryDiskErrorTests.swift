import Foundation
import TestSupport
import Testing

@testable import Node

/// A QEMU without a machine: a disk with one bad sector, a mirror job to our agent, and a client in the guest's place.
private final class StorageDaemon {
    struct Failed: Error, CustomStringConvertible { let description: String }

    let guestSocket: String
    private let process = Process()
    private let input = Pipe()
    private let output = Pipe()
    private var said = ""

    /// - Parameter badSector: of 512 bytes, writes to which fail.
    init(disk: String, badSector: Int, mirror target: String, in directory: String) throws {
        guestSocket = directory + "/guest.sock"
        process.executableURL = URL(fileURLWithPath: "/usr/bin/qemu-storage-daemon")
        process.arguments = [
            "--blockdev",
            #"{"driver":"blkdebug","node-name":"disk","image":{"driver":"file","filename":"\#(disk)"},"#
                + #""inject-error":[{"event":"none","iotype":"write","sector":\#(badSector),"errno":5}]}"#,
            "--blockdev",
            #"{"driver":"nbd","node-name":"copy","export":"d","server":{"type":"unix","path":"\#(target)"}}"#,
            "--nbd-server", "addr.type=unix,addr.path=\(guestSocket)",
            "--export", "type=nbd,id=guest,node-name=disk,name=guest,writable=on",
            "--chardev", "stdio,id=monitor", "--monitor", "chardev=monitor",
        ]
        process.standardInput = input
        process.standardOutput = output
        process.standardError = output
        try process.run()
        try say(#"{"execute":"qmp_capabilities"}"#, until: #""return""#)
        try say(
            #"{"execute":"blockdev-mirror","arguments":{"job-id":"mirror","device":"disk","target":"copy","sync":"full","#
                + #""copy-mode":"write-blocking","on-target-error":"report"}}"#, until: "BLOCK_JOB_READY")
    }

    deinit {
        // Asked to end in order it would first wait for its mirror, whose target is gone by now.
        kill(process.processIdentifier, SIGKILL)
        process.waitUntilExit()
    }

    /// Says something and waits until the daemon has said that.
    func say(_ command: String, until words: String) throws {
        said = ""
        try input.fileHandleForWriting.write(contentsOf: Data("\(command)\n".utf8))
        while !said.contains(words) {
            let data = output.fileHandleForReading.availableData
            said += String(decoding: data, as: UTF8.self)
            if data.isEmpty || said.contains(#""error""#) { throw Failed(description: said) }
        }
    }

    /// The mirror job's own words.
    func jobs() throws -> String {
        try say(#"{"execute":"query-block-jobs"}"#, until: #""return""#)
        return said
    }
}

@Suite("The first of the seven failures: the primary's own disk")
struct PrimaryDiskErrorTests {
    private static let hasDaemon = FileManager.default.isExecutableFile(atPath: "/usr/bin/qemu-storage-daemon")

    @Test(
        "1: the guest is told of its disk's error, protection goes on, and the checkpoint is what the guest's disk holds",
        .enabled(if: DiskTool.isInstalled && hasDaemon, "qemu-storage-daemon is not installed"))
    func primaryDisk() async throws {
        try await withRig { rig in
            let size = 64 * 4096
            let disk = rig.place.base + "/primary.raw"
            try WholeFile.write(disk, Array(RigDisk.pattern(1).prefix(size)), durable: false)
            let primary = try await rig.attach(size: size)
            // Sector 300 is never written but by the guest.
            let qemu = try StorageDaemon(disk: disk, badSector: 300, mirror: primary.nbdSocket, in: rig.place.base)
            try await primary.finishInitialCopy()
            #expect(try await rig.committedDisk() == (try DiskTool.contents(disk)))

            let guest = "nbd+unix:///guest?socket=\(qemu.guestSocket)"
            let fine = try DiskTool.run("qemu-io", ["-f", "raw", "-c", "write -P 0x1A 8k 40k", guest])
            #expect(fine.status == 0, "\(fine.output)")
            let bad = try DiskTool.run("qemu-io", ["-f", "raw", "-c", "write -P 0x1B 148k 8k", guest])
            #expect(bad.output.contains("write failed: Input/output error"), "\(bad.output)")
            let later = try DiskTool.run("qemu-io", ["-f", "raw", "-c", "write -P 0x1C 200k 4k", guest])
            #expect(later.status == 0, "\(later.output)")

            try await primary.checkpoint()
            #expect(primary.ending == nil, "the manager hears nothing of it")
            let status = try await rig.status()
            #expect(status.state == .protected)
            #expect(status.message == nil)
            let jobs = try qemu.jobs()
            #expect(jobs.contains(#""io-status": "ok""#), "\(jobs)")
            let held = try DiskTool.contents(disk)
            #expect(held[200 << 10] == 0x1C && held[8 << 10] == 0x1A)
            #expect(try await rig.committedDisk() == held)
            await primary.close()
        }
    }
}
