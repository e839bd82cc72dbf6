import AsyncIO
import Dispatch
import Logging
import NBD
import SystemPackage
import Units

/// An image file, or anything that a file descriptor can be read and written through, as the device of an export. All
/// work is done on one thread of its own: transfers of a batch side by side (libaio), the rest one after the other.
public final class FileDevice: ExportDevice {
    public let size: UInt64
    public let isReadOnly: Bool
    public let capabilities: ExportCapabilities
    public let path: String
    private let queue: DispatchQueue
    private let worker: Worker

    /// Opens an existing file. With `direct` false the page cache is used.
    public init(path: String, isReadOnly: Bool, direct: Bool = true, log: Logger) throws(IOError) {
        let file = try DirectFile(path: path, mode: isReadOnly ? .readOnly : .readWrite, direct: direct)
        self.path = path
        self.isReadOnly = isReadOnly
        size = try file.size()
        capabilities = [.flush, .trim, .zero, .fastZero, .blockStatus, .multiConnection]
        queue = DispatchQueue(label: "export of \(path)", qos: .userInitiated)
        worker = try Worker(file: file, size: size, log: log)
    }

    public func perform(_ batch: ExportBatch) {
        queue.async { [worker] in worker.perform(batch) }
    }
}

extension FileDevice {
    // Unchecked: only the device's serial queue touches it once it is made.
    fileprivate final class Worker: @unchecked Sendable {
        /// Memory for transfers side by side, in bytes; a longer transfer goes through it piece by piece.
        private static let slabBytes = 4 << 20
        private static let pieceBytes = 1 << 20
        private static let block = AlignedBuffer.alignment

        private let file: DirectFile
        private let size: UInt64
        private let log: Logger
        private let context: AioContext
        private let slab: AlignedBuffer
        private var slabUsed = 0
        private var transfers: [AioOperation] = []
        private var waiting: [(request: ExportRequest, memory: UnsafeMutableRawBufferPointer)] = []

        init(file: DirectFile, size: UInt64, log: Logger) throws(IOError) {
            self.file = file
            self.size = size
            self.log = log
            context = try AioContext(depth: 64)
            slab = AlignedBuffer(minimumCount: Self.slabBytes)
        }

        func perform(_ batch: ExportBatch) {
            for request in batch.requests {
                switch request.operation {
                case .read, .write: add(request, batch.replies)
                default: answer(request, batch.replies)
                }
            }
            runTransfers(batch.replies)
        }

        // MARK: Transfers

        private func add(_ request: ExportRequest, _ replies: ExportReplies) {
            let room = (request.byteCount + Self.block - 1) / Self.block * Self.block
            guard room <= Self.pieceBytes else { return long(request, replies) }
            if slabUsed + room > slab.count { runTransfers(replies) }
            let memory = slab.slice(slabUsed, request.byteCount)
            slabUsed += room
            waiting.append((request, memory))
            if request.operation == .write {
                request.withPayload { memory.copyMemory(from: $0) }
                transfers.append(.write(file, at: request.offset, from: UnsafeRawBufferPointer(memory)))
            } else {
                transfers.append(.read(file, at: request.offset, into: memory))
            }
        }

        private func runTransfers(_ replies: ExportReplies) {
            guard !transfers.isEmpty else { return }
            defer {
                transfers.removeAll(keepingCapacity: true)
                waiting.removeAll(keepingCapacity: true)
                slabUsed = 0
            }
            do throws(IOError) {
                try context.run(transfers)
                if waiting.contains(where: { $0.request.isForced && $0.request.operation == .write }) {
                    try file.sync()
                }
            } catch {
                return runEach(replies)
            }
            for (request, memory) in waiting {
                if request.operation == .read {
                    replies.read(request, bytes: UnsafeRawBufferPointer(memory))
                } else {
                    replies.done(request)
                }
            }
        }

        /// One of them failed: each is done again by itself, so that only the bad ones are refused.
        private func runEach(_ replies: ExportReplies) {
            for (request, memory) in waiting {
                do throws(IOError) {
                    if request.operation == .write {
                        try file.write(at: request.offset, from: UnsafeRawBufferPointer(memory))
                        if request.isForced { try file.sync() }
                        replies.done(request)
                    } else {
                        try file.read(at: request.offset, into: memory)
                        replies.read(request, bytes: UnsafeRawBufferPointer(memory))
                    }
                } catch {
                    fail(request, error, replies)
                }
            }
        }

        /// A transfer that does not fit beside others.
        private func long(_ request: ExportRequest, _ replies: ExportReplies) {
            runTransfers(replies)
            let piece = UnsafeMutableRawBufferPointer(rebasing: slab.bytes[..<Self.pieceBytes])
            var failure: IOError?
            func pieces(_ body: (UInt64, Int, UnsafeMutableRawBufferPointer) throws(IOError) -> Int) {
                var done = 0
                do throws(IOError) {
                    while done < request.byteCount {
                        let count = min(piece.count, request.byteCount - done)
                        let memory = UnsafeMutableRawBufferPointer(rebasing: piece[..<count])
                        done += try body(request.offset + UInt64(done), done, memory)
                    }
                } catch {
                    failure = error
                }
            }
            if request.operation == .read {
                replies.read(request) { target in
                    pieces { (offset, done, memory) throws(IOError) in
                        try file.read(at: offset, into: memory)
                        UnsafeMutableRawBufferPointer(rebasing: target[done...]).copyMemory(
                            from: UnsafeRawBufferPointer(memory))
                        return memory.count
                    }
                    return failure.map { report($0) }
                }
                return
            }
            request.withPayload { source in
                pieces { (offset, done, memory) throws(IOError) in
                    memory.copyMemory(from: UnsafeRawBufferPointer(rebasing: source[done..<done + memory.count]))
                    try file.write(at: offset, from: UnsafeRawBufferPointer(memory))
                    return memory.count
                }
            }
            if let failure { return fail(request, failure, replies) }
            end(request, replies)
        }

        // MARK: Everything else

        private func answer(_ request: ExportRequest, _ replies: ExportReplies) {
            do throws(IOError) {
                switch request.operation {
                case .zero:
                    guard try zero(request) else { return replies.fail(request, .notSupported) }
                    end(request, replies)
                case .trim:
                    _ = try file.punchHole(at: request.offset, length: UInt64(request.byteCount))
                    end(request, replies)
                case .flush:
                    try file.sync()
                    replies.done(request)
                case .blockStatus:
                    replies.extents(request, try extents(request))
                case .cache, .read, .write:
                    replies.done(request)
                }
            } catch {
                fail(request, error, replies)
            }
        }

        /// False when it would be slow and speed was asked for.
        private func zero(_ request: ExportRequest) throws(IOError) -> Bool {
            let length = UInt64(request.byteCount)
            if request.mayPunchHole, try file.punchHole(at: request.offset, length: length) { return true }
            if try file.zeroRange(at: request.offset, length: length) { return true }
            if request.isFast { return false }
            // The slab may hold transfers that wait.
            let zeroes = AlignedBuffer(minimumCount: min(request.byteCount, Self.pieceBytes))
            let memory = zeroes.bytes
            var done = 0
            while done < request.byteCount {
                let count = min(memory.count, request.byteCount - done)
                try file.write(
                    at: request.offset + UInt64(done), from: UnsafeRawBufferPointer(rebasing: memory[..<count]))
                done += count
            }
            return true
        }

        private func extents(_ request: ExportRequest) throws(IOError) -> [ExportExtent] {
            var found: [ExportExtent] = []
            var place = request.offset
            let end = request.range.end
            let most = request.wantsOneExtent ? 1 : NBDLimits.extentsMax
            while place < end, found.count < most {
                let data = min(try file.nextData(at: place) ?? end, end)
                if data > place {
                    found.append(.hole(data - place))
                    place = data
                } else {
                    let hole = min(max(try file.nextHole(at: place), place + 1), end)
                    found.append(.data(hole - place))
                    place = hole
                }
            }
            return found
        }

        /// Makes it safe when that was asked for, and answers.
        private func end(_ request: ExportRequest, _ replies: ExportReplies) {
            do throws(IOError) {
                if request.isForced { try file.sync() }
                replies.done(request)
            } catch {
                fail(request, error, replies)
            }
        }

        private func fail(_ request: ExportRequest, _ error: IOError, _ replies: ExportReplies) {
            replies.fail(
                request, report(error),
                at: error.offset.flatMap { $0 >= request.offset && $0 < request.range.end ? $0 : nil })
        }

        private func report(_ error: IOError) -> NBDErrno {
            log.error("export: \(error)")
            if error.isNoSpace { return .noSpace }
            return error.errno == .permissionDenied || error.errno == .notPermitted ? .notPermitted : .io
        }
    }
}
