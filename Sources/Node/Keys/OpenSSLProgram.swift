import Subprocess
import SystemPackage

/// The `openssl` of the PATH.
enum OpenSSLProgram {
    struct Failed: Error, CustomStringConvertible {
        let description: String
    }

    /// Runs it to its end. Its files belong to this user alone when the umask says so.
    static func run(_ arguments: [String]) async throws(Failed) {
        do {
            // Nothing that a system's own configuration says may change what is made.
            let result = try await Subprocess.run(
                .name("openssl"), arguments: Arguments(arguments),
                environment: .inherit.updating(["OPENSSL_CONF": "/dev/null"]), output: .discarded,
                error: .string(limit: 64 << 10))
            guard result.terminationStatus.isSuccess else {
                throw Failed(
                    description: "openssl \(arguments.first ?? "") failed (\(result.terminationStatus)): "
                        + "\(result.standardError); version 3.0 or later is needed")
            }
        } catch let failed as Failed {
            throw failed
        } catch let error as SubprocessError where error.code == .executableNotFound {
            throw Failed(
                description: "the program openssl is not on the PATH: install it (apt install openssl), or make a "
                    + "shared key with --psk, which needs none")
        } catch {
            throw Failed(description: "openssl cannot be run: \(error)")
        }
    }
}
