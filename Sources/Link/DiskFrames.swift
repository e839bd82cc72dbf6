import Units

/// Data written to a disk. The data stay where the frame's payload is; nothing is copied.
public struct DiskWrite {
    /// Bytes before the data.
    public static let prefixLength = 10

    /// Index into ``Hello/disks``.
    public let disk: Int
    /// Bytes from the start of the disk.
    public let offset: UInt64
    /// 1 byte to 1 MiB, borrowed from the payload.
    public let data: UnsafeRawBufferPointer

    public var range: ByteRange { ByteRange(offset: offset, length: UInt64(data.count)) }

    /// Appends what comes before the data.
    public static func encodePrefix(disk: Int, offset: UInt64, into writer: inout ByteWriter) {
        writer.write(UInt16(disk))
        writer.write(offset)
    }

    /// Header of the frame whose payload is `prefix` (from ``encodePrefix(disk:offset:into:)``) and `data`.
    public static func header(
        disk: Int, offset: UInt64, data: UnsafeRawBufferPointer, generation: Generation, epoch: Epoch
    ) -> (header: FrameHeader, prefix: [UInt8]) {
        var writer = ByteWriter(reservingCapacity: prefixLength)
        encodePrefix(disk: disk, offset: offset, into: &writer)
        let header = writer.bytes.withUnsafeBytes {
            FrameHeader(kind: .diskWrite, generation: generation, epoch: epoch, pieces: $0, data)
        }
        return (header, writer.bytes)
    }

    public static func decode(_ payload: UnsafeRawBufferPointer) throws(LinkError) -> DiskWrite {
        var reader = PayloadReader(.diskWrite, payload)
        let disk = Int(try reader.read(UInt16.self))
        let offset: UInt64 = try reader.read()
        let data = try reader.rest()
        guard !data.isEmpty, ByteRange(checking: offset, length: UInt64(data.count)) != nil else {
            throw reader.bad("range", at: 2, "\(offset)+\(data.count) is empty or wraps around")
        }
        return DiskWrite(disk: disk, offset: offset, data: data)
    }
}

/// A range of a disk that becomes zeroes, or whose contents no longer matter.
public struct DiskExtent: Equatable, Sendable, LinkPayload {
    /// Length of the payload in bytes.
    public static let length = 18

    /// ``FrameKind/diskZeroes`` or ``FrameKind/diskDiscard``.
    public let kind: FrameKind
    /// Index into ``Hello/disks``.
    public let disk: Int
    /// Not empty.
    public let range: ByteRange

    public static func zeroes(disk: Int, range: ByteRange) -> DiskExtent {
        DiskExtent(kind: .diskZeroes, disk: disk, range: range)
    }

    public static func discard(disk: Int, range: ByteRange) -> DiskExtent {
        DiskExtent(kind: .diskDiscard, disk: disk, range: range)
    }

    public func encode(into writer: inout ByteWriter) {
        writer.write(UInt16(disk))
        writer.write(range.offset)
        writer.write(range.length)
    }

    /// Decodes the payload of a zeroes or discard frame. Traps when `kind` is another.
    public static func decode(_ payload: UnsafeRawBufferPointer, kind: FrameKind) throws(LinkError) -> DiskExtent {
        precondition(kind == .diskZeroes || kind == .diskDiscard)
        var reader = PayloadReader(kind, payload)
        let disk = Int(try reader.read(UInt16.self))
        let offset: UInt64 = try reader.read()
        let length: UInt64 = try reader.read()
        try reader.finish()
        guard length > 0, let range = ByteRange(checking: offset, length: length) else {
            throw reader.bad("range", at: 2, "\(offset)+\(length) is empty or wraps around")
        }
        return DiskExtent(kind: kind, disk: disk, range: range)
    }
}
