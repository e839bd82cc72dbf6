import Link
import RamCache
import Units

/// The model machine: small, with everything that is odd in real ones.
struct GuestShape {
    var diskSizes: [Int]
    /// Bytes, multiples of a page.
    var ramBlocks: [Int]

    var hello: [Hello.Disk] {
        diskSizes.enumerated().map { Hello.Disk(id: "vd\($0.offset)", size: UInt64($0.element)) }
    }

    var layoutPayload: RamLayoutPayload {
        RamLayoutPayload(
            ramSectionID: 2, configuration: Array("machine".utf8),
            blocks: ramBlocks.enumerated().map { .init(name: "block\($0.offset)", length: UInt64($0.element)) })
    }

    var ramBytes: Int { ramBlocks.reduce(0, +) }
}
