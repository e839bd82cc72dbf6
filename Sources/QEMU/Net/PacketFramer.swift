/// Finds the packets in what a `filter-redirector` writes to its character device.
///
/// Each packet is `be32 length`, then, with `vnet_hdr_support=on`, `be32 length of the virtio-net header` (0 where the
/// network has none), then `length` bytes, of which the header is the first part. Back to QEMU goes the same, byte for
/// byte, so a packet is handed on with all of this in front. Sans-IO; after an error the stream cannot be read on.
public struct PacketFramer: Sendable {
    /// Bytes of a packet without what is in front: QEMU's own buffer for one.
    public static let packetMax = 4096 + 65536

    /// Why the stream cannot be understood.
    public struct Malformed: Error, Equatable, Sendable, CustomStringConvertible {
        public enum Reason: Equatable, Sendable {
            /// A packet has no bytes, or more than ``PacketFramer/packetMax``.
            case length(UInt32)
            /// The header is longer than its packet.
            case headerLength(UInt32, packet: UInt32)
        }

        public let reason: Reason
        /// Bytes from the start of the stream to the packet that is wrong.
        public let offset: UInt64

        public var description: String {
            let place = "the packet at byte \(offset) of the network filter"
            switch reason {
            case .length(let length):
                return "\(place) says that it has \(length) bytes, not 1 to \(PacketFramer.packetMax)"
            case .headerLength(let length, let packet):
                return "\(place) says that its header has \(length) of its \(packet) bytes"
            }
        }
    }

    /// Whether the filter has `vnet_hdr_support=on`.
    public let hasHeaderLength: Bool
    /// Bytes in front of each packet.
    public var prefixLength: Int { hasHeaderLength ? 8 : 4 }

    /// The beginning of a packet that has not come whole; at most one packet.
    private var rest: [UInt8] = []
    /// Offset of the next packet from the start of the stream.
    private var offset: UInt64 = 0

    public init(hasHeaderLength: Bool) {
        self.hasHeaderLength = hasHeaderLength
    }

    /// Bytes kept of a packet that has not come whole.
    public var pendingCount: Int { rest.count }

    /// Takes in what was read, however it was cut.
    /// - Parameter packet: called for each packet that is whole, in order, with what is in front of it. The bytes are
    ///   the caller's only during the call.
    public mutating func take(
        _ bytes: UnsafeRawBufferPointer, _ packet: (UnsafeRawBufferPointer) -> Void
    ) throws(Malformed) {
        var input = bytes
        while !rest.isEmpty, !input.isEmpty {
            let wanted = try missing
            let count = min(wanted, input.count)
            rest.append(contentsOf: input.prefix(count))
            input = UnsafeRawBufferPointer(rebasing: input.dropFirst(count))
            guard try missing == 0 else { continue }
            rest.withUnsafeBytes { packet($0) }
            offset += UInt64(rest.count)
            rest.removeAll(keepingCapacity: true)
        }
        while let length = try frameLength(input), length <= input.count {
            packet(UnsafeRawBufferPointer(rebasing: input.prefix(length)))
            offset += UInt64(length)
            input = UnsafeRawBufferPointer(rebasing: input.dropFirst(length))
        }
        rest.append(contentsOf: input)
    }

    /// How many bytes must follow ``rest``: of the prefix, and when that is there, of the packet.
    private var missing: Int {
        get throws(Malformed) {
            var length: Result<Int?, Malformed> = .success(nil)
            rest.withUnsafeBytes { bytes in
                do throws(Malformed) {
                    length = .success(try frameLength(bytes))
                } catch {
                    length = .failure(error)
                }
            }
            return (try length.get() ?? prefixLength) - rest.count
        }
    }

    /// Bytes of the packet at the front with its prefix; nil while the prefix is not whole.
    private func frameLength(_ bytes: UnsafeRawBufferPointer) throws(Malformed) -> Int? {
        guard bytes.count >= prefixLength else { return nil }
        let length = UInt32(bigEndian: bytes.loadUnaligned(as: UInt32.self))
        guard length >= 1, length <= UInt32(Self.packetMax) else {
            throw Malformed(reason: .length(length), offset: offset)
        }
        if hasHeaderLength {
            let header = UInt32(bigEndian: bytes.loadUnaligned(fromByteOffset: 4, as: UInt32.self))
            guard header <= length else {
                throw Malformed(reason: .headerLength(header, packet: length), offset: offset)
            }
        }
        return prefixLength + Int(length)
    }
}
