import NBD
import NIOSSL

/// TLS of an NBD server: certificates both ways, or keys that both sides know.
public struct ExportTLS: Sendable {
    /// `allow` leaves it to the client, `required` refuses clear connections.
    public let mode: NBDTLSMode
    let context: NIOSSLContext

    /// NBD clients use GnuTLS, which has these.
    private static let suites: [NIOTLSCipher] = [
        .TLS_ECDHE_PSK_WITH_AES_256_CBC_SHA, .TLS_ECDHE_PSK_WITH_AES_128_CBC_SHA,
    ]

    /// Certificates (X.509), TLS 1.2 or newer; or shared keys, TLS 1.2 with ECDHE, the newest that BoringSSL has with
    /// them.
    ///
    /// - Parameter verifiesClients: clients must show a certificate that `ca-cert.pem` has signed. A client's address
    ///   says nothing about it; its certificate's chain does.
    public init(_ files: TLSFiles, mode: NBDTLSMode, verifiesClients: Bool = true) throws(TLSRefused) {
        context = try TLSCredentials(files, role: .server).context(
            minimum: .tlsv12, verifiesPeer: verifiesClients, suites: Self.suites)
        self.mode = mode
    }
}
