import NIOCore
import QEMU

/// Gives the bytes of a stream to its reader, however the socket has cut them. Of an item that is not whole its
/// beginning is kept; everything else is read where it is.
struct CutStream {
    /// Bytes that are copied behind the beginning of an item at once: a page with its address and the longest name fits.
    static let itemBytes = 4096 + 512

    /// Bytes that the reader has not yet taken: less than one item.
    private(set) var rest = ByteBuffer()

    /// Has the reader take what it can of the bytes kept and of these.
    ///
    /// - Parameter consume: gets everything at hand; returns how many bytes from the front it has taken.
    mutating func take(
        _ data: ByteBuffer, _ consume: (UnsafeRawBufferPointer) throws(MigrationStreamError) -> Int
    ) throws(MigrationStreamError) {
        var input = data
        while rest.readableBytes > 0, input.readableBytes > 0 {
            let held = rest.readableBytes
            let piece = min(input.readableBytes, Self.itemBytes)
            if let slice = input.getSlice(at: input.readerIndex, length: piece) { rest.writeImmutableBuffer(slice) }
            try Self.feed(&rest, consume)
            let taken = held + piece - rest.readableBytes
            if taken >= held {
                input.moveReaderIndex(forwardBy: taken - held)
                rest.clear()
            } else {
                // Still not whole, though something in front of it was taken.
                input.moveReaderIndex(forwardBy: piece)
            }
        }
        try Self.feed(&input, consume)
        if input.readableBytes > 0 { rest.writeBuffer(&input) }
    }

    private static func feed(
        _ input: inout ByteBuffer, _ consume: (UnsafeRawBufferPointer) throws(MigrationStreamError) -> Int
    ) throws(MigrationStreamError) {
        while input.readableBytes > 0 {
            var result: Result<Int, MigrationStreamError> = .success(0)
            input.withUnsafeReadableBytes { bytes in
                do throws(MigrationStreamError) {
                    result = .success(try consume(bytes))
                } catch {
                    result = .failure(error)
                }
            }
            let consumed = try result.get()
            input.moveReaderIndex(forwardBy: consumed)
            if consumed == 0 { return }
        }
    }
}
