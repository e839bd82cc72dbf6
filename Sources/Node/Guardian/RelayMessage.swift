import QEMU

/// What guardian and agent say to each other over their socketpair: one JSON object per line in either direction.
///
/// Agent to guardian: `{"qmp": {"execute": …, "arguments": …, "id": n, "oob": bool, "timeout": ms}}`,
/// `{"heartbeat": n}`, `{"bye": {"reason": …, "exit": code, "commit": ns}}`; `commit` is the monotonic time of the last
/// commit and may be absent.
/// Guardian to agent: `{"hello": …}` first, `{"return": value, "id": n}`,
/// `{"error": {"kind": …, "command": …, …}, "id": n}`, `{"event": …}`, `{"detach": {"reason": …}}`.
enum RelayMessage: Equatable {
    // Agent to guardian.
    case command(QMPCommand, timeoutMilliseconds: Int64)
    case heartbeat(Int64)
    case bye(reason: String, exitCode: Int32, lastCommit: Int64?)
    // Guardian to agent.
    case hello(JSONValue)
    case answer(id: Int64, Result<JSONValue, QMPError>)
    case event(QMPEvent)
    case detach(reason: String)

    /// Nil when the object is none of these.
    init?(_ json: JSONValue) {
        if let command = json["qmp"] {
            guard let name = command["execute"]?.stringValue, let id = command["id"]?.intValue else { return nil }
            let timeout = command["timeout"]?.intValue ?? 5_000
            guard (0...600_000).contains(timeout) else { return nil }
            self = .command(
                QMPCommand(
                    name, arguments: command["arguments"], id: .integer(id),
                    outOfBand: command["oob"]?.boolValue ?? false), timeoutMilliseconds: timeout)
        } else if let beat = json["heartbeat"]?.intValue {
            self = .heartbeat(beat)
        } else if let bye = json["bye"] {
            guard let code = bye["exit"]?.intValue, let exit = Int32(exactly: code) else { return nil }
            self = .bye(
                reason: bye["reason"]?.stringValue ?? "", exitCode: exit, lastCommit: bye["commit"]?.intValue)
        } else if let hello = json["hello"] {
            self = .hello(hello)
        } else if let value = json["return"], let id = json["id"]?.intValue {
            self = .answer(id: id, .success(value))
        } else if let error = json["error"], let id = json["id"]?.intValue {
            self = .answer(id: id, .failure(Self.error(error)))
        } else if let event = json["event"], let name = event["event"]?.stringValue {
            self = .event(
                QMPEvent(
                    name: name, data: event["data"] ?? [:], seconds: event["seconds"]?.intValue ?? 0,
                    microseconds: event["microseconds"]?.intValue ?? 0))
        } else if let detach = json["detach"] {
            self = .detach(reason: detach["reason"]?.stringValue ?? "")
        } else {
            return nil
        }
    }

    /// The message as one line.
    func encoded() -> [UInt8] {
        json.encoded() + [UInt8(ascii: "\n")]
    }

    private var json: JSONValue {
        switch self {
        case .command(let command, let timeout):
            var members: [String: JSONValue] = [
                "execute": .string(command.name), "id": command.id ?? .null, "oob": .bool(command.outOfBand),
                "timeout": .integer(timeout),
            ]
            if let arguments = command.arguments { members["arguments"] = arguments }
            return ["qmp": .object(members)]
        case .heartbeat(let beat): return ["heartbeat": .integer(beat)]
        case .bye(let reason, let code, let commit):
            var members: [String: JSONValue] = ["reason": .string(reason), "exit": .integer(Int64(code))]
            if let commit { members["commit"] = .integer(commit) }
            return ["bye": .object(members)]
        case .hello(let value): return ["hello": value]
        case .answer(let id, .success(let value)): return ["return": value, "id": .integer(id)]
        case .answer(let id, .failure(let error)): return ["error": Self.json(error), "id": .integer(id)]
        case .event(let event):
            return [
                "event": [
                    "event": .string(event.name), "data": event.data, "seconds": .integer(event.seconds),
                    "microseconds": .integer(event.microseconds),
                ]
            ]
        case .detach(let reason): return ["detach": ["reason": .string(reason)]]
        }
    }

    private static func json(_ error: QMPError) -> JSONValue {
        switch error {
        case .refused(let command, let error):
            return [
                "kind": "refused", "command": .string(command), "class": .string(error.errorClass),
                "desc": .string(error.text),
            ]
        case .timedOut(let command, let after):
            return ["kind": "timed-out", "command": .string(command), "after": .integer(after.milliseconds)]
        case .closed(let command, let reason):
            return ["kind": "closed", "command": .string(command), "reason": .string(reason)]
        case .queueFull(let command): return ["kind": "queue-full", "command": .string(command)]
        }
    }

    private static func error(_ json: JSONValue) -> QMPError {
        let command = json["command"]?.stringValue ?? "?"
        switch json["kind"]?.stringValue {
        case "timed-out": return .timedOut(command: command, after: .milliseconds(json["after"]?.intValue ?? 0))
        case "closed": return .closed(command: command, reason: json["reason"]?.stringValue ?? "")
        case "queue-full": return .queueFull(command: command)
        default:
            return .refused(
                command: command,
                QMPCommandError(
                    errorClass: json["class"]?.stringValue ?? "GenericError", text: json["desc"]?.stringValue ?? ""))
        }
    }
}

extension Duration {
    /// Whole milliseconds, rounded down.
    var milliseconds: Int64 { components.seconds * 1_000 + components.attoseconds / 1_000_000_000_000_000 }
}
