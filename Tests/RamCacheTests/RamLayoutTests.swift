import RamCache
import Testing
import Units

@Suite struct RamLayoutTests {
    private static func layout() throws -> RamLayout {
        try RamLayout(blocks: [
            .init(name: "pc.ram", length: 1 << 20), .init(name: "vga.vram", length: 8192),
            .init(name: "/rom@etc/acpi/tables", length: 4096),
        ])
    }

    @Test func `pages are counted through all blocks and back`() throws {
        let layout = try Self.layout()
        #expect(layout.total == 1 << 20 + 12288)
        #expect(layout.pageCount == 259)
        for page in 0..<layout.pageCount {
            let place = layout.location(ofGlobalPage: page)
            #expect(layout.globalPage(block: place.block, page: place.page) == page)
            #expect(place.page < layout.blocks[place.block].pageCount)
        }
        #expect(layout.location(ofGlobalPage: 256).block == 1)
        #expect(layout.location(ofGlobalPage: 258).block == 2)
    }

    @Test func `only blocks of a mebibyte and more are mapped`() throws {
        let layout = try Self.layout()
        #expect(layout.isMapped(0))
        #expect(!layout.isMapped(1))
    }

    @Test func `the encoded layout reads back and every cut of it is refused`() throws {
        let layout = try Self.layout()
        let bytes = layout.encoded()
        let again = try bytes.withUnsafeBytes { try RamLayout(decoding: $0) }
        #expect(again == layout)
        #expect(again.digest == layout.digest)
        for count in 0..<bytes.count {
            #expect(throws: RamLayoutError.self) {
                try bytes[0..<count].withUnsafeBytes { _ = try RamLayout(decoding: $0) }
            }
        }
        #expect(throws: RamLayoutError.trailingBytes(offset: bytes.count)) {
            try (bytes + [0]).withUnsafeBytes { _ = try RamLayout(decoding: $0) }
        }
    }

    @Test func `the digest tells layouts apart by name, length and order`() throws {
        let first = try RamLayout(blocks: [.init(name: "a", length: 4096), .init(name: "b", length: 8192)])
        let swapped = try RamLayout(blocks: [.init(name: "b", length: 8192), .init(name: "a", length: 4096)])
        let renamed = try RamLayout(blocks: [.init(name: "c", length: 4096), .init(name: "b", length: 8192)])
        let longer = try RamLayout(blocks: [.init(name: "a", length: 8192), .init(name: "b", length: 8192)])
        #expect(Set([first.digest, swapped.digest, renamed.digest, longer.digest]).count == 4)
    }

    @Test func `impossible layouts are refused by name`() {
        #expect(throws: RamLayoutError.noBlocks) { try RamLayout(blocks: []) }
        #expect(throws: RamLayoutError.badLength(name: "x", length: 4097)) {
            try RamLayout(blocks: [.init(name: "x", length: 4097)])
        }
        #expect(throws: RamLayoutError.badLength(name: "x", length: 0)) {
            try RamLayout(blocks: [.init(name: "x", length: 0)])
        }
        #expect(throws: RamLayoutError.duplicateName("x")) {
            try RamLayout(blocks: [.init(name: "x", length: 4096), .init(name: "x", length: 4096)])
        }
        #expect(throws: RamLayoutError.badName(index: 0)) { try RamLayout(blocks: [.init(name: "", length: 4096)]) }
        #expect(throws: RamLayoutError.tooLarge(bytes: (1 << 40) + 4096)) {
            try RamLayout(blocks: [.init(name: "a", length: 1 << 40), .init(name: "b", length: 4096)])
        }
        #expect(throws: RamLayoutError.tooManyBlocks(1025)) {
            try RamLayout(blocks: (0..<1025).map { .init(name: "\($0)", length: 4096) })
        }
    }
}
