import NIOCore
import NIOSSL
import NIOTLS

/// TLS of the link: 1.3 with certificates both ways, or 1.2 with ECDHE and a key that both hosts know.
public struct LinkTLS: Sendable {
    private let role: TLSCredentials.Role
    private let context: NIOSSLContext
    /// For a client: the host whose certificate is wanted; nil: the address that is connected to.
    private let name: String?
    /// Something about this side's certificate that people should read.
    public let warning: String?

    private init(
        _ files: TLSFiles, role: TLSCredentials.Role, name: String?, verifiesName: Bool
    ) throws(TLSRefused) {
        let credentials = try TLSCredentials(files, role: role)
        self.role = role
        self.name = name
        context = try credentials.context(
            minimum: .tlsv13, verifiesName: verifiesName, suites: [Self.keySuite])
        warning = credentials.warning()
    }

    /// ECDHE-PSK with ChaCha20-Poly1305: the only one that BoringSSL has with an authenticated cipher.
    private static let keySuite = NIOTLSCipher(rawValue: 0xCCAC)

    /// For `serve`. Primaries must show a certificate of the same authority, made for clients.
    public static func secondary(_ files: TLSFiles) throws(TLSRefused) -> LinkTLS {
        try LinkTLS(files, role: .server, name: nil, verifiesName: false)
    }

    /// For `attach`. The secondary must show a certificate of the same authority, made for servers, and for the host
    /// that is connected to.
    ///
    /// - Parameter name: the host whose certificate it must be, when that is not the address's. A unix socket names no
    ///   host: without a name any secondary of the authority will do.
    public static func primary(_ files: TLSFiles, to address: Address, name: String?) throws(TLSRefused) -> LinkTLS {
        if let name {
            guard !isNumeric(name), (1...255).contains(name.utf8.count), !name.utf8.contains(0) else {
                throw TLSRefused(description: "'\(name)' is no host's name that --tls-name could take")
            }
            return try LinkTLS(files, role: .client, name: name, verifiesName: true)
        }
        guard case .tcp(let host, _) = address.place else {
            return try LinkTLS(files, role: .client, name: nil, verifiesName: false)
        }
        return try LinkTLS(files, role: .client, name: isNumeric(host) ? nil : host, verifiesName: true)
    }

    private static func isNumeric(_ host: String) -> Bool { (try? SocketAddress(ipAddress: host, port: 0)) != nil }

    /// What stands between the socket and the link's codec, from the socket on.
    func handlers() throws -> [any ChannelHandler] {
        let tls =
            role == .server
            ? NIOSSLServerHandler(context: context) : try NIOSSLClientHandler(context: context, serverHostname: name)
        return [tls, TLSWatch(tls, role: role, name: name)]
    }
}

/// Stands behind the TLS handler and turns its errors into words. The end of the connection is not an error: the link's
/// own frames say whether it was meant.
private final class TLSWatch: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    typealias InboundOut = ByteBuffer

    private let tls: NIOSSLHandler
    private let role: TLSCredentials.Role
    private let name: String?
    private var isEstablished = false
    private var hasHeard = false
    private var hasFailed = false

    init(_ tls: NIOSSLHandler, role: TLSCredentials.Role, name: String?) {
        self.tls = tls
        self.role = role
        self.name = name
    }

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        if case TLSUserEvent.handshakeCompleted = event { isEstablished = true }
        context.fireUserInboundEventTriggered(event)
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        hasHeard = true
        context.fireChannelRead(data)
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        if isEstablished, case NIOSSLError.uncleanShutdown = error { return }
        // What the failure itself has led to is not a second one.
        guard !hasFailed else { return }
        hasFailed = true
        context.fireErrorCaught(TLSFailure.explain(error, role: role, peer: tls.peerCertificate, name: name))
    }

    func channelInactive(context: ChannelHandlerContext) {
        // A client of TLS 1.3 ends the handshake first, and judges the name after it.
        if role == .server, isEstablished, !hasHeard, !hasFailed {
            context.fireErrorCaught(
                TLSRefused(
                    description: "the primary left after the TLS handshake without a word: it does not accept this "
                        + "side's certificate, or was ended; see its own log"))
        }
        context.fireChannelInactive()
    }
}
