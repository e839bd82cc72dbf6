import Foundation
import TestSupport
import Testing
import Units

@testable import Node

@Suite("A replica's live disk as an NBD export")
struct ReplicaDeviceTests {
    private static func make(_ directory: String, size: UInt64, durable: Bool) throws -> ReplicaDevice {
        var limits = DiskReplica.Limits()
        limits.bufferBytes = 1 << 20
        let replica = try DiskReplica.create(directory: directory, size: size, durable: durable, limits: limits)
        try replica.beginEpoch(Epoch(1), preserve: false)
        return ReplicaDevice(replica)
    }

    @Test(
        "qemu-io reads back what it wrote, zeroed and discarded, more than the buffer holds; checkpoints stay right",
        .enabled(if: !ExportFixture.missing("qemu-io"), "qemu-utils is not installed"), arguments: [true, false])
    func qemuIO(durable: Bool) async throws {
        let folder = FileManager.default.temporaryDirectory.appending(path: "replica-\(UUID().uuidString.prefix(8))")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        let device = try Self.make(folder.path + "/vda", size: 16 << 20, durable: durable)
        try await ExportFixture.run([.init(name: "vda", device: device)]) { fixture in
            func io(_ commands: String...) async throws {
                let arguments = commands.flatMap { ["-c", $0] }
                let output = try await fixture.tool("qemu-io", ["-f", "raw"] + arguments + [fixture.uri("vda")])
                #expect(!output.contains("failed"), "\(output)")
            }
            try await io("write -P 1 0 8M", "read -P 1 0 8M", "read -P 0 8M 8M", "flush")
            let sealed = try await device.withReplica { replica in
                try replica.beginEpoch(Epoch(2))
                let seal = try replica.seal(epoch: Epoch(1))
                try replica.committed(Epoch(1))
                return seal.bytesWritten
            }
            #expect(sealed == 8 << 20)
            try await io(
                "write -P 2 1M 4M", "write -z 2M 64k", "write -P 3 1536 1024", "discard 6M 1M", "write -f -P 4 9M 4k",
                "read -P 2 1M 1M", "read -P 0 2M 64k", "read -P 3 1536 1024", "read -P 1 2560 512", "read -P 0 6M 1M",
                "read -P 4 9M 4k", "read -P 1 512k 512k")
            let old = try await device.withReplica { replica in
                var bytes = [UInt8](repeating: 9, count: 16 << 20)
                try bytes.withUnsafeMutableBytes { try replica.readView(after: Epoch(1), offset: 0, into: $0) }
                return bytes
            }
            let first = old[..<(8 << 20)].allSatisfy { $0 == 1 }
            let rest = old[(8 << 20)...].allSatisfy { $0 == 0 }
            #expect(first && rest, "the checkpoint is not touched by later writes")
        }
    }

    @Test(
        "what was written goes to the disk by itself when nothing more comes",
        .enabled(if: !ExportFixture.missing("qemu-io"), "qemu-utils is not installed"))
    func idle() async throws {
        let folder = FileManager.default.temporaryDirectory.appending(path: "replica-\(UUID().uuidString.prefix(8))")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        let device = try Self.make(folder.path + "/vda", size: 16 << 20, durable: false)
        try await ExportFixture.run([.init(name: "vda", device: device)]) { fixture in
            _ = try await fixture.tool("qemu-io", ["-f", "raw", "-c", "write -P 7 64k 64k", fixture.uri("vda")])
            // As long as it takes: a machine under load gives the device's thread its turn late.
            while try await device.withReplica({ $0.bufferedBytes }) > 0 {
                try await Task.sleep(for: .milliseconds(5))
            }
            let bytes = try Data(contentsOf: folder.appending(path: "vda/secondary.raw"))
            #expect(bytes[(64 << 10)..<(128 << 10)].allSatisfy { $0 == 7 })
        }
    }
}
