import AsyncIO
import RamCache
import Units

/// Why the RAM store could not do what it was asked.
struct RamStoreError: Error, Equatable, CustomStringConvertible {
    /// What happened.
    enum Fault: Equatable {
        /// A system call failed; see ``RamStoreError/isNoSpace``.
        case io(IOError)
        /// A file of the store is damaged or not the one that the commit record names.
        case damaged(RamFormatError)
        /// The primary sent a batch that is wrong. The epoch is of no use.
        case batch(RamBatchError)
        /// Something failed earlier in this epoch, so it cannot be sealed. Discard it.
        case brokenEpoch
        /// Memory durability, and the cache of the committed epoch is gone.
        case lost(reason: String)
        /// The files that the commit record names do not lead to the committed epoch.
        case incomplete(reason: String)
        /// A directory in shared memory may belong to somebody else.
        case unsafeDirectory(reason: String)
    }

    let fault: Fault
    /// The file or directory in question.
    let path: String
    let epoch: Epoch?

    init(_ fault: Fault, path: String, epoch: Epoch? = nil) {
        self.fault = fault
        self.path = path
        self.epoch = epoch
    }

    /// The file system below is full (disk or shared memory).
    var isNoSpace: Bool {
        if case .io(let error) = fault { return error.isNoSpace }
        return false
    }

    var description: String {
        let ofEpoch = epoch.map { " (epoch \($0))" } ?? ""
        switch fault {
        case .io(let error):
            return "RAM store\(ofEpoch): \(error)"
        case .damaged(let error):
            return "RAM store\(ofEpoch): \(path) \(error). Make a new replica by attaching again."
        case .batch(let error):
            return "RAM store\(ofEpoch): \(error). The epoch is discarded; the primary must start a new session."
        case .brokenEpoch:
            return "RAM store\(ofEpoch): an earlier failure left this epoch incomplete; it must be discarded."
        case .lost(let reason):
            return
                "RAM store\(ofEpoch): the RAM cache \(path) is gone (\(reason)). With durability 'memory' it does not "
                + "outlive this host, so this replica cannot take over; attach again to make a new one."
        case .incomplete(let reason):
            return "RAM store\(ofEpoch): \(path) cannot be rebuilt: \(reason). Make a new replica by attaching again."
        case .unsafeDirectory(let reason):
            return "RAM store: \(path) is not used because \(reason). Remove it, or name another directory."
        }
    }

    /// Runs a call of AsyncIO and gives its error the epoch.
    @inline(__always)
    static func wrap<T>(_ epoch: Epoch? = nil, _ body: () throws(IOError) -> T) throws(RamStoreError) -> T {
        do {
            return try body()
        } catch {
            throw RamStoreError(.io(error), path: error.path, epoch: epoch)
        }
    }
}
