/// The last things that happened, for whoever reads about a failing seed.
struct Trace {
    private var lines: [String] = []
    private var next = 0
    private let limit: Int

    init(limit: Int) {
        self.limit = limit
    }

    mutating func add(_ line: @autoclosure () -> String) {
        guard limit > 0 else { return }
        if lines.count < limit {
            lines.append(line())
        } else {
            lines[next] = line()
            next = (next + 1) % limit
        }
    }

    /// Oldest first.
    var tail: [String] { Array(lines[next...] + lines[..<next]) }
}
