import AsyncIO
import Checkpointer
import Units

/// `colo-blk check`: says of everything in a stopped store what it is, and whether it is what the commit record says.
///
/// Reads only; the store is locked meanwhile, so that no daemon begins to use it.
public struct StoreCheck {
    /// Nothing could be examined.
    public enum Refused: Error, CustomStringConvertible, Equatable {
        /// A daemon, or another verb, has the store.
        case inUse(String)
        /// It is no store, has no such guest, or belongs to a newer release.
        case notThere(String)
        /// The store itself cannot be read.
        case unreadable(String)

        public var description: String {
            switch self {
            case .inUse(let text), .notThere(let text), .unreadable(let text): text
            }
        }
    }

    /// What to do.
    public struct Options: Sendable {
        /// Where RAM caches live; a tmpfs.
        public var ramDirectory: String
        /// Leave out what takes long: the contents of disks, and the comparison of the RAM cache with the logs.
        public var quick: Bool

        public init(ramDirectory: String? = nil, quick: Bool = false) {
            self.ramDirectory = ramDirectory ?? RamTmpfs.defaultBase
            self.quick = quick
        }
    }

    private let store: String
    private let lock: FileLock
    private let description: StoreDescription
    private let guests: [String]
    private let options: Options

    /// Locks the store.
    ///
    /// - Parameter path: the folder of a store, or `STORE/GUEST`.
    public init(path: String, options: Options = Options()) throws(Refused) {
        var path = path
        while path.count > 1, path.hasSuffix("/") { path.removeLast() }
        var only: String?
        if !Directory.exists("\(path)/\(StoreDescription.fileName)"), let slash = path.lastIndex(of: "/") {
            only = String(path[path.index(after: slash)...])
            path = slash == path.startIndex ? "/" : String(path[..<slash])
        }
        guard Directory.exists("\(path)/\(StoreDescription.fileName)") else {
            throw .notThere("\(path) is no colo-blk store; name STORE or STORE/GUEST")
        }
        store = path
        self.options = options
        do throws(IOError) {
            lock = try FileLock(path: "\(path)/lock")
        } catch  where error.isLocked {
            throw .inUse(
                "store \(path) is in use by another colo-blk process: stop it first")
        } catch { throw .unreadable("\(error)") }
        do {
            description = try StoreDescription.decode(
                try WholeFile.read("\(path)/\(StoreDescription.fileName)", limit: StoreDescription.lengthMax))
            let names = try Directory.names(in: path)
                .filter { Store.isGuestName($0) && Directory.exists("\(path)/\($0)/commit") }.sorted()
            if let only, !names.contains(only) {
                throw Refused.notThere(
                    "there is no replica '\(only)' in the store \(path); there is: "
                        + (names.isEmpty ? "none" : names.joined(separator: ", ")))
            }
            guests = only.map { [$0] } ?? names
        } catch let refused as Refused {
            throw refused
        } catch let fault as StoreDescription.Fault {
            throw .notThere("\(path)/\(fault)")
        } catch { throw .unreadable("\(error)") }
    }

    /// Examines every guest. `progress` is called with what is being read.
    public func run(progress: (String) -> Void = { _ in }) -> StoreCheckReport {
        defer { withExtendedLifetime(lock) {} }
        var report = StoreCheckReport(store: store, verdict: .consistent, guests: [])
        for guest in guests {
            progress(guest)
            var check = GuestCheck(
                guest: guest, folder: GuestFolder(path: "\(store)/\(guest)"), store: description.id,
                tmpfs: "\(options.ramDirectory)/\(Store.ramFolderName(description.id, guest))", quick: options.quick)
            report.guests.append(check.run())
        }
        report.verdict = report.guests.map(\.verdict).max { $0.rank < $1.rank } ?? .nothingCommitted
        return report
    }
}
