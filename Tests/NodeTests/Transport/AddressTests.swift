import Testing

@testable import Node

@Suite("Addresses and numbers as people write them")
struct AddressTests {
    @Test(
        "an address is written back as it was read",
        arguments: ["127.0.0.1:7771", "[::1]:80", "host.example:1", "unix:/run/x.sock"])
    func roundTrip(text: String) throws {
        #expect(try Address(parsing: text).description == text)
    }

    @Test(
        "what is no address is refused with what is wrong",
        arguments: [
            ("", "port is missing"), ("host", "port is missing"), ("host:", "not a number"),
            ("host:70000", "not a number"),
            (":80", "host is empty"), ("::1:80", "brackets"), ("unix:", "path is empty"),
            ("unix:/" + String(repeating: "x", count: 107), "longer than"),
        ])
    func refused(text: String, words: String) {
        let error = #expect(throws: Address.Malformed.self) { try Address(parsing: text) }
        #expect(error?.description.contains(words) == true)
    }

    @Test(
        "only addresses that cannot leave the machine count as its own",
        arguments: [
            ("127.0.0.1:1", true), ("127.9.9.9:1", true), ("[::1]:1", true), ("localhost:1", true), ("unix:/a", true),
            ("10.0.0.1:1", false), ("0.0.0.0:1", false), ("127.example.org:1", false), ("[::]:1", false),
            ("host:1", false),
        ])
    func staysOnThisMachine(text: String, expected: Bool) throws {
        #expect(try Address(parsing: text).staysOnThisMachine == expected)
    }

    @Test("numbers keep their digits and sign")
    func fixed() {
        #expect(Fixed.text(1.25, 1) == "1.3")
        #expect(Fixed.text(0.04, 1) == "0.0")
        #expect(Fixed.text(-0.04, 1) == "0.0")
        #expect(Fixed.text(-2.5, 1) == "-2.5")
        #expect(Fixed.text(10.05, 2) == "10.05")
        #expect(Fixed.text(.nan, 1) == "-")
        #expect(ByteText.text(1023) == "1023 B")
        #expect(ByteText.text(1 << 20) == "1.0 MiB")
        #expect(ByteText.text(3 << 40) == "3.0 TiB")
    }

    @Test("QEMU's last round is as long as memory allows, whatever the link's speed")
    func finalRound() {
        var round = FinalRound(budget: 256 << 20)
        #expect(round.limit == 15)
        #expect(round.noted(bytesPerSecond: 0) == nil)
        #expect(round.noted(bytesPerSecond: 1 << 30) == nil, "15 ms still")
        // A slow link: as much is left as if it were fast. One burst is not forgotten at once.
        #expect(round.noted(bytesPerSecond: 1 << 20) == nil)
        var limits: [UInt64] = []
        for _ in 0..<60 { if let limit = round.noted(bytesPerSecond: 1 << 20) { limits.append(limit) } }
        #expect(limits == [16_000])
        for _ in 0..<500 { if let limit = round.noted(bytesPerSecond: 1 << 20) { limits.append(limit) } }
        #expect(limits == [16_000, 32_000, 64_000], "a copy that does not end by itself gets a longer last round")
        #expect(round.noted(bytesPerSecond: 4 << 30) == 15, "a burst counts at once")
        var small = FinalRound(budget: 16 << 20)
        for _ in 0..<500 { _ = small.noted(bytesPerSecond: 1 << 20) }
        #expect(small.limit == 4000, "a quarter of the budget")
        var slowest = FinalRound(budget: 1 << 40)
        for _ in 0..<7 {
            let raised = slowest.noted(bytesPerSecond: 1)
            #expect(raised == nil, "it may be a slow moment")
        }
        #expect(slowest.noted(bytesPerSecond: 1) == 2_000_000)
    }

    @Test("the initial copy slows down before the budget is full, and recovers")
    func copySpeed() {
        let budget: UInt64 = 256 << 20
        var speed = budget / 4
        for _ in 0..<50 { speed = CopySpeed.next(current: speed, outstanding: 0, budget: budget) }
        #expect(speed == budget * 2)
        // A tenth of a second at full speed stays below half of the budget.
        #expect(speed / 10 < budget / 2)
        for _ in 0..<50 { speed = CopySpeed.next(current: speed, outstanding: budget * 3 / 4, budget: budget) }
        #expect(speed == CopySpeed.least)
        // A link slower than that is filled for a second and no more, however large the budget.
        for _ in 0..<60 { speed = CopySpeed.next(current: speed, outstanding: 0, budget: budget) }
        #expect(speed == budget * 2)
        for _ in 0..<50 {
            speed = CopySpeed.next(current: speed, outstanding: 1 << 20, budget: budget, lag: 400_000_000)
        }
        #expect(speed == CopySpeed.least)
    }
}
