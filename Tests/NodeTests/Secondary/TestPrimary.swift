import Checkpointer
import Link
import QEMU
import RamCache
import TestSupport
import Units

@testable import Node

/// What the store must hold: a naive copy of the guest.
struct TestMachine: Equatable {
    var disk: [UInt8]
    var ram: [[UInt8]]
    var device: [UInt8]
}

/// A primary without sockets: writes to its machine and says the same to a store.
final class TestPrimary {
    static let blocks = [("pc.ram", 1 << 20), ("rom", 16 << 10)]

    let store: GuestStore
    let blocks: [(String, Int)]
    var machine: TestMachine
    var random: SplitMix64
    private let hello: Hello
    private let encoder = PageBatchEncoder(useDelta: true)
    private var shadow: [[UInt8]]
    private(set) var epoch: Epoch = .none

    init(
        store: GuestStore, machine: TestMachine, random: SplitMix64, durability: Durability,
        blocks: [(String, Int)] = TestPrimary.blocks
    ) {
        self.blocks = blocks
        self.store = store
        self.machine = machine
        self.random = random
        var random = random
        hello = Hello(
            protocolVersion: 1, guest: "g", session: Identifier(using: &random), durability: durability, label: "test",
            disks: [Hello.Disk(id: "d", size: UInt64(machine.disk.count))], generation: Generation(0),
            agentVersion: "test")
        self.random = random
        shadow = machine.ram.map { [UInt8](repeating: 0, count: $0.count) }
    }

    /// The initial copy, up to and without its commit.
    func begin() throws {
        epoch = try store.beginSession(hello)
        store.keepIdentity(try Self.identity())
        try store.layOutRam(
            RamLayoutPayload(
                ramSectionID: 2, configuration: [0, 0, 0, 4] + Array("none".utf8),
                blocks: blocks.map { RamLayoutPayload.Block(name: $0.0, length: UInt64($0.1)) }))
        // What the link's digests would tell.
        if let ram = store.continuedRam { shadow = blocks.indices.map { Array(ram.contents(block: $0)) } }
        try writeDisk()
    }

    static func identity() throws -> [UInt8] {
        var answers = GuestAnswers()
        answers.answers["query-version"] = ["qemu": ["major": 7, "minor": 2, "micro": 22], "package": ""]
        answers.machineType = "none-machine"
        return try GuestIdentity.capture(answers, arguments: ["qemu-system-x86_64", "-m", "1"]).encoded()
    }

    private func frame(_ offset: UInt64, _ data: UnsafeRawBufferPointer) -> UnsafeRawBufferPointer {
        var writer = ByteWriter()
        DiskWrite.encodePrefix(disk: 0, offset: offset, into: &writer)
        writer.write(buffer: data)
        scratch.copyBytes(from: writer.bytes)
        return UnsafeRawBufferPointer(rebasing: scratch[..<writer.count])
    }

    private let scratch = UnsafeMutableRawBufferPointer.allocate(byteCount: 2 << 20, alignment: 16)

    deinit { scratch.deallocate() }

    /// Random writes, zeroes and discards of the guest in `epoch`.
    func touchDisk(_ epoch: Epoch) throws {
        for _ in 0..<Int.random(in: 0...6, using: &random) {
            let sectors = machine.disk.count / 512
            let first = Int.random(in: 0..<sectors, using: &random)
            let count = Int.random(in: 1...min(64, sectors - first), using: &random)
            let range = first * 512..<(first + count) * 512
            if Int.random(in: 0..<4, using: &random) == 0 {
                for index in range { machine.disk[index] = 0 }
                let extent = ByteRange(offset: UInt64(range.lowerBound), length: UInt64(range.count))
                try store.zero(
                    epoch: epoch,
                    Bool.random(using: &random)
                        ? .zeroes(disk: 0, range: extent) : .discard(disk: 0, range: extent))
            } else {
                let value = UInt8.random(in: 0...255, using: &random)
                for index in range { machine.disk[index] = value &+ UInt8(truncatingIfNeeded: index / 512) }
                let bytes = Array(machine.disk[range])
                try bytes.withUnsafeBytes { data in
                    try store.write(epoch: epoch, try DiskWrite.decode(frame(UInt64(range.lowerBound), data)))
                }
            }
        }
    }

    /// All of the disk, in the open epoch.
    func writeDisk() throws {
        try machine.disk.withUnsafeBytes { bytes in
            for start in stride(from: 0, to: bytes.count, by: 1 << 20) {
                let piece = UnsafeRawBufferPointer(rebasing: bytes[start..<min(start + (1 << 20), bytes.count)])
                try store.write(epoch: epoch, try DiskWrite.decode(frame(UInt64(start), piece)))
            }
        }
    }

    func touchRam() {
        for _ in 0..<Int.random(in: 0...40, using: &random) {
            let block = Int.random(in: 0..<machine.ram.count, using: &random)
            let page = Int.random(in: 0..<machine.ram[block].count / 4096, using: &random)
            switch Int.random(in: 0..<3, using: &random) {
            case 0:
                for index in page * 4096..<(page + 1) * 4096 { machine.ram[block][index] = 0 }
            case 1:
                machine.ram[block][page * 4096 + Int.random(in: 0..<4096, using: &random)] &+= 1
            default:
                for index in page * 4096..<(page + 1) * 4096 {
                    machine.ram[block][index] = UInt8.random(in: 0...255, using: &random)
                }
            }
        }
        machine.device =
            [4]
            + (0..<Int.random(in: 4...5000, using: &random)).map { _ in
                UInt8.random(in: 0...255, using: &random)
            } + [0x7E, 0, 0, 0, 1, 0]
    }

    /// RAM that differs from what the store has, device state; up to and without the commit.
    func sendState(_ epoch: Epoch) throws {
        for block in machine.ram.indices {
            for page in 0..<machine.ram[block].count / 4096 {
                let range = page * 4096..<(page + 1) * 4096
                guard machine.ram[block][range] != shadow[block][range] else { continue }
                machine.ram[block].withUnsafeBytes { now in
                    shadow[block].withUnsafeMutableBytes { old in
                        guard let now = now.baseAddress, let old = old.baseAddress else { return }
                        encoder.add(
                            block: UInt16(block), page: UInt64(page), data: now + range.lowerBound,
                            shadow: old + range.lowerBound)
                    }
                }
                if encoder.isFull, let batch = encoder.finish() { try store.stage(epoch: epoch, batch) }
            }
        }
        if let batch = encoder.finish() { try store.stage(epoch: epoch, batch) }
        store.expectDeviceState()
        machine.device.withUnsafeBytes { store.appendDeviceState($0) }
    }

    func advance() { epoch = epoch.next }
}
