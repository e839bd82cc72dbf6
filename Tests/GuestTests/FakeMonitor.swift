import Foundation
import Synchronization

/// A small QMP client of the tests' own.
final class FakeQMP {
    private let stream: FakeStream
    private var pending: [UInt8] = []

    /// Connects, reads the greeting and negotiates: from now on the monitor is ours.
    init(_ path: String) throws {
        stream = try FakeStream.connect(to: "unix:\(path)")
        stream.setReadLimit(10)
        guard try message()["QMP"] != nil else { throw FakeFailure("no QMP greeting at \(path)") }
        _ = try execute("qmp_capabilities")
    }

    @discardableResult
    func execute(_ command: String, _ arguments: [String: Any] = [:]) throws -> Any {
        var request: [String: Any] = ["execute": command]
        if !arguments.isEmpty { request["arguments"] = arguments }
        stream.write(try JSONSerialization.data(withJSONObject: request) + [10])
        while true {
            let answer = try message()
            if let value = answer["return"] { return value }
            if let error = answer["error"] { throw FakeFailure("\(command): \(error)") }
        }
    }

    private func message() throws -> [String: Any] {
        while true {
            if let end = pending.firstIndex(of: 10) {
                let line = Data(pending[..<end])
                pending.removeSubrange(...end)
                return try JSONSerialization.jsonObject(with: line) as? [String: Any] ?? [:]
            }
            let more = stream.read()
            guard !more.isEmpty else { throw FakeFailure("the monitor is silent or gone") }
            pending += more
        }
    }
}

/// Stands between a client and a real guest's monitor and tells the client another story where a test wants one.
final class FakeMonitor {
    typealias Message = [String: Any]

    /// Changes of the story; both run on the connections' threads.
    struct Story: Sendable {
        /// Sees every command, and may change it on its way to QEMU.
        var command: @Sendable (inout Message) -> Void = { _ in }
        /// Sees QEMU's answer to a command of this name, and may change it on its way back.
        var answer: @Sendable (_ command: String, inout Message) -> Void = { _, _ in }
    }

    let path: String
    private let folder: FakeFolder
    private let listener: FakeListener

    init(inFrontOf qmp: String, _ story: Story) throws {
        folder = try FakeFolder()
        path = folder["qmp.sock"]
        listener = try FakeListener("unix:\(path)") { client in
            guard let guest = try? FakeStream.connect(to: "unix:\(qmp)") else { return client.shut() }
            guest.setReadLimit(3600)
            client.setReadLimit(3600)
            let names = Names()
            Thread.detachNewThread {
                Self.pump(from: guest, to: client) { message in
                    guard let id = message["id"], let name = names.table.withLock({ $0.removeValue(forKey: "\(id)") })
                    else { return }
                    story.answer(name, &message)
                }
            }
            Self.pump(from: client, to: guest) { message in
                story.command(&message)
                guard let name = (message["execute"] ?? message["exec-oob"]) as? String, let id = message["id"] else {
                    return
                }
                names.table.withLock { $0["\(id)"] = name }
            }
        }
    }

    private final class Names: Sendable {
        let table = Mutex<[String: String]>([:])
    }

    /// Passes lines on until one side ends; then both do.
    private static func pump(from source: FakeStream, to target: FakeStream, _ change: (inout Message) -> Void) {
        var pending: [UInt8] = []
        while true {
            let more = source.read()
            if more.isEmpty { break }
            pending += more
            while let end = pending.firstIndex(of: 10) {
                let line = Array(pending[...end])
                pending.removeSubrange(...end)
                target.write(changed(line, change))
            }
        }
        source.shut()
        target.shut()
    }

    private static func changed(_ line: [UInt8], _ change: (inout Message) -> Void) -> [UInt8] {
        guard var message = try? JSONSerialization.jsonObject(with: Data(line)) as? Message else { return line }
        change(&message)
        guard let data = try? JSONSerialization.data(withJSONObject: message) else { return line }
        return Array(data) + [10]
    }
}
