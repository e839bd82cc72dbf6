/// What an overlay maps, in memory: one bit for each unit of the disk, and where the L2 tables lie.
///
/// Memory is taken for parts of 32,768 units (128 MiB of disk at 4 KiB) when something in them is first mapped: at most
/// 36 KiB for each.
struct OverlayMap: Sendable {
    private static let unitsPerPart = 32_768

    private struct Part: Sendable {
        /// One bit for each unit.
        var bits = [UInt64](repeating: 0, count: OverlayMap.unitsPerPart / 64)
        /// Place of each L2 table in the file; 0 where there is none.
        var tables: [UInt64]
    }

    private let unitsPerTable: UInt64
    private let tablesPerPart: UInt64
    private var parts: [Part?]

    /// `unitsPerTable` is a power of two, at most 32,768.
    init(units: UInt64, unitsPerTable: Int) {
        precondition(Self.unitsPerPart % unitsPerTable == 0)
        self.unitsPerTable = UInt64(unitsPerTable)
        tablesPerPart = UInt64(Self.unitsPerPart / unitsPerTable)
        parts = Array(repeating: nil, count: Int((units - 1) / UInt64(Self.unitsPerPart)) + 1)
    }

    /// The L2 table that maps the unit.
    @inline(__always)
    func table(of unit: UInt64) -> UInt64 { unit / unitsPerTable }

    @inline(__always)
    func contains(_ unit: UInt64) -> Bool {
        let within = Int(unit % UInt64(Self.unitsPerPart))
        guard let part = parts[Int(unit / UInt64(Self.unitsPerPart))] else { return false }
        return part.bits[within >> 6] & 1 << UInt64(within & 63) != 0
    }

    /// Notes that the unit is mapped; false when it was already. Its table must have been set.
    mutating func insert(_ unit: UInt64) -> Bool {
        let within = Int(unit % UInt64(Self.unitsPerPart))
        let index = Int(unit / UInt64(Self.unitsPerPart))
        let mask: UInt64 = 1 << UInt64(within & 63)
        guard let word = parts[index]?.bits[within >> 6], word & mask == 0 else { return false }
        parts[index]?.bits[within >> 6] = word | mask
        return true
    }

    /// Place of a table in the file in bytes; 0 when there is none.
    func tableOffset(_ table: UInt64) -> UInt64 {
        parts[Int(table / tablesPerPart)]?.tables[Int(table % tablesPerPart)] ?? 0
    }

    mutating func setTable(_ table: UInt64, offset: UInt64) {
        let index = Int(table / tablesPerPart)
        if parts[index] == nil { parts[index] = Part(tables: Array(repeating: 0, count: Int(tablesPerPart))) }
        parts[index]?.tables[Int(table % tablesPerPart)] = offset
    }
}
