import AsyncIO
import Checkpointer

/// The store that a file belongs to, if any: an image in it may change at any moment, or be somebody's only copy.
public struct ImagePlaceInStore: Sendable {
    /// The store's folder.
    public let store: String
    /// Held while this value lives, so that no daemon begins to use the store; nil: a daemon has it.
    private let lock: FileLock?

    /// A daemon, or another verb, uses the store now.
    public var isInUse: Bool { lock == nil }

    /// Looks for a store above a file's folder; nil when there is none.
    public static func find(_ path: String) throws(IOError) -> ImagePlaceInStore? {
        var folder = path
        // STORE/GUEST/disks/ID/FILE: more levels than that are no store's.
        for _ in 0..<5 {
            folder = parent(folder)
            if Directory.exists("\(folder)/\(StoreDescription.fileName)") {
                guard Directory.exists("\(folder)/lock") else { return ImagePlaceInStore(store: folder, lock: nil) }
                do throws(IOError) {
                    return ImagePlaceInStore(store: folder, lock: try FileLock(path: "\(folder)/lock"))
                } catch  where error.isLocked {
                    return ImagePlaceInStore(store: folder, lock: nil)
                } catch { throw error }
            }
            if folder == "/" { return nil }
        }
        return nil
    }

    private static func parent(_ path: String) -> String {
        guard let slash = path.lastIndex(of: "/") else {
            // "." has a parent, too.
            return path == "." || path == ".." || path.isEmpty ? "\(path.isEmpty ? "." : path)/.." : "."
        }
        let name = path[path.index(after: slash)...]
        if name == ".." || name == "." { return "\(path)/.." }
        return slash == path.startIndex ? "/" : String(path[..<slash])
    }
}
