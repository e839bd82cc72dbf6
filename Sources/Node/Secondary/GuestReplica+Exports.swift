import AsyncIO
import BlockReplica
import Checkpointer
import Logging
import NBD
import SystemPackage
import Units

/// A checkpoint that is served over NBD while protection goes on. Belongs to the replica's actor.
struct OpenExport {
    let epoch: Epoch
    let isWritable: Bool
    /// What clients wrote, for each disk; empty when they may not.
    var scratch: [ScratchDisk]
    /// Nil while it starts to listen.
    var server: ExportServer?
    /// Tells whoever asked for it that it ended before its time.
    let ended: @Sendable (String) -> Void
}

/// Exported views. Reads take their turn on the replica's thread, a piece of 1 MiB at a time, with the link's frames.
extension GuestReplica {
    private static let piece = 1 << 20

    /// Serves the last committed checkpoint until ``endExport(_:)``, or until it cannot be kept any longer: then `ended`
    /// is called, once, with the reason.
    func export(
        _ options: ExportOptions, ended: @escaping @Sendable (String) -> Void
    ) async throws -> (number: Int, report: ExportReport) {
        guard !store.isPromoted else {
            throw GuestStore.Failed(
                description: "'\(name)' failed over: its disks belong to the guest, whose writes a view would not have")
        }
        endLostExports()
        let disks = store.diskDescriptions
        guard let record = store.record, !disks.isEmpty else {
            throw GuestStore.Failed(
                description: store.record == nil
                    ? "nothing has been committed for '\(name)' yet: there is no checkpoint to show"
                    : "checkpoint \(store.committed) of '\(name)' has no disks that could be shown")
        }
        exportCount += 1
        let number = exportCount
        var open = OpenExport(
            epoch: record.epoch, isWritable: options.writable, scratch: [], server: nil, ended: ended)
        if options.writable { open.scratch = try store.makeScratch(number) }
        store.holdViews(record.epoch)
        exports[number] = open
        do {
            let server = try await listen(options, number, record.epoch)
            guard exports[number] != nil else {
                await server.close()
                throw GuestStore.Failed(description: "the view ended before it was open")
            }
            exports[number]?.server = server
            log.info(
                "view opened",
                metadata: ["guest": "\(name)", "epoch": "\(record.epoch)", "address": "\(server.address)"])
            return (
                number,
                ExportReport(
                    guest: name, epoch: record.epoch.rawValue, writable: options.writable,
                    disks: disks.map { .init(id: $0.id, bytes: $0.size, uri: "\(server.uri(of: $0.id))") })
            )
        } catch {
            close(number)
            throw error
        }
    }

    private func listen(_ options: ExportOptions, _ number: Int, _ epoch: Epoch) async throws -> ExportServer {
        let address = try Address(parsing: options.address)
        var configuration = ExportServer.Configuration()
        configuration.tls = try options.tls.map { try ExportTLS.required($0) }
        configuration.connections = 16
        let exports = store.diskDescriptions.enumerated().map { index, disk in
            ExportServer.Export(
                name: disk.id, description: "\(name), checkpoint \(epoch)",
                device: ViewDevice(
                    replica: self, export: number, disk: index, size: disk.size, isReadOnly: !options.writable))
        }
        return try await ExportServer.start(at: address, exports: exports, configuration: configuration, log: log)
    }

    /// Ends an export that somebody has done with, and returns when its socket is gone.
    func endExport(_ number: Int) async {
        guard exports[number] != nil else { return }
        log.info("view closed", metadata: ["guest": "\(name)", "epoch": "\(exports[number]?.epoch ?? .none)"])
        await close(number)?.close()
    }

    /// Lets go of what an export holds; returns its server, which is still to be closed.
    @discardableResult
    private func close(_ number: Int) -> ExportServer? {
        guard let open = exports.removeValue(forKey: number) else { return nil }
        store.releaseViews(open.epoch)
        return open.server
    }

    /// Ends all exports for a reason that their clients and whoever asked for them are told.
    func endExports(_ reason: String) {
        guard !exports.isEmpty else { return }
        for number in exports.keys.sorted() { end(number, reason) }
        // Hidden disks that only views needed must be gone before somebody else looks at the folder.
        store.reclaimAll()
    }

    /// Ends exports whose views could not be kept.
    func endLostExports() {
        // All are found before the first lets go of its view, which forgets the reason.
        let lost = exports.compactMap { number, open in store.lostView(open.epoch).map { (number, $0) } }
        for (number, reason) in lost { end(number, reason) }
    }

    private func end(_ number: Int, _ reason: String) {
        guard let open = exports[number] else { return }
        log.warning("view ended", metadata: ["guest": "\(name)", "epoch": "\(open.epoch)", "reason": "\(reason)"])
        let server = close(number)
        open.ended("the view of checkpoint \(open.epoch) has ended: \(reason)")
        Task { await server?.close() }
    }

    func exportStatuses() -> [GuestStatus.Export] {
        exports.sorted { $0.key < $1.key }.map { _, open in
            let scratch = open.scratch.reduce(UInt64(0)) { $0 + $1.stash.byteCount }
            return GuestStatus.Export(
                epoch: open.epoch.rawValue, writable: open.isWritable,
                uris: store.diskDescriptions.compactMap { disk in open.server.map { "\($0.uri(of: disk.id))" } },
                clients: open.server?.figures.connections ?? 0,
                heldBytes: store.stashedBytes(open.epoch) + scratch)
        }
    }

    // MARK: Requests

    /// Answers requests of an export's clients.
    func perform(_ batch: ExportBatch, export number: Int, disk: Int) async {
        for request in batch.requests {
            do {
                switch request.operation {
                case .read: try await read(request, batch.replies, number, disk)
                case .write, .zero, .trim:
                    try write(request, number, disk)
                    batch.replies.done(request)
                case .flush, .cache: batch.replies.done(request)
                case .blockStatus: batch.replies.extents(request, try extents(request, number, disk))
                }
            } catch {
                let isGone = exports[number] == nil
                if !isGone {
                    log.warning(
                        "a view cannot be served", metadata: ["guest": "\(name)", "reason": "\(error)"])
                }
                batch.replies.fail(request, isGone ? .shutdown : StorageErrors.isNoSpace(error) ? .noSpace : .io)
                endLostExports()
            }
        }
    }

    private struct Gone: Error {}

    private func read(_ request: ExportRequest, _ replies: ExportReplies, _ number: Int, _ disk: Int) async throws {
        let block = UInt64(BlockGeometry.blockSize)
        // Whole blocks around what is wanted.
        let start = request.offset / block * block
        let size = store.diskDescriptions[disk].size
        let end = min((request.range.end + block - 1) / block * block, size)
        let staging = AlignedBuffer(minimumCount: max(Int(end - start), 1))
        var offset = start
        while offset < end {
            // The link's frames get their turn in between; the export may end meanwhile.
            if offset > start { await Task.yield() }
            guard let open = exports[number] else { throw Gone() }
            let range = ByteRange(offset: offset, length: min(UInt64(Self.piece), end - offset))
            let bytes = staging.slice(Int(offset - start), Int(range.length))
            try store.readView(disk, open.epoch, range, into: bytes)
            if !open.scratch.isEmpty { try open.scratch[disk].stash.overlay(onto: bytes, range: range) }
            offset = range.end
        }
        let wanted = staging.slice(Int(request.offset - start), request.byteCount)
        replies.read(request, bytes: UnsafeRawBufferPointer(wanted))
    }

    private func extents(_ request: ExportRequest, _ number: Int, _ disk: Int) throws -> [ExportExtent] {
        guard let open = exports[number] else { throw Gone() }
        let scratch = open.scratch.indices.contains(disk) ? open.scratch[disk].stash : nil
        return try store.viewExtents(disk, open.epoch, request.range, over: scratch)
    }

    private func write(_ request: ExportRequest, _ number: Int, _ disk: Int) throws {
        guard let open = exports[number], open.scratch.indices.contains(disk) else { throw Gone() }
        guard store.hasReserve(disk) else {
            throw IOError(operation: "write", path: open.scratch[disk].stash.path, errno: .noSpace)
        }
        func base(_ range: ByteRange, _ bytes: UnsafeMutableRawBufferPointer) throws {
            try store.readView(disk, open.epoch, range, into: bytes)
        }
        if request.operation == .write {
            try request.withPayload { try open.scratch[disk].write(request.range, $0, base: base) }
        } else {
            try open.scratch[disk].write(request.range, nil, base: base)
        }
    }
}
