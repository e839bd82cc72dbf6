import AsyncIO
import Foundation
import TestSupport

@testable import Node

/// A file system with a lying disk: what is durable, and what only seems to be.
///
/// The rules of a crash: what was synced is there. Of the changes of a file since its last sync, any were made and any
/// were not, and a write may have reached any of its sectors of 512 bytes, each of which is old or new as a whole. Of
/// the changes of a directory's names since its last sync, any were made and any were not; a rename is one change.
/// No order holds between two changes unless a sync stands between them.
struct ModelDisk {
    /// What a name stands for.
    enum Node: Equatable {
        case directory
        case file(Int)
    }

    /// A change that is not durable yet.
    enum Pending {
        case data(inode: Int, FileEvent)
        case names([(path: String, node: Node?)])
    }

    /// What becomes of a pending change.
    enum Fate: Equatable {
        case lost
        case made
        /// Some sectors of it, chosen by a seed.
        case torn(UInt64)
    }

    struct Broken: Error { let event: FileEvent }

    private var durableFiles: [ModelFile] = []
    private var durableNames: [String: Node] = [:]
    private var names: [String: Node] = [:]
    private(set) var pending: [Pending] = []

    init() {}

    /// All that is in a real directory, durable.
    init(directory: String) throws {
        for case let name as String in FileManager.default.enumerator(atPath: directory) ?? .init() {
            var isDirectory: ObjCBool = false
            _ = FileManager.default.fileExists(atPath: "\(directory)/\(name)", isDirectory: &isDirectory)
            if isDirectory.boolValue {
                durableNames[name] = .directory
            } else {
                durableNames[name] = .file(durableFiles.count)
                durableFiles.append(try ModelFile(contentsOf: "\(directory)/\(name)"))
            }
        }
        names = durableNames
    }

    /// What a crash left, durable.
    init(_ image: CrashImage) {
        for directory in image.directories { durableNames[directory] = .directory }
        for (name, file) in image.files {
            durableNames[name] = .file(durableFiles.count)
            durableFiles.append(file)
        }
        names = durableNames
    }

    // MARK: Changes

    mutating func apply(_ event: FileEvent) throws(Broken) {
        switch event {
        case .makeDirectory(let path):
            if names[path] == nil { setNames([(path, .directory)]) }
        case .create(let path):
            if case .file(let inode) = names[path] {
                pending.append(.data(inode: inode, .resize(path, to: 0)))
            } else {
                durableFiles.append(ModelFile())
                setNames([(path, .file(durableFiles.count - 1))])
            }
        case .write(let path, _, _), .zero(let path, _), .grow(let path, _), .resize(let path, _):
            guard case .file(let inode) = names[path] else { throw Broken(event: event) }
            pending.append(.data(inode: inode, event))
        case .sync(let path):
            guard case .file(let inode) = names[path] else { throw Broken(event: event) }
            sync(inode)
        case .syncDirectory(let path): syncNames(in: path)
        case .rename(let from, let target):
            guard let node = names[from] else { throw Broken(event: event) }
            setNames([(from, nil), (target, node)])
        case .remove(let path), .removeDirectory(let path):
            if names[path] != nil { setNames([(path, nil)]) }
        case .allow: break
        }
    }

    private mutating func setNames(_ changes: [(path: String, node: Node?)]) {
        for change in changes { names[change.path] = change.node }
        pending.append(.names(changes))
    }

    private mutating func sync(_ inode: Int) {
        var rest: [Pending] = []
        for change in pending {
            if case .data(inode, let event) = change {
                Self.make(event, nil, &durableFiles[inode])
            } else {
                rest.append(change)
            }
        }
        pending = rest
    }

    private mutating func syncNames(in directory: String) {
        let prefix = directory.isEmpty ? "" : directory + "/"
        func isInside(_ path: String) -> Bool { path.hasPrefix(prefix) && !path.dropFirst(prefix.count).contains("/") }
        var rest: [Pending] = []
        for change in pending {
            if case .names(let changes) = change, changes.contains(where: { isInside($0.path) }) {
                for change in changes { durableNames[change.path] = change.node }
            } else {
                rest.append(change)
            }
        }
        pending = rest
    }

    private static func make(_ event: FileEvent, _ mask: ((Int) -> Bool)?, _ file: inout ModelFile) {
        switch event {
        case .write(_, let offset, let bytes): file.write(at: offset, bytes, sectors: mask)
        case .zero(_, let range): file.zero(range, sectors: mask)
        case .grow(_, let size): file.resize(to: max(size, file.size))
        case .resize(_, let size): file.resize(to: size)
        default: preconditionFailure("no change of a file's contents")
        }
    }

    // MARK: Crashes

    /// What is found after a crash that gave each pending change its fate.
    func crash(_ fates: [Fate]) -> CrashImage {
        precondition(fates.count == pending.count)
        var found = durableNames
        for case (.names(let changes), .made) in zip(pending, fates) {
            for change in changes { found[change.path] = change.node }
        }
        var image = CrashImage()
        for (path, node) in found where isReachable(path, found) {
            switch node {
            case .directory: image.directories.append(path)
            case .file(let inode):
                var file = durableFiles[inode]
                for case (.data(inode, let event), let fate) in zip(pending, fates) {
                    switch fate {
                    case .lost: break
                    case .made: Self.make(event, nil, &file)
                    case .torn(let seed):
                        Self.make(event, { SplitMix64.bit(seed, $0) }, &file)
                    }
                }
                image.files[path] = file
            }
        }
        image.directories.sort()
        return image
    }

    private func isReachable(_ path: String, _ found: [String: Node]) -> Bool {
        guard let slash = path.lastIndex(of: "/") else { return true }
        let parent = String(path[..<slash])
        return found[parent] == .directory && isReachable(parent, found)
    }

    /// Whether a change can be made in part.
    func canTear(_ index: Int) -> Bool {
        guard case .data(_, let event) = pending[index] else { return false }
        switch event {
        case .write(_, let offset, let bytes): return (offset % 512) + bytes.count > 512
        case .zero(_, let range): return range.count > 512
        default: return false
        }
    }
}

/// Files as a crash left them.
struct CrashImage: Equatable {
    var directories: [String] = []
    var files: [String: ModelFile] = [:]

    /// Makes the real directory hold exactly this.
    func materialise(in root: String) throws {
        for name in try Directory.names(in: root) where unlink("\(root)/\(name)") != 0 {
            try FileTree.remove("\(root)/\(name)")
        }
        for directory in directories { try Directory.create("\(root)/\(directory)") }
        for (name, file) in files { try file.materialise(at: "\(root)/\(name)") }
    }
}

extension SplitMix64 {
    /// A bit that depends on the seed and the index.
    static func bit(_ seed: UInt64, _ index: Int) -> Bool {
        var random = SplitMix64(seed: seed ^ UInt64(truncatingIfNeeded: index) &* 0x9E37_79B9)
        return random.next() & 1 == 1
    }
}
