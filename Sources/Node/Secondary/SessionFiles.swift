import AsyncIO
import Glibc
import Link
import QEMU
import SystemPackage
import Units

/// What one attach session said about its guest: the machine's identity and its RAM layout. Kept beside the state that
/// they belong to, since the next session's guest may be another machine: `STORE/GUEST/sessions/ID/{guest.json,layout}`.
///
/// Layout of `layout`, big endian: magic u32 "CBLL", version u8 1, zero u8[3], length of the payload u32, CRC-32C of
/// `guest.json` u32, payload of the link's ramLayout frame, CRC-32C of all before u32.
struct SessionFiles {
    enum Fault: Error, CustomStringConvertible {
        case damaged(path: String, reason: String)

        var description: String {
            switch self {
            case .damaged(let path, let reason):
                "\(path): \(reason); the replica cannot be started, attach the guest again"
            }
        }
    }

    private static let magic: UInt32 = 0x4342_4C4C
    private static let version: UInt8 = 1
    private static let headerLength = 16

    let identity: [UInt8]
    let layout: RamLayoutPayload

    var blocks: [RamBlockDescription] {
        layout.blocks.map { RamBlockDescription(name: $0.name, length: $0.length) }
    }

    /// The guest's machine, with its RAM layout.
    func machine() throws -> GuestIdentity {
        var machine = try GuestIdentity.decode(identity)
        machine.ramLayout = blocks
        return machine
    }

    /// Indices of the RAM blocks that a new QEMU maps from the cache; the others travel in the restore stream.
    func mappedBlocks() throws -> Set<Int> {
        let names = Set(FailoverCommand.mappableBlocks(try machine()))
        return Set(blocks.indices.filter { names.contains(blocks[$0].name) })
    }

    static func directory(_ guestDirectory: String, _ session: Identifier) -> String {
        "\(guestDirectory)/sessions/\(session.hex)"
    }

    func write(guestDirectory: String, session: Identifier, durable: Bool) throws {
        let directory = Self.directory(guestDirectory, session)
        try Directory.create("\(guestDirectory)/sessions")
        try Directory.create(directory)
        var payload = ByteWriter()
        layout.encode(into: &payload)
        var writer = ByteWriter()
        writer.write(Self.magic)
        writer.write(Self.version)
        writer.writeZeroes(3)
        writer.write(UInt32(payload.count))
        writer.write(CRC32C.checksum(identity))
        writer.write(bytes: payload.bytes)
        writer.write(CRC32C.checksum(writer.bytes))
        for (name, bytes) in [("guest.json", identity), ("layout", writer.bytes)] {
            try WholeFile.write("\(directory)/\(name)", bytes, durable: durable)
        }
        if durable {
            try DirectFile.syncDirectory(directory)
            try DirectFile.syncDirectory("\(guestDirectory)/sessions")
            try DirectFile.syncDirectory(guestDirectory)
        }
    }

    static func read(guestDirectory: String, session: Identifier) throws -> SessionFiles {
        let directory = directory(guestDirectory, session)
        let identity = try WholeFile.read("\(directory)/guest.json", limit: LinkLimits.identityMax)
        let path = "\(directory)/layout"
        let bytes = try WholeFile.read(path, limit: LinkLimits.payloadMax)
        guard bytes.count > headerLength + 4 else {
            throw Fault.damaged(path: path, reason: "only \(bytes.count) bytes")
        }
        return try bytes.withUnsafeBytes { raw in
            let body = UnsafeRawBufferPointer(rebasing: raw[..<(raw.count - 4)])
            let carried = UInt32(bigEndian: raw.loadUnaligned(fromByteOffset: raw.count - 4, as: UInt32.self))
            guard CRC32C.checksum(body) == carried else {
                throw Fault.damaged(path: path, reason: "its checksum is wrong")
            }
            var reader = ByteReader(body)
            guard try reader.read(UInt32.self) == magic else {
                throw Fault.damaged(path: path, reason: "not a layout file")
            }
            let version = try reader.read(UInt8.self)
            guard version == Self.version else {
                throw Fault.damaged(path: path, reason: "format \(version), this release reads format \(Self.version)")
            }
            try reader.skip(3)
            let length = Int(try reader.read(UInt32.self))
            let identityChecksum = try reader.read(UInt32.self)
            guard reader.remaining == length else { throw Fault.damaged(path: path, reason: "its length is wrong") }
            guard CRC32C.checksum(identity) == identityChecksum else {
                throw Fault.damaged(path: "\(directory)/guest.json", reason: "its checksum is wrong")
            }
            return SessionFiles(identity: identity, layout: try RamLayoutPayload.decode(try reader.readBytes(length)))
        }
    }

    /// Removes what earlier sessions left.
    static func removeOthers(guestDirectory: String, keeping session: Identifier) {
        let parent = "\(guestDirectory)/sessions"
        for name in (try? Directory.names(in: parent)) ?? [] where name != session.hex {
            for file in (try? Directory.names(in: "\(parent)/\(name)")) ?? [] {
                try? Directory.removeFile("\(parent)/\(name)/\(file)")
            }
            try? Directory.remove("\(parent)/\(name)")
        }
    }
}

/// Small files, read and written whole.
enum WholeFile {
    static func write(_ path: String, _ bytes: [UInt8], durable: Bool) throws(IOError) {
        let file = try DirectFile(path: path, mode: .createOrTruncate, direct: false)
        try file.write(at: 0, from: bytes)
        if durable { try file.sync() }
    }

    /// Throws when the file is longer than `limit`, before anything is allocated for it.
    static func read(_ path: String, limit: Int) throws(IOError) -> [UInt8] {
        let file = try DirectFile(path: path, mode: .readOnly, direct: false)
        let size = try file.size()
        guard size <= UInt64(limit) else {
            throw IOError(operation: "read", path: path, offset: size, errno: .fileTooLarge)
        }
        var bytes = [UInt8](repeating: 0, count: Int(size))
        var failure: IOError?
        bytes.withUnsafeMutableBytes { buffer in
            do throws(IOError) { try file.read(at: 0, into: buffer) } catch { failure = error }
        }
        if let failure { throw failure }
        return bytes
    }
}
