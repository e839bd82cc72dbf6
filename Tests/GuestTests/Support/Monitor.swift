import Foundation
import Glibc

/// A client of QEMU's monitor that waits for its answers and keeps the events that come in between.
final class Monitor {
    struct Event {
        let name: String
        let data: JSON
        /// QEMU's own time, seconds since 1970.
        let time: Double
    }

    let path: String
    private let descriptor: Int32
    private var received: [UInt8] = []
    /// Events so far, oldest first.
    private(set) var events: [Event] = []
    private var lastID = 0

    init(path: String, within seconds: Double = 10) throws {
        self.path = path
        var connected: Int32 = -1
        var reason = ""
        try waitUntil("the monitor \(path) accepts", within: seconds, seen: { reason }) {
            do {
                connected = try Monitor.connect(path)
                return true
            } catch {
                reason = "\(error)"
                return false
            }
        }
        descriptor = connected
        let greeting = try next(within: seconds)
        guard greeting["QMP"].exists else { throw TestFailure("\(path) greets with \(greeting)") }
        try execute("qmp_capabilities")
    }

    deinit { close(descriptor) }

    private static func connect(_ path: String) throws -> Int32 {
        let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else { throw TestFailure("socket: \(describe(errno: errno))") }
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        guard bytes.count < MemoryLayout.size(ofValue: address.sun_path) else {
            throw TestFailure("the path of the socket is too long: \(path)")
        }
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
        let code = withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                Glibc.connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        guard code == 0 else {
            let reason = describe(errno: errno)
            close(descriptor)
            throw TestFailure("connect to \(path): \(reason)")
        }
        return descriptor
    }

    /// Runs one command; throws when QEMU refuses it, when it does not answer in time and when it is gone.
    @discardableResult
    func execute(_ command: String, _ arguments: [String: Any] = [:], within seconds: Double = 20) throws -> JSON {
        lastID += 1
        var message: [String: Any] = ["execute": command, "id": lastID]
        if !arguments.isEmpty { message["arguments"] = arguments }
        var bytes = Array(try JSONSerialization.data(withJSONObject: message))
        bytes.append(UInt8(ascii: "\n"))
        guard send(descriptor, bytes, bytes.count, Int32(MSG_NOSIGNAL)) == bytes.count else {
            throw TestFailure("\(path): \(command) cannot be sent: \(describe(errno: errno))")
        }
        let end = monotonicSeconds() + seconds
        while true {
            let answer = try next(within: max(0, end - monotonicSeconds()))
            // The answer to a command that was given up may still come.
            if keep(answer) || answer["id"].int != lastID { continue }
            if answer["error"].exists { throw TestFailure("\(command): \(answer["error"])") }
            return answer["return"]
        }
    }

    /// Takes in what has come meanwhile, for at most so long.
    func drain(milliseconds: Int = 0) throws {
        let end = monotonicSeconds() + Double(milliseconds) / 1000
        while let message = try line(until: end) { _ = keep(try JSON(parsing: message)) }
    }

    /// The longest time from a STOP to its RESUME among the events from `first` on, in seconds.
    func longestPause(from first: Int) -> Double {
        var stopped: Double?
        var longest = 0.0
        for event in events[min(first, events.count)...] {
            switch event.name {
            case "STOP": stopped = event.time
            case "RESUME":
                longest = max(longest, stopped.map { event.time - $0 } ?? 0)
                stopped = nil
            default: continue
            }
        }
        return longest
    }

    private func keep(_ message: JSON) -> Bool {
        guard let name = message["event"].string else { return false }
        let stamp = message["timestamp"]
        let time = (stamp["seconds"].double ?? 0) + (stamp["microseconds"].double ?? 0) / 1e6
        events.append(Event(name: name, data: message["data"], time: time))
        return true
    }

    private func next(within seconds: Double) throws -> JSON {
        guard let message = try line(until: monotonicSeconds() + seconds) else {
            throw TestFailure("\(path): no answer within \(seconds) s")
        }
        return try JSON(parsing: message)
    }

    /// One line; nil when none comes until then.
    private func line(until end: Double) throws -> Data? {
        while true {
            if let newline = received.firstIndex(of: UInt8(ascii: "\n")) {
                let line = Data(received[..<newline])
                received.removeSubrange(...newline)
                return line
            }
            var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
            let left = Int32(max(0, (end - monotonicSeconds()) * 1000).rounded(.up))
            let ready = poll(&entry, 1, left)
            if ready == 0 { return nil }
            if ready < 0 {
                if errno == EINTR { continue }
                throw TestFailure("\(path): poll: \(describe(errno: errno))")
            }
            var buffer = [UInt8](repeating: 0, count: 65536)
            let count = recv(descriptor, &buffer, buffer.count, 0)
            guard count > 0 else { throw TestFailure("\(path): the monitor is closed") }
            received += buffer[..<count]
        }
    }
}
