import AsyncIO
import BlockReplica
import Glibc
import Logging
import NIOCore
import Synchronization
import Testing
import TestSupport
import Units

@testable import Node

@Suite("A checkpoint exported over NBD", .serialized, .enabled(if: Program.path(of: "qemu-img") != nil, "no qemu-img"))
struct ExportTests {
    private static let block = 64 << 10

    /// Not a multiple of 4 KiB long.
    private func disk(_ random: inout SplitMix64) -> [UInt8] {
        var disk = [UInt8](repeating: 0, count: 40 * Self.block + 1536)
        for start in stride(from: 0, to: disk.count, by: 8192) where Bool.random(using: &random) {
            let value = UInt8.random(in: 0...255, using: &random)
            for index in start..<min(start + 8192, disk.count) { disk[index] = value &+ UInt8(index & 31) }
        }
        return disk
    }

    private func change(_ disk: inout [UInt8], _ random: inout SplitMix64) {
        for _ in 0..<60 {
            let start = Int.random(in: 0..<disk.count / 512, using: &random) * 512
            let value = UInt8.random(in: 0...255, using: &random)
            for index in start..<min(start + 512 * Int.random(in: 1...30, using: &random), disk.count) {
                disk[index] = value
            }
        }
    }

    private func open(
        _ protection: Protection, _ place: Place, _ name: String, writable: Bool = false
    ) async throws -> (number: Int, report: ExportReport) {
        let replica = try #require(protection.daemon.replica("g"))
        return try await replica.export(
            ExportOptions(address: "unix:\(place.base)/\(name)", writable: writable)
        ) { reason in protection.told.withLock { $0.append(reason) } }
    }

    /// Runs a program while this process serves it: a thread of the tasks' pool must not wait for it.
    private func run(_ program: String, _ arguments: [String]) async throws -> Program.Outcome {
        try await BlockingTask.run(label: "test.program") { try Program.run(program, arguments) }.value
    }

    private func compare(_ report: ExportReport, _ disk: [UInt8], _ place: Place, _ words: String) async throws {
        let expected = "\(place.base)/expected"
        try WholeFile.write(expected, disk, durable: false)
        let outcome = try await run(
            "qemu-img", ["compare", "-f", "raw", "-F", "raw", expected, report.disks[0].uri])
        #expect(outcome.succeeded, "\(words): \(outcome.output) \(outcome.errors)")
    }

    @Test("views of several checkpoints stay what they were through later sessions and commits")
    func severalViews() async throws {
        let place = try Place()
        defer { place.remove() }
        let protection = try await Protection(place)
        var random = SplitMix64(seed: 11)
        var disk = disk(&random)
        var views: [(report: ExportReport, number: Int, disk: [UInt8])] = []
        for round in 0..<4 {
            _ = try await protection.protect(disk)
            let (number, report) = try await open(protection, place, "nbd\(round)")
            #expect(report.epoch == UInt64(round + 1))
            views.append((report, number, disk))
            for view in views {
                try await compare(view.report, view.disk, place, "view \(view.report.epoch), round \(round)")
            }
            change(&disk, &random)
        }
        let replica = try #require(protection.daemon.replica("g"))
        let status = await replica.status()
        #expect(status.exports?.map(\.epoch) == [1, 2, 3, 4])
        #expect(status.exports?[0].uris == [views[0].report.disks[0].uri])
        #expect(await replica.refusalToRemove()?.contains("exported") == true)
        for view in views { await replica.endExport(view.number) }
        #expect(await replica.status().exports == nil)
        #expect(!Directory.exists("\(place.base)/nbd0"))
        #expect(protection.told.withLock { $0.isEmpty })
        let left = try Directory.names(in: "\(protection.store)/g/disks/d")
        #expect(left == ["secondary.raw"], "\(left)")
        try await protection.stop()
    }

    @Test("what one client writes to a scratch is its own, and gone afterwards")
    func scratch() async throws {
        let place = try Place()
        defer { place.remove() }
        let protection = try await Protection(place)
        var random = SplitMix64(seed: 12)
        let disk = disk(&random)
        _ = try await protection.protect(disk)
        let (first, writable) = try await open(protection, place, "w", writable: true)
        let (second, other) = try await open(protection, place, "o", writable: true)
        let (third, readOnly) = try await open(protection, place, "r")
        var expected = disk
        var commands: [String] = []
        for (offset, length, value) in [(0, 512, 0x11), (5000, 3000, 0x22), (65536, 200_000, 0x33)] {
            commands += ["-c", "write -P \(value) \(offset) \(length)"]
            for index in offset..<offset + length { expected[index] = UInt8(value) }
        }
        for (offset, length) in [(1000, 100), (70_000, 50_000), (disk.count - 1000, 1000)] {
            commands += ["-c", "write -z \(offset) \(length)"]
            for index in offset..<offset + length { expected[index] = 0 }
        }
        let wrote = try await run("qemu-io", ["-f", "raw"] + commands + ["-c", "flush", writable.disks[0].uri])
        #expect(wrote.succeeded, "\(wrote.output) \(wrote.errors)")
        try await compare(writable, expected, place, "scratch")
        try await compare(other, disk, place, "another scratch")
        try await compare(readOnly, disk, place, "read-only")
        let refused = try await run("qemu-io", ["-f", "raw", "-c", "write 0 512", readOnly.disks[0].uri])
        #expect(!refused.succeeded || refused.output.contains("read-only") || refused.errors.contains("read-only"))
        var later = disk
        change(&later, &random)
        _ = try await protection.protect(later)
        try await compare(writable, expected, place, "scratch after a commit")
        let replica = try #require(protection.daemon.replica("g"))
        for number in [first, second, third] { await replica.endExport(number) }
        #expect(try protection.diskContents() == later)
        #expect(try Directory.names(in: "\(protection.store)/g/disks/d") == ["secondary.raw"])
        try await protection.stop()
    }

    @Test("a view that ends before its time tells its client and whoever opened it")
    func endings() async throws {
        let place = try Place()
        defer { place.remove() }
        let protection = try await Protection(place)
        var random = SplitMix64(seed: 13)
        let disk = disk(&random)
        let replica: GuestReplica
        do {
            _ = try await protection.protect(disk)
            replica = try #require(protection.daemon.replica("g"))
        }
        let (_, report) = try await open(protection, place, "a")
        try await compare(report, disk, place, "before")
        await replica.endExports("the replica failed over")
        #expect(protection.told.withLock { $0 }.first?.contains("failed over") == true)
        let after = try await run("qemu-img", ["info", report.disks[0].uri])
        #expect(!after.succeeded)
        #expect(await replica.status().exports == nil)
        try await protection.stop()
    }

    @Test("nothing committed, an unknown replica and a bad address are refused, and leave nothing behind")
    func refusals() async throws {
        let place = try Place()
        defer { place.remove() }
        let protection = try await Protection(place)
        var random = SplitMix64(seed: 14)
        let (connected, _) = try await protection.connect(size: 1 << 20)
        await #expect(throws: GuestStore.Failed.self) { try await open(protection, place, "x") }
        try await connected.channel.close()
        try await protection.waitForIdle()
        _ = try await protection.protect(disk(&random))
        let replica = try #require(protection.daemon.replica("g"))
        for address in ["", "nowhere", "unix:/nonexistent/socket"] {
            await #expect(throws: (any Error).self, "\(address)") {
                try await replica.export(ExportOptions(address: address)) { _ in }
            }
        }
        await #expect(throws: (any Error).self) {
            try await replica.export(
                ExportOptions(
                    address: "unix:\(place.base)/tls", tls: .certificates(directory: "/nonexistent"))
            ) { _ in }
        }
        #expect(await replica.status().exports == nil)
        try await protection.stop()
    }

    @Test("the verb's connection carries an export: it ends when the verb leaves")
    func verb() async throws {
        let place = try Place()
        defer { place.remove() }
        let protection = try await Protection(place)
        var random = SplitMix64(seed: 15)
        let disk = disk(&random)
        _ = try await protection.protect(disk)
        let access = StoreAccess(store: protection.store, log: protection.daemon.log)
        let (opened, isOpened) = AsyncStream.makeStream(of: ExportReport.self)
        let verb = Task {
            try await access.export(
                guest: "g", options: ExportOptions(address: "unix:\(place.base)/v")
            ) { isOpened.yield($0) }
        }
        var reports = opened.makeAsyncIterator()
        let report = try #require(await reports.next())
        try await compare(report, disk, place, "through the verb")
        #expect(try await access.statuses(guest: "g").first?.exports?.count == 1)
        verb.cancel()
        _ = await verb.result
        for _ in 0..<500 where try await access.statuses(guest: "g").first?.exports != nil {
            try await Task.sleep(for: .milliseconds(10))
        }
        #expect(try await access.statuses(guest: "g").first?.exports == nil)
        await #expect(throws: StoreAccess.Refused.self) {
            try await access.export(guest: "h", options: ExportOptions(address: "unix:\(place.base)/v")) { _ in }
        }
        // A view that ends by itself ends the verb, with the reason.
        let second = Task {
            try await access.export(
                guest: "g", options: ExportOptions(address: "unix:\(place.base)/v")
            ) { isOpened.yield($0) }
        }
        _ = await reports.next()
        let replica = try #require(protection.daemon.replica("g"))
        await replica.endExports("the test says so")
        let error = await #expect(throws: StoreAccess.Refused.self) { try await second.value }
        #expect(error?.description.contains("the test says so") == true)
        try await protection.stop()
    }

    @Test("without a daemon the verb serves the store itself")
    func alone() async throws {
        let place = try Place()
        defer { place.remove() }
        var random = SplitMix64(seed: 16)
        let disk = disk(&random)
        do {
            let protection = try await Protection(place)
            _ = try await protection.protect(disk)
            try await protection.stop()
        }
        let access = StoreAccess(store: place.directory, log: .init(label: "test"))
        let (opened, isOpened) = AsyncStream.makeStream(of: ExportReport.self)
        let verb = Task {
            try await access.export(
                guest: "g", options: ExportOptions(address: "unix:\(place.base)/v")
            ) { isOpened.yield($0) }
        }
        var reports = opened.makeAsyncIterator()
        let report = try #require(await reports.next())
        try await compare(report, disk, place, "alone")
        verb.cancel()
        _ = await verb.result
    }
}
