import AsyncIO
import BlockReplica
import Qcow2
import Units

/// Why a disk of a replica could not do what it was asked.
public enum DiskReplicaError: Error, Equatable, Sendable, CustomStringConvertible {
    /// A call on one of the disk's files failed.
    case io(IOError)
    /// A hidden or active disk cannot be made, or one that was found is damaged.
    case overlay(path: String, Qcow2Error)
    /// The disk's stage or its epochs do not allow it.
    case pipeline(PipelineError)
    /// The epoch's writes exceed the buffer, and they cannot be drained because an earlier epoch is not sealed.
    case budgetExceeded(limitBytes: Int)
    /// A range that is not inside the disk.
    case outside(ByteRange, size: UInt64)
    /// A range that is not a multiple of 512 bytes.
    case misaligned(ByteRange)
    /// A hidden disk that belongs to a disk of another size.
    case sizeMismatch(path: String, found: UInt64, expected: UInt64)
    /// A checkpoint that was being read cannot be kept any longer.
    case viewEnded(String)

    /// The store's file system is full.
    public var isNoSpace: Bool { if case .io(let error) = self { error.isNoSpace } else { false } }

    public var description: String {
        switch self {
        case .io(let error): error.description
        case .overlay(let path, let error): "\(path): \(error.description)"
        case .pipeline(let error): error.description
        case .budgetExceeded(let limit):
            "more than \(limit) bytes of writes wait for an earlier epoch to be sealed; slow the sender down"
        case .outside(let range, let size):
            "the range \(range) is not inside the disk of \(size) bytes; the sender's disk has another size"
        case .misaligned(let range): "the range \(range) is not a multiple of 512 bytes; the sender is at fault"
        case .viewEnded(let reason): "the view of this checkpoint has ended: \(reason)"
        case .sizeMismatch(let path, let found, let expected):
            "\(path) describes a disk of \(found) bytes, expected are \(expected); it belongs to another disk"
        }
    }
}
