import Glibc
import NIOSSL

/// Tells what an error of a TLS connection means and what to do about it.
enum TLSFailure {
    /// The connection ended without a word about credentials; it may be tried again.
    struct Interrupted: Error, CustomStringConvertible {
        let description: String
    }

    /// The error for people: ``TLSRefused`` when credentials are the cause and another attempt would end as this one
    /// did, ``Interrupted`` when the connection was lost. Errors that are not of TLS are returned as they are.
    ///
    /// - Parameters:
    ///   - role: what this side is.
    ///   - peer: the certificate that the other side has shown, as far as it is known.
    ///   - name: the host whose certificate was expected, for a client.
    static func explain(
        _ error: any Error, role: TLSCredentials.Role, peer: NIOSSLCertificate? = nil, name: String? = nil
    ) -> any Error {
        let other = role == .client ? "the secondary" : "the primary"
        switch error {
        case let extra as NIOSSLExtraError where extra == .failedToValidateHostname:
            return TLSRefused(
                description: "\(other)'s certificate is not one of \(name ?? "the address that --to names"): say "
                    + "--tls-name NAME with a name that is in it, or make new ones with 'colo-blk keys create'")
        case NIOSSLError.uncleanShutdown:
            return Interrupted(description: "the connection was cut")
        case NIOSSLError.handshakeFailed(let cause), NIOSSLError.shutdownFailed(let cause):
            return explain(cause, other, peer, role)
        case let cause as BoringSSLError:
            return explain(cause, other, peer, role)
        case is NIOSSLError, is NIOSSLExtraError:
            return TLSRefused(description: "TLS with \(other) failed: \(error)")
        default:
            return error
        }
    }

    private static func explain(
        _ cause: BoringSSLError, _ other: String, _ peer: NIOSSLCertificate?, _ role: TLSCredentials.Role
    ) -> any Error {
        guard case .sslError(let stack) = cause else {
            return Interrupted(description: "\(other) left during the TLS handshake (\(cause))")
        }
        if stack.contains(.eofDuringHandshake) {
            return Interrupted(description: "\(other) left during the TLS handshake")
        }
        let tokens = tokens(cause)
        let words = tokens.split(separator: " ").lazy.compactMap { Self.words(String($0), other, peer, role) }.first
        return TLSRefused(description: words ?? "TLS with \(other) failed: \(tokens)")
    }

    private static let remake = "make keys for both hosts with 'colo-blk keys create'"
    private static let kinds =
        "give both sides the same kind, --tls-certificates or --tls-psk"

    private static func words(
        _ token: String, _ other: String, _ peer: NIOSSLCertificate?, _ role: TLSCredentials.Role
    ) -> String? {
        switch token {
        case "CERTIFICATE_VERIFY_FAILED":
            return "\(other)'s certificate is not accepted: \(fault(of: peer, role)); \(remake)"
        case "SSLV3_ALERT_CERTIFICATE_EXPIRED":
            return "\(other) does not accept this side's certificate: it has expired or is not valid yet; \(remake)"
        case "TLSV1_ALERT_UNKNOWN_CA":
            return "\(other) does not accept this side's certificate: its authority is another one than the one in "
                + "that side's ca-cert.pem; \(remake)"
        case "SSLV3_ALERT_BAD_CERTIFICATE", "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE", "SSLV3_ALERT_CERTIFICATE_REVOKED",
            "SSLV3_ALERT_CERTIFICATE_UNKNOWN":
            return "\(other) does not accept this side's certificate: it is for another use, or damaged; \(remake)"
        case "PEER_DID_NOT_RETURN_A_CERTIFICATE":
            return "\(other) shows no certificate; give attach --tls-certificates"
        case "TLSV1_ALERT_CERTIFICATE_REQUIRED":
            return "\(other) wants a certificate, and this side has none; give --tls-certificates"
        case "WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST":
            return "\(other) does not speak TLS: \(kinds), or neither"
        case "TLSV1_ALERT_ACCESS_DENIED":
            return "\(other) takes clear text only: start 'colo-blk serve' with --tls-certificates or --tls-psk"
        case "UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION", "NO_SHARED_CIPHER",
            "SSLV3_ALERT_HANDSHAKE_FAILURE", "TLSV1_ALERT_INSUFFICIENT_SECURITY":
            return "\(other) has no kind of TLS in common with this side: \(kinds)"
        case "PSK_IDENTITY_NOT_FOUND":
            return "\(other) names a user whose key is not in this side's file; use the same --tls-psk on both hosts"
        case "TLSV1_ALERT_UNKNOWN_PSK_IDENTITY":
            return "\(other) has no key of this side's user; use the same --tls-psk on both hosts"
        case "DECRYPTION_FAILED_OR_BAD_RECORD_MAC", "SSLV3_ALERT_BAD_RECORD_MAC", "DIGEST_CHECK_FAILED",
            "TLSV1_ALERT_DECRYPT_ERROR", "BAD_DECRYPT":
            return "\(other) has another shared key, or what came was changed on its way; use the same --tls-psk on "
                + "both hosts"
        default:
            return nil
        }
    }

    /// What is wrong with a certificate that was refused, as far as it can be told.
    private static func fault(of peer: NIOSSLCertificate?, _ role: TLSCredentials.Role) -> String {
        let now = time(nil)
        if let peer, peer.notValidAfter < now {
            return "it expired on \(TLSCredentials.date(peer.notValidAfter))"
        }
        if let peer, peer.notValidBefore > now {
            return "it is not valid before \(TLSCredentials.date(peer.notValidBefore)); are both clocks right?"
        }
        let use = role == .client ? "a secondary" : "a primary"
        return "its authority is not the one in this side's ca-cert.pem, or it is not for \(use)"
    }

    /// The names that BoringSSL gives its reasons; the error itself when it has none.
    static func tokens(_ error: any Error) -> String {
        let text = "\(error)"
        // As in "error:1000007d:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED at …".
        let names = text.split(separator: " ").compactMap { word -> Substring? in
            guard word.contains("OPENSSL_internal:"), let name = word.split(separator: ":").last else { return nil }
            return name.prefix { $0.isUppercase || $0.isNumber || $0 == "_" }
        }
        return names.isEmpty ? text : names.joined(separator: " ")
    }
}
