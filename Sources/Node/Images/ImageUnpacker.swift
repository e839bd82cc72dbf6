import CZlib
import CZstd
import Qcow2

/// Unpacks compressed clusters of an image. Owns one context of its library; confined to its owner's thread.
///
/// It writes into the target only and never allocates by what the bytes say, but for zstd's window, which is bounded.
final class ImageUnpacker {
    private var zlib = z_stream()
    private var hasZlib = false
    private var zstd: OpaquePointer?

    /// log2 of the largest zstd window that is allocated, in bytes. A cluster has 2 MiB at most; no compressor needs more.
    private static let windowBits: Int32 = 23

    init() {}

    deinit {
        if hasZlib { inflateEnd(&zlib) }
        if let zstd { _ = ZSTD_freeDCtx(zstd) }
    }

    /// Fills all of `target`; what is behind the compressed stream is ignored, as sectors are rounded up. Returns what is
    /// wrong with the bytes, nil when nothing is.
    func unpack(
        _ source: UnsafeRawBufferPointer, into target: UnsafeMutableRawBufferPointer, _ compression: ImageCompression
    ) -> String? {
        switch compression {
        case .zlib: inflate(source, target)
        case .zstd: decompress(source, target)
        }
    }

    private func inflate(_ source: UnsafeRawBufferPointer, _ target: UnsafeMutableRawBufferPointer) -> String? {
        if hasZlib {
            inflateReset(&zlib)
        } else {
            // Raw deflate; the largest window takes what any compressor made.
            let answer = inflateInit2_(&zlib, -15, ZLIB_VERSION, Int32(MemoryLayout<z_stream>.size))
            guard answer == Z_OK else { return "zlib cannot start (\(answer))" }
            hasZlib = true
        }
        zlib.next_in = UnsafeMutablePointer(
            mutating: source.baseAddress?.assumingMemoryBound(to: UInt8.self))
        zlib.avail_in = UInt32(source.count)
        zlib.next_out = target.baseAddress?.assumingMemoryBound(to: UInt8.self)
        zlib.avail_out = UInt32(target.count)
        let answer = CZlib.inflate(&zlib, Z_FINISH)
        if (answer == Z_STREAM_END || answer == Z_BUF_ERROR) && zlib.avail_out == 0 { return nil }
        if answer == Z_DATA_ERROR { return "zlib: the stream is damaged" }
        return "zlib: it gives \(target.count - Int(zlib.avail_out)) of \(target.count) bytes"
    }

    private func decompress(_ source: UnsafeRawBufferPointer, _ target: UnsafeMutableRawBufferPointer) -> String? {
        if zstd == nil {
            zstd = ZSTD_createDCtx()
            _ = ZSTD_DCtx_setParameter(zstd, ZSTD_d_windowLogMax, Self.windowBits)
        }
        guard let zstd else { return "zstd cannot start" }
        _ = ZSTD_DCtx_reset(zstd, ZSTD_reset_session_only)
        var input = ZSTD_inBuffer(src: source.baseAddress, size: source.count, pos: 0)
        var output = ZSTD_outBuffer(dst: target.baseAddress, size: target.count, pos: 0)
        while output.pos < output.size {
            let before = (input.pos, output.pos)
            let answer = ZSTD_decompressStream(zstd, &output, &input)
            if ZSTD_isError(answer) != 0 { return "zstd: \(String(cString: ZSTD_getErrorName(answer)))" }
            if output.pos == output.size { break }
            guard (input.pos, output.pos) != before, input.pos < input.size else {
                return "zstd: it gives \(output.pos) of \(output.size) bytes"
            }
        }
        return nil
    }
}
