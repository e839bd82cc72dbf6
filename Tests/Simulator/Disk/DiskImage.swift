/// The files of a host as they are, and as they would be after a power loss.
///
/// A value: a copy is what the disk looked like at that moment. Paths are names with slashes; directories exist because
/// files are in them. Zeroes and holes are the same.
struct DiskImage {
    static let sector = 512

    enum Change {
        case write(offset: Int, bytes: [UInt8])
        case truncate(Int)
    }

    enum NameChange {
        case link(String, Int)
        case unlink(String)
        case rename(String, String)
    }

    struct Inode {
        var live: [UInt8] = []
        var durable: [UInt8] = []
        /// Not synced, in order.
        var pending: [Change] = []
    }

    private(set) var inodes: [Inode] = []
    private(set) var names: [String: Int] = [:]
    private var durableNames: [String: Int] = [:]
    private var pendingNames: [String: [NameChange]] = [:]

    static func directory(_ path: String) -> String {
        path.lastIndex(of: "/").map { String(path[..<$0]) } ?? ""
    }

    // MARK: Reading

    func exists(_ path: String) -> Bool { names[path] != nil }
    func size(_ path: String) -> Int? { names[path].map { inodes[$0].live.count } }
    func contents(_ path: String) -> [UInt8]? { names[path].map { inodes[$0].live } }

    /// Files whose path starts so, without that start, sorted.
    func files(in directory: String) -> [String] {
        let prefix = directory + "/"
        return names.keys.filter { $0.hasPrefix(prefix) }.map { String($0.dropFirst(prefix.count)) }.sorted()
    }

    /// Fills the buffer; false when the file ends before.
    func read(_ path: String, at offset: Int, into buffer: UnsafeMutableRawBufferPointer) -> Bool {
        guard let inode = names[path], offset + buffer.count <= inodes[inode].live.count else { return false }
        inodes[inode].live.withUnsafeBytes {
            buffer.copyMemory(from: UnsafeRawBufferPointer(rebasing: $0[offset..<offset + buffer.count]))
        }
        return true
    }

    // MARK: Changing

    mutating func create(_ path: String) {
        if let inode = names[path] {
            inodes[inode].pending.append(.truncate(0))
            inodes[inode].live = []
            return
        }
        inodes.append(Inode())
        names[path] = inodes.count - 1
        note(.link(path, inodes.count - 1), in: Self.directory(path))
    }

    mutating func apply(_ change: Change, to path: String) {
        guard let inode = names[path] else { return }
        Self.apply(change, to: &inodes[inode].live)
        inodes[inode].pending.append(change)
    }

    mutating func rename(_ from: String, to target: String) {
        guard let inode = names.removeValue(forKey: from) else { return }
        names[target] = inode
        note(.rename(from, target), in: Self.directory(target))
    }

    mutating func remove(_ path: String) {
        guard names.removeValue(forKey: path) != nil else { return }
        note(.unlink(path), in: Self.directory(path))
    }

    private mutating func note(_ change: NameChange, in directory: String) {
        pendingNames[directory, default: []].append(change)
    }

    mutating func sync(_ path: String) {
        guard let inode = names[path] else { return }
        let changes = inodes[inode].pending
        inodes[inode].pending = []
        for change in changes { Self.apply(change, to: &inodes[inode].durable) }
    }

    /// A sync that failed: nobody knows what of it reached the medium, and the kernel forgets that it was dirty.
    mutating func failSync(_ path: String, _ random: inout some RandomNumberGenerator) {
        guard let inode = names[path] else { return }
        let changes = inodes[inode].pending
        inodes[inode].pending = []
        let survive = UInt8.random(in: 0...100, using: &random)
        for change in changes {
            Self.applyTorn(change, to: &inodes[inode].durable, survive: survive, atom: Self.sector, &random)
        }
    }

    mutating func syncDirectory(_ directory: String) {
        for change in pendingNames.removeValue(forKey: directory) ?? [] { Self.apply(change, to: &durableNames) }
        collect()
    }

    /// Gives back the contents of files that no name leads to any more, whatever happens.
    private mutating func collect() {
        var used = Set(names.values).union(durableNames.values)
        for case .link(_, let inode) in pendingNames.values.joined() { used.insert(inode) }
        for index in inodes.indices where !used.contains(index) && !inodes[index].live.isEmpty {
            inodes[index] = Inode()
        }
    }

    /// Bits flip, or bytes land, where nobody wrote; on the medium and in what is read.
    mutating func damage(_ path: String, at offset: Int, _ bytes: [UInt8]) {
        guard let inode = names[path], offset + bytes.count <= inodes[inode].live.count else { return }
        inodes[inode].live.replaceSubrange(offset..<offset + bytes.count, with: bytes)
        if offset + bytes.count <= inodes[inode].durable.count {
            inodes[inode].durable.replaceSubrange(offset..<offset + bytes.count, with: bytes)
        }
    }

    // MARK: Power loss

    /// Nothing but what was synced is sure to stay. Of the rest, each sector stays or not, by itself; of the commit file
    /// each piece of 64 bytes, to show that nothing rests on the sector.
    mutating func losePower(_ random: inout some RandomNumberGenerator) {
        let commitFile = names["commit"]
        for index in inodes.indices {
            let atom = index == commitFile ? 64 : Self.sector
            // How bad it is: all lost, all kept, or sector by sector.
            let mood = Int.random(in: 0..<6, using: &random)
            let survive: UInt8 = mood == 0 ? 0 : mood == 1 ? 100 : UInt8.random(in: 5...95, using: &random)
            var image = inodes[index].durable
            for change in inodes[index].pending {
                Self.applyTorn(change, to: &image, survive: survive, atom: atom, &random)
            }
            inodes[index] = Inode(live: image, durable: image)
        }
        for directory in pendingNames.keys.sorted() {
            let changes = pendingNames[directory] ?? []
            let kept = Int.random(in: 0...changes.count, using: &random)
            for change in changes[..<kept] { Self.apply(change, to: &durableNames) }
        }
        pendingNames = [:]
        names = durableNames
    }

    private static func applyTorn(
        _ change: Change, to bytes: inout [UInt8], survive: UInt8, atom: Int, _ random: inout some RandomNumberGenerator
    ) {
        func lives() -> Bool { UInt8.random(in: 0..<100, using: &random) < survive }
        switch change {
        case .truncate(let size):
            if lives() { apply(.truncate(size), to: &bytes) }
        case .write(let offset, let data):
            var start = offset
            while start < offset + data.count {
                let end = min((start / atom + 1) * atom, offset + data.count)
                if lives() {
                    apply(.write(offset: start, bytes: Array(data[start - offset..<end - offset])), to: &bytes)
                }
                start = end
            }
        }
    }

    private static func apply(_ change: Change, to bytes: inout [UInt8]) {
        switch change {
        case .truncate(let size):
            if size < bytes.count {
                bytes.removeLast(bytes.count - size)
            } else {
                bytes.append(contentsOf: repeatElement(0, count: size - bytes.count))
            }
        case .write(let offset, let data):
            if offset + data.count > bytes.count {
                bytes.append(contentsOf: repeatElement(0, count: offset + data.count - bytes.count))
            }
            bytes.withUnsafeMutableBytes { target in
                UnsafeMutableRawBufferPointer(rebasing: target[offset..<offset + data.count]).copyBytes(from: data)
            }
        }
    }

    private static func apply(_ change: NameChange, to names: inout [String: Int]) {
        switch change {
        case .link(let name, let inode): names[name] = inode
        case .unlink(let name): names[name] = nil
        case .rename(let from, let target): names[target] = names.removeValue(forKey: from) ?? names[target]
        }
    }
}
