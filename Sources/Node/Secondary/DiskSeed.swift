import AsyncIO
import Glibc
import Units

/// An existing copy of a guest's disk that a replica begins with, so that only what differs has to be sent.
public struct DiskSeed: Codable, Sendable, Equatable {
    public struct Refused: Error, CustomStringConvertible {
        public let description: String
    }

    /// Name of the replica.
    public var guest: String
    /// Id of the disk.
    public var disk: String
    /// A raw file or block device; qcow2 when the name ends in `.qcow2`. The format is never guessed from the contents,
    /// which the guest wrote: they could name any file of this host as a backing file.
    public var file: String
    /// The file is a block device that is to be the secondary disk itself: nothing is copied.
    public var isDevice: Bool

    public init(guest: String, disk: String, file: String, isDevice: Bool = false) {
        self.guest = guest
        self.disk = disk
        self.file = file
        self.isDevice = isDevice
    }

    /// Parses `GUEST/DISK=FILE`, or `DISK=FILE` when the guest is known.
    public init(parsing text: String, guest: String? = nil, isDevice: Bool = false) throws(Refused) {
        let form = guest == nil ? "GUEST/DISK=FILE" : "DISK=FILE"
        guard let equals = text.firstIndex(of: "=") else {
            throw Refused(description: "'\(text)' is not \(form)")
        }
        var name = text[..<equals]
        let file = String(text[text.index(after: equals)...])
        var owner = guest ?? ""
        if guest == nil {
            guard let slash = name.firstIndex(of: "/") else { throw Refused(description: "'\(text)' is not \(form)") }
            owner = String(name[..<slash])
            name = name[name.index(after: slash)...]
            guard Store.isGuestName(owner) else {
                throw Refused(description: "'\(owner)' cannot be a replica's name (\(Store.guestNameRule))")
            }
        }
        guard FileSafeName.isValid(String(name)), !file.isEmpty else {
            throw Refused(description: "'\(text)' is not \(form)")
        }
        guard !isDevice || file.hasPrefix("/") else {
            throw Refused(description: "'\(file)' is no path from the root, by which a device is found again")
        }
        self.init(guest: owner, disk: String(name), file: file, isDevice: isDevice)
    }

    private var format: ImageFormat { file.hasSuffix(".qcow2") && !isDevice ? .qcow2 : .raw }

    /// Opens the file and what is below it. Throws when it is no disk.
    func open() throws -> ImageChain {
        if isDevice, try !DirectFile(path: file, mode: .readOnly, direct: false).isBlockDevice {
            throw Refused(description: "\(file) is no block device; a file is copied by --seed")
        }
        let chain = try ImageChain(path: file, format: format)
        guard chain.size > 0, chain.size % UInt64(Sizes.sector) == 0 else {
            throw Refused(
                description:
                    "the seed \(file) has \(chain.size) bytes, which is no disk (a multiple of \(Sizes.sector))")
        }
        return chain
    }

    var isRaw: Bool { format == .raw }

    /// What does not fit between seeds, by disk id, and a guest's disks; nil when everything does.
    static func mismatch(seeds: [String: UInt64], disks: [(id: String, size: UInt64)]) -> String? {
        for (id, size) in seeds.sorted(by: { $0.key < $1.key }) {
            guard let disk = disks.first(where: { $0.id == id }) else {
                let known = disks.map(\.id).joined(separator: ", ")
                return "the guest has no disk '\(id)' (it has: \(known)): name the seed after one of these"
            }
            guard disk.size == size else {
                return "the seed of disk '\(id)' has \(size) bytes, the guest's disk has \(disk.size): "
                    + "take a seed of this disk"
            }
        }
        return nil
    }
}

/// Copies a seed into a new secondary disk.
enum SeedCopy {
    private static let chunk = 4 << 20

    /// The disk is there as a whole or not at all when this returns. A raw seed on a file system that can share blocks
    /// is shared; otherwise it is read, holes left out, and blocks of zeroes are not written.
    ///
    /// `progress` gets the bytes of the disk that are done; throwing from it ends the copy.
    static func run(_ seed: DiskSeed, directory: String, progress: (UInt64) throws -> Void) throws {
        let chain = try seed.open()
        let target = "\(directory)/\(DiskFiles.secondary)"
        let temporary = target + DiskFiles.unfinishedSuffix
        try Directory.create(directory)
        if seed.isDevice {
            unlink(temporary)
            try Directory.link(temporary, to: seed.file)
            try Directory.rename(temporary, to: target)
            return try DirectFile.syncDirectory(directory)
        }
        do {
            let file = try DirectFile(path: temporary, mode: .createOrTruncate)
            if try !(seed.isRaw && file.clone(from: seed.file, length: chain.size)) {
                try file.truncate(to: chain.size)
                try copy(chain, file, progress)
            }
            try file.sync()
            try Directory.rename(temporary, to: target)
            try DirectFile.syncDirectory(directory)
            try progress(chain.size)
        } catch {
            unlink(temporary)
            throw error
        }
    }

    private static func copy(_ chain: ImageChain, _ file: DirectFile, _ progress: (UInt64) throws -> Void) throws {
        let staging = AlignedBuffer(minimumCount: chunk)
        var offset: UInt64 = 0
        while offset < chain.size {
            guard let extent = try chain.nextExtent(at: offset, limit: UInt64(chunk) - offset % UInt64(chunk)) else {
                break
            }
            let length = Int(extent.range.length)
            if !extent.isZero {
                let bytes = staging.slice(0, length)
                try chain.read(offset, into: bytes)
                try write(UnsafeRawBufferPointer(bytes), at: offset, to: file)
            }
            offset += extent.range.length
            try progress(offset)
        }
    }

    /// Writes all but blocks of zeroes.
    private static func write(_ bytes: UnsafeRawBufferPointer, at offset: UInt64, to file: DirectFile) throws {
        let block = Sizes.page
        var start = 0
        var done = 0
        while done < bytes.count {
            let length = min(block - Int((offset + UInt64(done)) % UInt64(block)), bytes.count - done)
            if ZeroBlocks.isZero(UnsafeRawBufferPointer(rebasing: bytes[done..<done + length])) {
                let data = UnsafeRawBufferPointer(rebasing: bytes[start..<done])
                if !data.isEmpty { try file.write(at: offset + UInt64(start), from: data) }
                start = done + length
            }
            done += length
        }
        let data = UnsafeRawBufferPointer(rebasing: bytes[start...])
        if !data.isEmpty { try file.write(at: offset + UInt64(start), from: data) }
    }
}
