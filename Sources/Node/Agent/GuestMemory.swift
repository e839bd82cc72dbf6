import CLinux
import Link
import QEMU
import RamCache
import Units

/// Where QEMU keeps the guest's main memory in its own address space, for reading it while the guest stands still.
struct GuestMemory: Sendable, Equatable {
    struct Unavailable: Error, Equatable, CustomStringConvertible {
        let description: String
    }

    let pid: Int32
    /// Name of the RAM block that begins at the guest's address 0.
    let block: String
    /// Address of the block's first byte in QEMU's process.
    let address: UInt64

    /// Asks QEMU through its human monitor: `gpa2hva 0` names the block and tells where it is mapped.
    static func locate(relay: AgentRelay) async throws(Unavailable) -> GuestMemory {
        guard let process = relay.hello.process else {
            throw Unavailable(description: "QEMU's process is not known")
        }
        do {
            let answer = try await relay.execute(
                "human-monitor-command", arguments: ["command-line": "gpa2hva 0x0"], oob: false, timeout: .seconds(5))
            return try GuestMemory(answer: answer.stringValue ?? "", pid: process.pid)
        } catch let unavailable as Unavailable {
            throw unavailable
        } catch {
            throw Unavailable(description: "QEMU does not tell where it keeps the guest's memory: \(error)")
        }
    }

    /// Reads `Host virtual address for 0x0 (pc.ram) is 0x7f0123400000`.
    init(answer: String, pid: Int32) throws(Unavailable) {
        guard let opening = answer.firstIndex(of: "("),
            let closing = answer.range(ofLast: ") is 0x"), opening < closing.lowerBound
        else {
            throw Unavailable(description: "QEMU does not tell where it keeps the guest's memory: '\(answer)'")
        }
        let digits = answer[closing.upperBound...].prefix { $0.isHexDigit }
        guard let address = UInt64(digits, radix: 16), address > 0, address % UInt64(Sizes.page) == 0 else {
            throw Unavailable(description: "QEMU's answer holds no address: '\(answer)'")
        }
        self.pid = pid
        self.address = address
        block = String(answer[answer.index(after: opening)..<closing.lowerBound])
    }

    /// Digests of the pages that were asked for, or why there are none. Blocks; the guest must stand still.
    static func answer(
        _ ask: RamVerify, layout: RamLayout, memory: Result<GuestMemory, Unavailable>?
    ) -> RamDigests.Outcome {
        do {
            guard let memory = try memory?.get() else {
                throw Unavailable(description: "QEMU was not asked where it keeps the guest's memory")
            }
            return .digests(try memory.digests(first: Int(ask.first), count: Int(ask.count), layout: layout))
        } catch {
            return .unavailable("\(error)")
        }
    }

    /// Contents of single pages, 4096 bytes each, in their order. Blocks; the guest must stand still.
    func pages(_ pages: [UInt64], layout: RamLayout) throws(Unavailable) -> [UInt8] {
        var contents = [UInt8](repeating: 0, count: pages.count * Sizes.page)
        for (position, page) in pages.enumerated() {
            let place = layout.location(ofGlobalPage: Int(page))
            guard layout.blocks[place.block].name == block else {
                throw Unavailable(description: "only '\(block)' can be read")
            }
            let remote = address + place.page * UInt64(Sizes.page)
            let error = contents.withUnsafeMutableBytes { bytes in
                bytes.baseAddress.map {
                    clx_read_process(Int64(pid), remote, $0 + position * Sizes.page, UInt64(Sizes.page))
                } ?? 0
            }
            guard error == 0 else {
                throw Unavailable(description: "the memory of QEMU (process \(pid)) cannot be read (error \(-error))")
            }
        }
        return contents
    }

    private func digests(first: Int, count: Int, layout: RamLayout) throws(Unavailable) -> [UInt32] {
        let start = layout.location(ofGlobalPage: first)
        let end = layout.location(ofGlobalPage: first + count - 1)
        guard layout.blocks[start.block].name == block, end.block == start.block else {
            throw Unavailable(
                description: "the pages are of '\(layout.blocks[start.block].name)', and only '\(block)' can be read")
        }
        let pieceMax = 1 << 20
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: pieceMax, alignment: Sizes.page)
        defer { buffer.deallocate() }
        var values: [UInt32] = []
        values.reserveCapacity(count)
        var offset = start.page * UInt64(Sizes.page)
        var left = count * Sizes.page
        while left > 0, let base = buffer.baseAddress {
            let length = min(left, pieceMax)
            let error = clx_read_process(Int64(pid), address + offset, base, UInt64(length))
            guard error == 0 else {
                throw Unavailable(
                    description: "the memory of QEMU (process \(pid)) cannot be read (error \(-error)): the agent "
                        + "needs the right to trace it; run attach as root")
            }
            for at in stride(from: 0, to: length, by: Sizes.page) { values.append(PageDigest.of(base + at)) }
            offset += UInt64(length)
            left -= length
        }
        return values
    }
}

extension String {
    /// The last place of `text`; nil when there is none. (Foundation has it too, and is not linked here.)
    fileprivate func range(ofLast text: String) -> Range<Index>? {
        var start = index(endIndex, offsetBy: -text.count, limitedBy: startIndex)
        while let at = start {
            if self[at...].hasPrefix(text) { return at..<index(at, offsetBy: text.count) }
            start = at == startIndex ? nil : index(before: at)
        }
        return nil
    }
}
