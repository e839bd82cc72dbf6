import TestSupport
import Units

/// A process or a host stops here and now.
enum Halt: Error {
    case processDied
    case powerLost
}

/// A call on a file failed.
struct FileFailure: Error, CustomStringConvertible {
    enum Reason: Sendable { case noSpace, inputOutput, missing, short }

    let operation: String
    let path: String
    let reason: Reason

    var description: String { "\(operation) \(path): \(reason)" }
}

/// What may be wrong with the files of a host at the moment.
struct DiskFaults {
    /// Operations from now on until the process dies or the power is lost.
    var halt: (after: Int, how: Halt)?
    var isFull = false
    /// Operations of the kind from now on until one fails.
    var failingWrite: Int?
    var failingRead: Int?
    var failingSync: Int?
    /// The next write, or the next sync, of the commit file fails.
    var failsCommitWrite = false
    var failsCommitSync = false
    var syncsLie = false
    /// Nanoseconds that each operation takes.
    var latency: UInt64 = 20_000
}

/// All file operations of one host's daemon go through here: the one place where they take time, fail, and where the
/// world may end between two of them.
final class Storage {
    var image = DiskImage()
    /// Files in shared memory.
    var shared = SharedMemory()
    var faults = DiskFaults()
    var mutation: Mutation?
    /// Nanoseconds that operations took since this was set to zero.
    var elapsed: UInt64 = 0
    private(set) var operations: UInt64 = 0
    private var random: SplitMix64
    /// Looks at the host between two operations.
    var onStep: () -> Void = {}
    /// Told of every fault that was really suffered.
    var onFault: (FaultKind, String) -> Void = { _, _ in }
    /// Told of every change of a file before it is made.
    var onChange: (String) -> Void = { _ in }

    init(random: SplitMix64) {
        self.random = random
    }

    /// A copy that shares nothing, suffers no faults and watches nobody.
    func fork(random: SplitMix64) -> Storage {
        let copy = Storage(random: random)
        copy.image = image
        copy.shared = shared.copy()
        copy.mutation = mutation
        return copy
    }

    func losePower() {
        image.losePower(&random)
        shared = SharedMemory()
        faults.halt = nil
    }

    // MARK: Between two operations

    /// One operation; throws when it is not to happen any more.
    func step(_ operation: String, _ path: String) throws {
        operations += 1
        elapsed += faults.latency
        onStep()
        guard let halt = faults.halt else { return }
        if halt.after > 0 {
            faults.halt = (halt.after - 1, halt.how)
            return
        }
        faults.halt = nil
        throw halt.how
    }

    private func fails(_ counter: inout Int?) -> Bool {
        guard let left = counter else { return false }
        counter = left > 0 ? left - 1 : nil
        return left == 0
    }

    // MARK: Files

    func exists(_ path: String) -> Bool { image.exists(path) }
    func files(in directory: String) -> [String] { image.files(in: directory) }

    func size(_ path: String) throws -> Int {
        guard let size = image.size(path) else {
            throw FileFailure(operation: "open", path: path, reason: .missing)
        }
        return size
    }

    func read(_ path: String, at offset: Int, into buffer: UnsafeMutableRawBufferPointer) throws {
        try step("read", path)
        if fails(&faults.failingRead) {
            onFault(.readError, path)
            throw FileFailure(operation: "read", path: path, reason: .inputOutput)
        }
        guard image.read(path, at: offset, into: buffer) else {
            throw FileFailure(operation: "read", path: path, reason: exists(path) ? .short : .missing)
        }
    }

    func read(_ path: String, at offset: Int, count: Int) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        try bytes.withUnsafeMutableBytes { try read(path, at: offset, into: $0) }
        return bytes
    }

    func readAll(_ path: String) throws -> [UInt8] { try read(path, at: 0, count: try size(path)) }

    func create(_ path: String) throws {
        try step("create", path)
        try needSpace(path)
        onChange(path)
        image.create(path)
    }

    func write(_ path: String, at offset: Int, _ bytes: [UInt8]) throws {
        do {
            try step("write", path)
        } catch {
            // A part of a write may have been done.
            let sectors = (bytes.count + 511) / 512
            let part = min(Int.random(in: 0...sectors, using: &random) * 512, bytes.count)
            if part > 0 { image.apply(.write(offset: offset, bytes: Array(bytes[..<part])), to: path) }
            throw error
        }
        guard exists(path) else { throw FileFailure(operation: "write", path: path, reason: .missing) }
        onChange(path)
        let failsCommit = faults.failsCommitWrite && path == CommitFileModel.path
        if failsCommit || fails(&faults.failingWrite) {
            if failsCommit { faults.failsCommitWrite = false }
            onFault(failsCommit ? .failedCommit : .writeError, path)
            let part = Int.random(in: 0...bytes.count / 512, using: &random) * 512
            if part > 0 { image.apply(.write(offset: offset, bytes: Array(bytes[..<part])), to: path) }
            throw FileFailure(operation: "write", path: path, reason: .inputOutput)
        }
        if offset + bytes.count > (image.size(path) ?? 0) || (path.hasSuffix("secondary.raw") && random.next() % 4 == 0)
        {
            try needSpace(path)
        }
        image.apply(.write(offset: offset, bytes: bytes), to: path)
    }

    func zero(_ path: String, at offset: Int, count: Int) throws {
        try step("zero", path)
        onChange(path)
        let end = min(offset + count, image.size(path) ?? 0)
        guard end > offset else { return }
        image.apply(.write(offset: offset, bytes: [UInt8](repeating: 0, count: end - offset)), to: path)
    }

    func truncate(_ path: String, to size: Int) throws {
        try step("truncate", path)
        onChange(path)
        image.apply(.truncate(size), to: path)
    }

    /// Takes space up to `size`.
    func grow(_ path: String, to size: Int) throws {
        try step("fallocate", path)
        try needSpace(path)
        onChange(path)
        image.apply(.truncate(size), to: path)
    }

    private func needSpace(_ path: String) throws {
        guard faults.isFull else { return }
        onFault(.diskFull, path)
        throw FileFailure(operation: "write", path: path, reason: .noSpace)
    }

    func sync(_ path: String) throws {
        try step("sync", path)
        let failsCommit = faults.failsCommitSync && path == CommitFileModel.path
        if failsCommit || fails(&faults.failingSync) {
            if failsCommit { faults.failsCommitSync = false }
            onFault(failsCommit ? .failedCommit : .failedSync, path)
            image.failSync(path, &random)
            throw FileFailure(operation: "sync", path: path, reason: .inputOutput)
        }
        elapsed += faults.latency * 10
        if !faults.syncsLie { image.sync(path) }
    }

    func syncDirectory(_ path: String) throws {
        try step("sync of directory", path)
        if !faults.syncsLie { image.syncDirectory(path) }
    }

    func rename(_ from: String, to target: String) throws {
        try step("rename", target)
        image.rename(from, to: target)
    }

    func remove(_ path: String) throws {
        try step("remove", path)
        image.remove(path)
    }

    /// Removes a file that nobody misses when it stays.
    func removeIfPossible(_ path: String) throws {
        do { try remove(path) } catch is FileFailure {}
    }

    /// A small file, written whole.
    func writeWhole(_ path: String, _ bytes: [UInt8], durable: Bool) throws {
        try create(path)
        try write(path, at: 0, bytes)
        if durable { try sync(path) }
    }
}
