/// What a QMP server says first: its version and what it can do beyond the basic protocol.
public struct QMPGreeting: Sendable, Equatable, Codable {
    public let version: QEMUVersion
    /// Names of the protocol's extensions that may be enabled; "oob" is the only one so far.
    public let capabilities: [String]

    public init(version: QEMUVersion, capabilities: [String]) {
        self.version = version
        self.capabilities = capabilities
    }

    public var offersOutOfBand: Bool { capabilities.contains("oob") }
}

/// A version of QEMU: three numbers and the distributor's text, as in the greeting and in `query-version`.
public struct QEMUVersion: Sendable, Hashable, Comparable, Codable, CustomStringConvertible {
    public let major: Int
    public let minor: Int
    public let micro: Int
    /// For instance "Debian 1:7.2+dfsg-7+deb12u18"; empty for a build from upstream.
    public let package: String

    public init(_ major: Int, _ minor: Int, _ micro: Int, package: String = "") {
        self.major = major
        self.minor = minor
        self.micro = micro
        self.package = package
    }

    /// Reads `{"qemu": {"major":…, "minor":…, "micro":…}, "package": …}`.
    public init?(_ json: JSONValue?) {
        guard let major = json?["qemu"]?["major"]?.intValue, let minor = json?["qemu"]?["minor"]?.intValue,
            let micro = json?["qemu"]?["micro"]?.intValue,
            [major, minor, micro].allSatisfy({ (0...999_999).contains($0) })
        else { return nil }
        self.init(Int(major), Int(minor), Int(micro), package: json?["package"]?.stringValue ?? "")
    }

    /// Compares the numbers only.
    public static func < (lhs: QEMUVersion, rhs: QEMUVersion) -> Bool {
        (lhs.major, lhs.minor, lhs.micro) < (rhs.major, rhs.minor, rhs.micro)
    }

    public var description: String {
        "\(major).\(minor).\(micro)" + (package.isEmpty ? "" : " (\(package))")
    }
}

/// QEMU's refusal of one command.
public struct QMPCommandError: Sendable, Equatable, Error, CustomStringConvertible {
    /// "GenericError" nearly always; "CommandNotFound", "DeviceNotFound", …
    public let errorClass: String
    /// QEMU's words.
    public let text: String

    public init(errorClass: String, text: String) {
        self.errorClass = errorClass
        self.text = text
    }

    public var isUnknownCommand: Bool { errorClass == "CommandNotFound" }
    public var description: String { errorClass == "GenericError" ? text : "\(text) (\(errorClass))" }
}

/// Something that happened in the guest or in QEMU.
public struct QMPEvent: Sendable, Equatable {
    public let name: String
    /// An object; empty when the event has no data.
    public let data: JSONValue
    /// QEMU's wall clock; seconds since 1970.
    public let seconds: Int64
    public let microseconds: Int64

    public init(name: String, data: JSONValue = [:], seconds: Int64 = 0, microseconds: Int64 = 0) {
        self.name = name
        self.data = data
        self.seconds = seconds
        self.microseconds = microseconds
    }
}

/// One message of a QMP server.
public enum QMPMessage: Sendable, Equatable {
    case greeting(QMPGreeting)
    /// A command succeeded. The id is the command's; nil when it had none.
    case success(id: JSONValue?, value: JSONValue)
    /// A command was refused. A message that QEMU could not parse is answered without an id.
    case failure(id: JSONValue?, QMPCommandError)
    case event(QMPEvent)

    /// Reads one object; nil when it is none of the four.
    public init?(_ json: JSONValue) {
        if let greeting = json["QMP"] {
            guard let version = QEMUVersion(greeting["version"]) else { return nil }
            let names = greeting["capabilities"]?.arrayValue?.compactMap(\.stringValue) ?? []
            self = .greeting(QMPGreeting(version: version, capabilities: names))
        } else if let value = json["return"] {
            self = .success(id: json["id"], value: value)
        } else if let error = json["error"] {
            guard let text = error["desc"]?.stringValue else { return nil }
            let errorClass = error["class"]?.stringValue ?? "GenericError"
            self = .failure(id: json["id"], QMPCommandError(errorClass: errorClass, text: text))
        } else if let name = json["event"]?.stringValue {
            self = .event(
                QMPEvent(
                    name: name, data: json["data"] ?? [:],
                    seconds: json["timestamp"]?["seconds"]?.intValue ?? 0,
                    microseconds: json["timestamp"]?["microseconds"]?.intValue ?? 0))
        } else {
            return nil
        }
    }
}
