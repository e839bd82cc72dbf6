import NIOCore
import QEMU
import Units

/// QEMU's own NBD server, started for as long as the secondary compares disks.
extension AgentSession {
    /// Exports all disks read-only and connects to them. Calls `done` on the event loop.
    func openDiskReaders(
        _ guest: ProtectedGuest, _ directory: SocketDirectory,
        _ done: @escaping (Result<[DiskReader], any Error>) -> Void
    ) {
        let bound = NIOLoopBound(done, eventLoop: loop)
        Task { [self] in
            let result: Result<[DiskReader], any Error>
            do {
                result = .success(try await startDiskReaders(guest, directory.path("read.sock")))
            } catch {
                result = .failure(error)
            }
            loop.execute { bound.value(result) }
        }
    }

    private func startDiskReaders(_ guest: ProtectedGuest, _ socket: String) async throws -> [DiskReader] {
        do {
            try await relay.execute(
                "nbd-server-start",
                ["addr": ["type": "unix", "data": ["path": .string(socket)]], "max-connections": 16])
        } catch {
            throw DiskReader.Failed(
                description:
                    "QEMU's NBD server, through which the guest's disks are read, cannot be started (\(error)): "
                    + "if somebody else uses it, end that first (nbd-server-stop)")
        }
        do {
            return try await exportDisks(guest, socket)
        } catch {
            await stopDiskReaders(guest)
            throw error
        }
    }

    private func exportDisks(_ guest: ProtectedGuest, _ socket: String) async throws -> [DiskReader] {
        for (index, disk) in guest.disks.enumerated() {
            try await relay.execute(
                "block-export-add",
                [
                    "type": "nbd", "id": .string(GuestNames.readExport(index)), "node-name": .string(disk.node),
                    "name": .string(disk.id), "writable": .bool(false),
                ])
        }
        let disks = guest.disks.map { ($0.id, $0.size) }
        return try await BlockingTask.run(label: "colo-blk.read") {
            try disks.map { try DiskReader(socket: socket, export: $0.0, size: $0.1) }
        }.value
    }

    /// Takes the exports away again, and stops the server, which we have started.
    func stopDiskReaders(_ guest: ProtectedGuest) async {
        for index in guest.disks.indices {
            _ = try? await relay.execute(
                "block-export-del", ["id": .string(GuestNames.readExport(index)), "mode": "hard"])
        }
        _ = try? await relay.execute("nbd-server-stop")
    }
}
