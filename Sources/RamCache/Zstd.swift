import CZstd

/// Owns one compression context of libzstd. Confined to its owner's thread.
final class ZstdCompressor {
    private let context: OpaquePointer
    private let level: Int32

    /// Traps when the context cannot be allocated.
    init(level: Int32) {
        guard let context = ZSTD_createCCtx() else { preconditionFailure("out of memory: ZSTD_createCCtx") }
        self.context = context
        self.level = level
    }

    deinit { _ = ZSTD_freeCCtx(context) }

    /// The most bytes that `count` bytes can compress to.
    static func bound(_ count: Int) -> Int { ZSTD_compressBound(count) }

    /// Returns the compressed length, nil when it does not fit. Wraps `ZSTD_compressCCtx`.
    func compress(_ source: UnsafeRawBufferPointer, into target: UnsafeMutableRawBufferPointer) -> Int? {
        let length = ZSTD_compressCCtx(
            context, target.baseAddress, target.count, source.baseAddress, source.count, level)
        return ZSTD_isError(length) == 0 ? length : nil
    }
}

/// Owns one decompression context of libzstd. Confined to its owner's thread.
final class ZstdDecompressor {
    private let context: OpaquePointer

    /// Traps when the context cannot be allocated.
    init() {
        guard let context = ZSTD_createDCtx() else { preconditionFailure("out of memory: ZSTD_createDCtx") }
        self.context = context
    }

    deinit { _ = ZSTD_freeDCtx(context) }

    /// Returns the decompressed length, nil when the bytes are no zstd or do not fit. Never writes past `target`.
    /// Wraps `ZSTD_decompressDCtx`, which decodes straight into `target` and allocates no window.
    func decompress(_ source: UnsafeRawBufferPointer, into target: UnsafeMutableRawBufferPointer) -> Int? {
        let length = ZSTD_decompressDCtx(
            context, target.baseAddress, target.count, source.baseAddress, source.count)
        return ZSTD_isError(length) == 0 ? length : nil
    }
}
