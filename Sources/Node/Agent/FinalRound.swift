/// How much of the guest's memory QEMU leaves for the time when the guest stands still, at the end of the initial copy.
///
/// QEMU stops the guest when it could hand over what is left within its `downtime-limit`, at the highest speed that
/// it has just seen. That is the speed of the link, since we read no faster. But the last round goes into our memory,
/// not over the link. So the limit is kept such that the last round is as long as our memory allows and no longer: a
/// slow link does not make the copy endless, and a fast one does not make the last round larger than the budget.
struct FinalRound {
    /// Samples that count: those of the last two seconds or so.
    private static let samplesMax = 40
    /// Samples before which the limit is not raised. A first one that was slow says nothing of the next tenth of a second,
    /// and QEMU would leave everything for the last round.
    private static let samplesMin = 8
    /// QEMU takes no more: 2,000 seconds.
    private static let limitMax: UInt64 = 2_000_000

    /// Bytes of the first try: a pause of a tenth of a second or so.
    private static let bytesFirst: UInt64 = 16 << 20
    private static let bytesMax: UInt64 = 64 << 20
    /// Samples after which the last round may be twice as large: five seconds' worth. A guest that changes much while
    /// little is carried must stand still for longer, or is never done.
    private static let growthSamples = 100

    /// Bytes of the last round.
    private(set) var bytes: UInt64
    private let bytesMost: UInt64
    private var samples = 0
    /// Milliseconds for `downtime-limit`.
    private(set) var limit: UInt64
    private var speeds: [UInt64] = []

    /// - Parameter budget: bytes that may wait for the secondary.
    init(budget: UInt64) {
        bytesMost = min(budget / 4, Self.bytesMax)
        bytes = min(bytesMost, Self.bytesFirst)
        // Nothing is known yet; as on a machine that is fast.
        limit = max(1, (bytes * 1000) >> 30)
    }

    /// QEMU has handed over so many bytes in a second lately; 0: not known. Returns the new limit when it is worth a
    /// command.
    mutating func noted(bytesPerSecond: UInt64) -> UInt64? {
        guard bytesPerSecond > 0 else { return nil }
        samples += 1
        if samples % Self.growthSamples == 0 { bytes = min(bytes * 2, bytesMost) }
        if speeds.count == Self.samplesMax { speeds.removeFirst() }
        speeds.append(bytesPerSecond)
        // By the highest of them, since QEMU decides by the speed of a tenth of a second.
        let wanted = min(max(1, bytes * 1000 / (speeds.max() ?? 1)), Self.limitMax)
        guard wanted < limit - limit / 4 || wanted > limit + limit / 4 && samples >= Self.samplesMin else { return nil }
        limit = wanted
        return wanted
    }
}
