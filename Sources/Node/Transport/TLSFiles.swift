import Glibc

/// Where one side of a TLS connection has its credentials: paths only, so that it may stand on a command line.
public enum TLSFiles: Codable, Sendable, Equatable {
    /// A directory with `ca-cert.pem`, and `server-cert.pem` and `server-key.pem` or `client-cert.pem` and
    /// `client-key.pem`, as QEMU and nbdkit name them.
    case certificates(directory: String)
    /// A file of lines `user:key`, the key in hexadecimal, as `psktool` writes it.
    case sharedKey(file: String)
}

/// Something about certificates or keys is wrong; says what to do.
public struct TLSRefused: Error, CustomStringConvertible, Equatable {
    public let description: String
}

/// Reads files of certificates and keys: bounded, and keys only when nobody else can.
enum CredentialFile {
    private static let bytesMax = 1 << 20

    /// - Parameter isSecret: refused when others than its owner can read or write it.
    static func read(_ path: String, isSecret: Bool, help: String = "") throws(TLSRefused) -> [UInt8] {
        func refused(_ reason: String) -> TLSRefused {
            TLSRefused(description: "\(path) \(reason)" + (help.isEmpty ? "" : "; \(help)"))
        }
        // Not blocking: a fifo must not hold us up.
        let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard descriptor >= 0 else { throw refused("cannot be read: \(String(cString: strerror(errno)))") }
        defer { close(descriptor) }
        var status = stat()
        guard fstat(descriptor, &status) == 0, status.st_mode & S_IFMT == S_IFREG else {
            throw refused("is no regular file")
        }
        if isSecret, status.st_mode & 0o077 != 0 {
            throw TLSRefused(
                description: "\(path) can be read or changed by other users (mode "
                    + "\(String(status.st_mode & 0o777, radix: 8))) and is not used: chmod 600 it, and make new keys "
                    + "if somebody may have read it")
        }
        var bytes = [UInt8](repeating: 0, count: Self.bytesMax + 1)
        var count = 0
        while count < bytes.count {
            let got = bytes.withUnsafeMutableBytes { buffer in
                Glibc.read(descriptor, buffer.baseAddress?.advanced(by: count), buffer.count - count)
            }
            if got < 0, errno == EINTR { continue }
            guard got >= 0 else { throw refused("cannot be read: \(String(cString: strerror(errno)))") }
            if got == 0 { break }
            count += got
        }
        guard count <= Self.bytesMax else { throw refused("is longer than \(Self.bytesMax) bytes: no keys") }
        return Array(bytes[..<count])
    }
}
