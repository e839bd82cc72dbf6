import Link
import Testing
import Units

@Suite("Payloads")
struct PayloadTests {
    static let hello = Hello(
        guest: "web-1", session: Identifier(high: 1, low: 2), durability: .disk, label: "alpha:4711",
        disks: [.init(id: "vda", size: 1 << 30), .init(id: "vdb", size: 512)], generation: Generation(4),
        agentVersion: "1.0.0")
    static let layout = RamLayoutPayload(
        ramSectionID: 2, configuration: [1, 2, 3],
        blocks: [.init(name: "pc.ram", length: 1 << 28), .init(name: "/rom@etc/acpi/tables", length: 131072)])
    static let welcome = Welcome(
        generation: Generation(4), firstEpoch: Epoch(10), lastCommitted: Epoch(9), creditWindow: 64 << 20,
        serverVersion: "1.0.0")

    @Test("each comes back as it was written, within the lengths of its kind")
    func roundTrips() {
        #expect(decode(encode(Self.hello), Hello.decode) == .success(Self.hello))
        #expect(decode(encode(Self.welcome), Welcome.decode) == .success(Self.welcome))
        #expect(decode(encode(Self.layout), RamLayoutPayload.decode) == .success(Self.layout))
        for code in Refuse.Code.allCases {
            let refuse = Refuse(code: code, message: "nö")
            #expect(decode(encode(refuse), Refuse.decode) == .success(refuse))
        }
        #expect(decode(encode(Size(deviceStateLength: 13023)), Size.decode).success?.deviceStateLength == 13023)
        #expect(decode(encode(Credit(consumedTotal: 5)), Credit.decode).success?.consumedTotal == 5)
        let beat = Heartbeat(counter: 1, sentAt: Moment(nanoseconds: 99))
        #expect(decode(encode(beat), Heartbeat.decode) == .success(beat))
        let bye = Bye(code: 0, reason: "detached")
        #expect(decode(encode(bye), Bye.decode) == .success(bye))
        for code in GuestState.Code.allCases {
            let state = GuestState(code: code, message: "pausiert, ö")
            #expect(decode(encode(state), GuestState.decode) == .success(state))
        }
        let digests = DiskDigests(
            disk: 3, isLast: true, first: 77,
            runs: [
                .zeroes(1), .data([BlockDigest(high: 1, low: .max), BlockDigest(high: 0, low: 0)]), .zeroes(1 << 30),
            ])
        #expect(decode(encode(digests), DiskDigests.decode) == .success(digests))
        let known = RamKnown(isLast: false, first: 7, runs: digests.runs)
        #expect(decode(encode(known), RamKnown.decode) == .success(known))
        let new = RamKnown(isLast: true, first: 0, runs: [])
        #expect(decode(encode(new), RamKnown.decode) == .success(new))
        #expect(decode(encode(RamKnown(isLast: false, first: 0, runs: [])), RamKnown.decode).failure != nil)
        #expect(decode([2] + encode(known).dropFirst(), RamKnown.decode).failure != nil)
        #expect(decode(Array(encode(known).dropLast()), RamKnown.decode).failure != nil)
        let nothing = DiskDigests(disk: 0, isLast: true, first: 0, runs: [])
        #expect(decode(encode(nothing), DiskDigests.decode) == .success(nothing))
        let identity = IdentityPayload(json: Array("{}".utf8))
        #expect(decode(encode(identity), IdentityPayload.decode) == .success(identity))
        for extent in [
            DiskExtent.zeroes(disk: 1, range: ByteRange(offset: 4096, length: 512)),
            DiskExtent.discard(disk: 0, range: ByteRange(offset: 0, length: 1 << 40)),
        ] {
            let kind = extent.kind
            let decoded = decode(encode(extent)) { (raw) throws(LinkError) in
                try DiskExtent.decode(raw, kind: kind)
            }
            #expect(decoded == .success(extent))
        }
    }

    @Test("a disk write and device state lend their data where the payload is")
    func bulk() throws {
        let data: [UInt8] = Array(0..<100)
        let (header, prefix) = data.withUnsafeBytes {
            DiskWrite.header(disk: 3, offset: 0x1122_3344, data: $0, generation: .first, epoch: Epoch(5))
        }
        #expect(prefix == [0, 3, 0, 0, 0, 0, 0x11, 0x22, 0x33, 0x44])
        #expect(verify(header, prefix + data).failure == nil)
        let seen = decode(prefix + data) { (raw) throws(LinkError) in
            let write = try DiskWrite.decode(raw)
            return (
                write.disk, write.range, Array(write.data), write.data.baseAddress == raw.baseAddress.map { $0 + 10 }
            )
        }.success
        #expect(seen?.0 == 3)
        #expect(seen?.1 == ByteRange(offset: 0x1122_3344, length: 100))
        #expect(seen?.2 == data)
        #expect(seen?.3 == true)

        let (stateHeader, statePrefix) = data.withUnsafeBytes {
            DeviceState.header(offset: 7, bytes: $0, generation: .first, epoch: Epoch(5))
        }
        #expect(verify(stateHeader, statePrefix + data).failure == nil)
        let state = decode(statePrefix + data) { (raw) throws(LinkError) in
            let state = try DeviceState.decode(raw)
            return (state.offset, Array(state.bytes))
        }.success
        #expect(state?.0 == 7)
        #expect(state?.1 == data)
    }

    @Test("digests that are not there, runs of nothing and wrong flags are refused, before memory is taken for them")
    func hostileDigests() {
        let head: [UInt8] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5]
        func isRefused(_ bytes: [UInt8]) -> Bool { decode(bytes, DiskDigests.decode).failure != nil }
        #expect(isRefused(head), "no run, and not the last")
        #expect(isRefused(head + [0, 0, 0, 0]), "a run of no blocks")
        #expect(isRefused(head + [0x80, 0, 0, 0]), "a run of no digests")
        #expect(isRefused(head + [0xFF, 0xFF, 0xFF, 0xFF]), "2^31 digests in no bytes")
        #expect(isRefused(head + [0x80, 0, 0, 2] + [UInt8](repeating: 1, count: 31)), "half a digest")
        #expect(isRefused(head + [0, 0, 1]), "half a run")
        #expect(!isRefused(head + [0x80, 0, 0, 2] + [UInt8](repeating: 1, count: 32)))
        #expect(isRefused([0, 0, 2, 0] + [UInt8](repeating: 0, count: 8)), "a flag that is unknown")
        #expect(isRefused([0, 0, 1, 1] + [UInt8](repeating: 0, count: 8)), "a reserved byte")
        for length in 0..<12 { #expect(isRefused([UInt8](repeating: 0, count: length))) }
    }

    @Test("every shortened and every lengthened payload of fixed shape is refused")
    func truncatedAndTrailing() {
        var seal = Seal()
        seal.digest = 9
        func check(_ payload: some LinkPayload, _ accepts: ([UInt8]) -> Bool) {
            let bytes = encode(payload)
            #expect(accepts(bytes), "\(payload.kind)")
            for count in 0..<bytes.count {
                #expect(!accepts(Array(bytes[..<count])), "\(payload.kind) cut to \(count)")
            }
            #expect(!accepts(bytes + [0]), "\(payload.kind) with a byte too many")
        }
        check(Self.hello) { decode($0, Hello.decode).success != nil }
        check(Self.welcome) { decode($0, Welcome.decode).success != nil }
        check(Self.layout) { decode($0, RamLayoutPayload.decode).success != nil }
        check(Refuse(code: .busy, message: "later")) { decode($0, Refuse.decode).success != nil }
        check(Bye(code: 1, reason: "x")) { decode($0, Bye.decode).success != nil }
        check(GuestState(code: .halted, message: "x")) { decode($0, GuestState.decode).success != nil }
        check(seal) { decode($0, Seal.decode).success != nil }
        check(Size(deviceStateLength: 1)) { decode($0, Size.decode).success != nil }
        check(Credit(consumedTotal: 1)) { decode($0, Credit.decode).success != nil }
        check(Heartbeat(counter: 1, sentAt: Moment(nanoseconds: 1))) { decode($0, Heartbeat.decode).success != nil }
        check(DiskExtent.zeroes(disk: 0, range: ByteRange(offset: 0, length: 1))) {
            decode($0) { (raw) throws(LinkError) in try DiskExtent.decode(raw, kind: .diskZeroes) }.success != nil
        }
    }

    @Test("hostile values are refused by field")
    func hostile() {
        func field(_ error: LinkError?) -> String? {
            if case .badField(_, _, let field, _) = error { return field }
            return nil
        }
        var bytes = encode(Self.hello)
        bytes[2] = 2
        #expect(field(decode(bytes, Hello.decode).failure) == "durability")
        bytes = encode(Self.hello)
        bytes[3] = 17
        #expect(field(decode(bytes, Hello.decode).failure) == "disk count")
        bytes = encode(Self.hello)
        bytes[29] = UInt8(ascii: "/")
        #expect(field(decode(bytes, Hello.decode).failure) == "guest name")
        var twice = Self.hello
        twice.disks[1].id = "vda"
        #expect(field(decode(encode(twice), Hello.decode).failure) == "disk id")
        var early = Self.welcome
        early.firstEpoch = Epoch(9)
        #expect(field(decode(encode(early), Welcome.decode).failure) == "first epoch")
        #expect(field(decode([0, 12, 0, 0], Refuse.decode).failure) == "code")
        #expect(field(decode([0, 1, 0x10, 1] + Array(repeating: 65, count: 4097), Refuse.decode).failure) == "message")
        #expect(field(decode([0, 1, 0, 1, 0xFF], Bye.decode).failure) == "reason")
        #expect(field(decode([0, 2, 0, 0], GuestState.decode).failure) == "code")
        #expect(field(decode([0, 1, 0, 1, 0xFF], GuestState.decode).failure) == "message")
        #expect(field(decode([0, 0, 0, 2, 0, 1, 0, 1, 0, 0], RamLayoutPayload.decode).failure) == "configuration")
        #expect(field(decode([0, 0, 0, 2, 0, 0, 0, 0, 4, 1], RamLayoutPayload.decode).failure) == "block count")
        var sameName = Self.layout
        sameName.blocks[1].name = "pc.ram"
        #expect(field(decode(encode(sameName), RamLayoutPayload.decode).failure) == "block name")
        var tooMuch = Self.layout
        tooMuch.blocks[1].length = .max
        #expect(field(decode(encode(tooMuch), RamLayoutPayload.decode).failure) == "block length")
        let wrap: [UInt8] = [0, 0] + Array(repeating: 0xFF, count: 8) + [0, 0, 0, 0, 0, 0, 0, 2]
        let extent = decode(wrap) { (raw) throws(LinkError) in try DiskExtent.decode(raw, kind: .diskDiscard) }
        #expect(field(extent.failure) == "range")
        let write = decode(wrap) { (raw) throws(LinkError) in try DiskWrite.decode(raw).disk }
        #expect(field(write.failure) == "range")
        let noData = decode(Array(wrap[..<10])) { (raw) throws(LinkError) in try DiskWrite.decode(raw).disk }
        #expect(field(noData.failure) == "range")
    }

    @Test("long words are cut at a character, so that a message always fits")
    func longMessages() {
        let refuse = Refuse(code: .internal, message: String(repeating: "ö", count: 3000))
        let decoded = decode(encode(refuse), Refuse.decode).success
        #expect(decoded?.message == String(repeating: "ö", count: 2048))
        var hello = Self.hello
        hello.label = "a" + String(repeating: "ö", count: 200)
        #expect(decode(encode(hello), Hello.decode).success?.label == "a" + String(repeating: "ö", count: 127))
    }

    @Test("the largest hello and layout stay within their limits")
    func largest() {
        let long = String(repeating: "n", count: 64)
        var hello = Self.hello
        hello.guest = long
        hello.label = String(repeating: "l", count: 300)
        hello.agentVersion = hello.label
        hello.disks = (0..<16).map { .init(id: String(long.dropLast(2)) + "\($0 + 10)", size: .max) }
        #expect(FrameKind.hello.payloadLengths.contains(encode(hello).count))
        #expect(decode(encode(hello), Hello.decode).success?.disks == hello.disks)
        let blocks = (0..<1024).map {
            RamLayoutPayload.Block(name: String(repeating: "b", count: 251) + "\($0 + 1000)", length: 4096)
        }
        let layout = RamLayoutPayload(
            ramSectionID: 2, configuration: Array(repeating: 1, count: 65536), blocks: blocks)
        let bytes = encode(layout)
        #expect(bytes.count <= FrameKind.ramLayout.payloadLengths.upperBound)
        #expect(decode(bytes, RamLayoutPayload.decode) == .success(layout))
    }

    @Test("random bytes never crash a decoder")
    func garbage() {
        var random = SplitMix64(seed: 0xC0105)
        for _ in 0..<3000 {
            let bytes = random.bytes(Int(random.next() % 120))
            _ = decode(bytes, Hello.decode)
            _ = decode(bytes, Welcome.decode)
            _ = decode(bytes, RamLayoutPayload.decode)
            _ = decode(bytes, Refuse.decode)
            _ = decode(bytes, Bye.decode)
            _ = decode(bytes, Seal.decode)
            _ = decode(bytes) { (raw) throws(LinkError) in try DiskWrite.decode(raw).disk }
            _ = decode(bytes) { (raw) throws(LinkError) in try DeviceState.decode(raw).offset }
        }
        // Also bytes that are nearly right.
        let good = encode(Self.hello)
        for _ in 0..<3000 {
            var bytes = good
            for _ in 0..<1 + random.next() % 3 {
                bytes[Int(random.next() % UInt64(bytes.count))] = UInt8(truncatingIfNeeded: random.next())
            }
            if let hello = decode(bytes, Hello.decode).success { #expect(encode(hello) == bytes) }
        }
    }

    @Test("disks are compared in blocks that keep the digests small")
    func blockSizes() {
        let gib = UInt64(1) << 30
        for (sizes, expected) in [
            ([4096], 4096), ([16 * gib], 4096), ([8 * gib, 8 * gib], 4096), ([16 * gib, 512], 16384),
            ([64 * gib], 16384),
            ([64 * gib + 512], 65536), ([.max, .max], 65536), ([], 4096),
        ] as [([UInt64], Int)] {
            #expect(DiskDigests.blockSize(ofDisks: sizes) == expected, "\(sizes)")
        }
    }
}
