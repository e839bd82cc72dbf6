/// The keys of a file of lines `user:key`.
struct PreSharedKeys: Sendable {
    private var keys: [String: [UInt8]] = [:]
    /// The user of the file's first key: who a client with this file is.
    let firstUser: String

    init(path: String) throws(TLSRefused) {
        let bytes = try CredentialFile.read(path, isSecret: true, help: "it should hold lines of user:key")
        try self.init(text: String(decoding: bytes, as: UTF8.self), path: path)
    }

    init(text: String, path: String) throws(TLSRefused) {
        var first: String?
        for (index, line) in text.split(separator: "\n", omittingEmptySubsequences: false).enumerated() {
            let trimmed = line.hasSuffix("\r") ? line.dropLast() : line
            if trimmed.isEmpty || trimmed.hasPrefix("#") { continue }
            func wrong(_ reason: String) -> TLSRefused {
                TLSRefused(
                    description: "\(path), line \(index + 1): \(reason); write user:key, key in hexadecimal")
            }
            guard let colon = trimmed.lastIndex(of: ":"), colon > trimmed.startIndex else {
                throw wrong("there is no user and colon")
            }
            guard let key = Self.bytes(trimmed[trimmed.index(after: colon)...]) else {
                throw wrong("the key is not hexadecimal")
            }
            guard (16...64).contains(key.count) else { throw wrong("a key has 16 to 64 bytes, this one \(key.count)") }
            let user = String(trimmed[..<colon])
            guard user.utf8.count <= 128 else { throw wrong("the user's name is longer than 128 bytes") }
            keys[user] = key
            if first == nil { first = user }
        }
        guard let first else { throw TLSRefused(description: "\(path) holds no key; write a line user:key") }
        firstUser = first
    }

    subscript(user: String) -> [UInt8]? { keys[user] }

    private static func bytes(_ text: Substring) -> [UInt8]? {
        let digits = text.compactMap(\.hexDigitValue)
        guard digits.count == text.count, digits.count % 2 == 0 else { return nil }
        return stride(from: 0, to: digits.count, by: 2).map { UInt8(digits[$0] << 4 | digits[$0 + 1]) }
    }
}
