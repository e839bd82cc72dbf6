import AsyncIO
import Checkpointer
import Glibc
import Logging
import Testing

@testable import Node

@Suite("The daemon's store")
struct SecondaryDaemonTests {
    private let log = Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() })

    private func open(_ place: Place) throws -> SecondaryDaemon {
        try SecondaryDaemon.open(
            options: SecondaryOptions(store: place.directory, proof: false, qemu: nil, ramDirectory: place.base),
            log: log)
    }

    @Test("a guest whose commit file is damaged is shown with the reason, keeps no other down, and can be removed")
    func damagedGuest() async throws {
        let place = try Place()
        defer { place.remove() }
        do {
            let daemon = try open(place)
            try GuestStore.create(directory: daemon.store.guestDirectory("good"))
            try GuestStore.create(directory: daemon.store.guestDirectory("bad"))
        }
        try WholeFile.write("\(place.directory)/bad/commit", [UInt8](repeating: 0xA5, count: 8192), durable: false)
        let daemon = try open(place)
        let statuses = try await daemon.statuses(guest: nil)
        #expect(statuses.map(\.guest) == ["good", "bad"])
        #expect(statuses[0].state == .idle)
        #expect(statuses[1].state == .damaged)
        #expect(statuses[1].message?.contains("commit file") == true)
        let refused = await daemon.answer(ControlRequest(verb: .failover, guest: "bad"))
        #expect(refused.error?.contains("colo-blk remove bad") == true)
        let removed = await daemon.answer(ControlRequest(verb: .remove, guest: "bad"))
        #expect(removed.error == nil)
        #expect(!Directory.exists("\(place.directory)/bad"))
        #expect(try await daemon.statuses(guest: nil).map(\.guest) == ["good"])
    }

    @Test("a second process is refused while the first holds the store")
    func storeIsLocked() throws {
        let place = try Place()
        defer { place.remove() }
        let first = try open(place)
        #expect(throws: Store.Failed.self) { try open(place) }
        withExtendedLifetime(first) {}
    }

    @Test("a folder that is not empty and no store is left alone")
    func foreignFolder() throws {
        let place = try Place()
        defer { place.remove() }
        try Directory.create(place.directory)
        try WholeFile.write("\(place.directory)/letter.txt", Array("dear".utf8), durable: false)
        #expect(throws: Store.Failed.self) { try open(place) }
        #expect(try Directory.names(in: place.directory) == ["letter.txt"])
    }

    @Test("nothing of the store can be read by others")
    func permissions() throws {
        let place = try Place()
        defer { place.remove() }
        let daemon = try open(place)
        try GuestStore.create(directory: daemon.store.guestDirectory("g"))
        var open = ["\(place.directory)"]
        var seen = 0
        while let path = open.popLast() {
            var status = stat()
            try #require(lstat(path, &status) == 0)
            #expect(status.st_mode & 0o077 == 0, "\(path) has mode \(String(status.st_mode & 0o777, radix: 8))")
            seen += 1
            if status.st_mode & S_IFMT == S_IFDIR { open += try Directory.names(in: path).map { "\(path)/\($0)" } }
        }
        #expect(seen >= 8)
    }
}
