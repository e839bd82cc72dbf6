import Foundation
import Glibc

/// Why a test cannot go on, with what was seen.
struct TestFailure: Error, CustomStringConvertible {
    let description: String

    init(_ description: String) { self.description = description }
}

func describe(errno code: Int32) -> String { String(cString: strerror(code)) }

func pause(milliseconds: Int) { usleep(UInt32(milliseconds) * 1000) }

/// Seconds of a clock that only goes forward.
func monotonicSeconds() -> Double {
    var time = timespec()
    clock_gettime(CLOCK_MONOTONIC, &time)
    return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
}

/// Looks again and again until something holds; throws what was last seen when it does not in time.
/// - Returns: the seconds that it took.
@discardableResult
func waitUntil(
    _ what: String, within seconds: Double, every milliseconds: Int = 20, seen: () -> String = { "" },
    _ condition: () throws -> Bool
) throws -> Double {
    let start = monotonicSeconds()
    while true {
        if try condition() { return monotonicSeconds() - start }
        guard monotonicSeconds() - start < seconds else {
            let last = seen()
            throw TestFailure("not within \(seconds) s: \(what)" + (last.isEmpty ? "" : "; last seen: \(last)"))
        }
        pause(milliseconds: milliseconds)
    }
}

/// The last part of a text file, for failure messages.
func tail(of path: String, bytes: Int = 3000) -> String {
    guard let file = FileHandle(forReadingAtPath: path) else { return "(no file \(path))" }
    defer { try? file.close() }
    let end = (try? file.seekToEnd()) ?? 0
    try? file.seek(toOffset: end - min(end, UInt64(bytes)))
    return String(decoding: (try? file.readToEnd()) ?? Data(), as: UTF8.self)
}
