import NBD
import Synchronization

/// A disk in memory, sparse: reads as zeroes and takes no room where nothing was written. For tests and measurements; it
/// answers on the caller's thread, before ``perform(_:)`` returns.
public final class MemoryDevice: ExportDevice {
    /// The kernel has no address space for so large a disk.
    public struct TooLarge: Error, CustomStringConvertible {
        public let size: UInt64
        public var description: String { "a disk of \(size) bytes does not fit into this machine's address space" }
    }

    public let size: UInt64
    public let isReadOnly: Bool
    public let capabilities: ExportCapabilities
    // The memory is reached under the lock only.
    private let contents: Mutex<MemoryContents>

    /// At most 1 TiB.
    public init(
        size: UInt64, isReadOnly: Bool = false,
        capabilities: ExportCapabilities = [.usual, .fastZero]
    ) throws(TooLarge) {
        guard size <= 1 << 40 else { throw TooLarge(size: size) }
        self.size = size
        self.isReadOnly = isReadOnly
        self.capabilities = capabilities
        contents = Mutex(MemoryContents(size: Int(size)))
    }

    public func perform(_ batch: ExportBatch) {
        contents.withLock { contents in
            for request in batch.requests { Self.perform(request, &contents, batch.replies) }
        }
    }

    /// Copies bytes out, for tests. Traps when the range does not lie inside.
    public func bytes(at offset: UInt64, count: Int) -> [UInt8] {
        precondition(offset <= size && UInt64(count) <= size - offset)
        return contents.withLock { contents in
            Array(UnsafeRawBufferPointer(start: contents.base + Int(offset), count: count))
        }
    }

    /// Copies bytes in, for tests. Traps when the range does not lie inside.
    public func set(_ bytes: [UInt8], at offset: UInt64) {
        precondition(offset <= size && UInt64(bytes.count) <= size - offset)
        contents.withLock { contents in
            bytes.withUnsafeBytes { contents.write($0, at: Int(offset)) }
        }
    }

    private static func perform(_ request: ExportRequest, _ contents: inout MemoryContents, _ replies: ExportReplies) {
        let offset = Int(request.offset)
        let end = offset + request.byteCount
        switch request.operation {
        case .read:
            contents.read(request, replies)
            return
        case .blockStatus:
            var extents: [ExportExtent] = []
            var place = offset
            while place < end, extents.count <= NBDLimits.extentsMax {
                let (isData, next) = contents.run(from: place, to: end)
                extents.append(isData ? .data(UInt64(next - place)) : .hole(UInt64(next - place)))
                place = next
            }
            replies.extents(request, extents)
            return
        case .write:
            request.withPayload { contents.write($0, at: offset) }
        case .zero, .trim:
            contents.clear(offset, end, givesBack: request.operation == .trim || request.mayPunchHole)
        case .flush, .cache:
            break
        }
        replies.done(request)
    }
}
