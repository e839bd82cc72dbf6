import AsyncIO
import Checkpointer
import Glibc
import Link
import Logging
import TestSupport
import Testing
import Units

@testable import Node

/// After the host was restarted, everything that a guest would be started from comes from files; each of their bits is
/// looked at first.
@Suite("A flipped bit in a stopped store is found before a guest is started from it, and its file is named")
struct DamagedStoreTests {
    private let storeID = Identifier(high: 1, low: 2)
    /// Short, so that the store has a base.
    private static let logBytes: UInt64 = 100_000

    /// A store with a base, logs, device state, identity and layout.
    private final class Scene {
        let place: Place
        let storeID: Identifier
        var committed: TestMachine

        init(_ storeID: Identifier, seed: UInt64) throws {
            place = try Place()
            self.storeID = storeID
            try GuestStore.create(directory: place.directory)
            committed = TestMachine(
                disk: [UInt8](repeating: 7, count: 512 * 64),
                ram: TestPrimary.blocks.map { [UInt8](repeating: 0, count: $0.1) }, device: [])
            let store = try GuestStore(
                name: "g", directory: place.directory, ramDirectory: place.tmpfs, storeID: storeID,
                ramLogBytes: DamagedStoreTests.logBytes,
                log: Logger(label: "t", factory: { _ in SwiftLogNoOpLogHandler() }))
            let primary = TestPrimary(
                store: store, machine: committed, random: SplitMix64(seed: seed), durability: .disk)
            try primary.begin()
            for _ in 0..<12 {
                try primary.touchDisk(primary.epoch)
                primary.touchRam()
                try store.boundary(opened: primary.epoch.next)
                try primary.sendState(primary.epoch)
                try store.commit(primary.epoch)
                committed = primary.machine
                try store.apply(primary.epoch)
                // Background work; false: there is more of it.
                while try store.ram?.compactSlice(maxBytes: 1 << 20) == false {}
                primary.advance()
            }
            try store.endSession()
        }

        deinit { place.remove() }

        /// What the next start of the daemon finds, on a host that was restarted.
        func opened() throws -> GuestStore {
            try FileTree.remove(place.tmpfs)
            try place.makeTmpfs()
            return try GuestStore(
                name: "g", directory: place.directory, ramDirectory: place.tmpfs, storeID: storeID,
                ramLogBytes: DamagedStoreTests.logBytes,
                log: Logger(label: "t", factory: { _ in SwiftLogNoOpLogHandler() }))
        }

        func names(in folder: String) throws -> [String] {
            try Directory.names(in: "\(place.directory)/\(folder)").sorted()
        }
    }

    @Test("wherever it is", arguments: [1, 2, 3] as [UInt64])
    func anywhere(seed: UInt64) throws {
        let scene = try Scene(storeID, seed: seed)
        let intact = try scene.opened()
        #expect(intact.damage == nil)
        for block in scene.committed.ram.indices {
            #expect(intact.ram.map { Array($0.contents(block: block)) } == scene.committed.ram[block])
        }
        var random = SplitMix64(seed: seed)
        var kinds: Set<String> = []
        let session = try #require(try scene.names(in: "sessions").first)
        for folder in ["ram", "device", "sessions/" + session] {
            for name in try scene.names(in: folder) {
                let path = "\(scene.place.directory)/\(folder)/\(name)"
                let size = RamTestDirectory.size(path)
                kinds.insert(folder.prefix { $0 != "/" } + "/" + name.prefix { $0 != "-" } + name.suffix(4))
                for round in 0..<10 {
                    let offset = round == 0 ? 0 : round == 1 ? size - 1 : Int.random(in: 0..<size, using: &random)
                    let bit = UInt8.random(in: 0..<8, using: &random)
                    let what: Comment = "seed \(seed), bit \(bit) of byte \(offset) of \(folder)/\(name)"
                    RamTestDirectory.flip(path, at: offset, bit: bit)
                    let store = try scene.opened()
                    let damage = try #require(store.damage, what)
                    #expect(damage.contains(name), "\(what): \(damage)")
                    RamTestDirectory.flip(path, at: offset, bit: bit)
                }
            }
        }
        // Logs, a base with its checksums, device state, identity and layout.
        #expect(kinds.count == 6, "\(kinds)")
        #expect(try scene.opened().damage == nil)
    }

    @Test("a disk's file that was cut or has grown takes no session, even when what is missing would be zeroes")
    func cutDisk() throws {
        let scene = try Scene(storeID, seed: 6)
        let path = "\(scene.place.directory)/disks/d/secondary.raw"
        let size = 512 * 64
        for length in [size - 512, size + 512] {
            #expect(truncate(path, length) == 0)
            let store = try scene.opened()
            let primary = TestPrimary(
                store: store, machine: scene.committed, random: SplitMix64(seed: 7), durability: .disk)
            let refuse = #expect(throws: Refuse.self) { try primary.begin() }
            #expect(refuse?.code == .identityMismatch)
            #expect(refuse?.message.contains("'d'") == true && refuse?.message.contains("\(length)") == true)
        }
    }

    @Test("a commit record is not believed, and what recovery goes back to is said", arguments: [4, 5] as [UInt64])
    func commitRecord(seed: UInt64) throws {
        let scene = try Scene(storeID, seed: seed)
        let path = "\(scene.place.directory)/commit"
        var random = SplitMix64(seed: seed)
        let good = try #require(try CommitFile(path: path, store: storeID).found.record)
        for round in 0..<40 {
            let offset = Int.random(in: 0..<CommitSlots.fileLength, using: &random)
            let bit = UInt8.random(in: 0..<8, using: &random)
            RamTestDirectory.flip(path, at: offset, bit: bit)
            let choice = try CommitFile(path: path, store: storeID).found
            let slot = offset / CommitSlot.length
            #expect(choice.damaged?.slot == slot, "seed \(seed), round \(round), byte \(offset)")
            if slot == good.slot {
                #expect(choice.record?.sequence == good.sequence - 1, "seed \(seed), round \(round)")
            } else {
                #expect(choice.record == good, "seed \(seed), round \(round)")
            }
            let plan = RecoveryPlan(choice: choice, listing: try GuestFolder(path: scene.place.directory).listing())
            #expect(plan.findings.contains { $0.text.contains("commit slot \(slot)") }, "\(plan.findings)")
            RamTestDirectory.flip(path, at: offset, bit: bit)
        }
        // Both: nothing is believed.
        RamTestDirectory.flip(path, at: 77, bit: 1)
        RamTestDirectory.flip(path, at: CommitSlot.length + 77, bit: 1)
        #expect(throws: (any Error).self) { _ = try scene.opened() }
    }
}
