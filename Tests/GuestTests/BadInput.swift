import Testing

/// What bad input gets: a sentence that names the thing and the remedy, an exit code, and a guest that never noticed.
/// One after the other, since most share a guest.
@Suite("Bad input", .serialized, .enabled(if: FakeTool.binary != nil, FakeTool.missingBinary))
enum BadInput {}
