/// RAM items: u64 of offset and flags, the block's name unless it is the same as before, then the contents.
extension ColoPrimaryStream {
    mutating func stepRamItems<Sink: MigrationSink>(
        _ window: inout StreamWindow, kind: SectionKind, into sink: inout Sink
    ) throws(MigrationStreamError.Reason) -> Bool {
        deliverPages(&window, into: &sink)
        guard let value = window.peek(UInt64.self) else { return false }
        let flags = value & MigrationWire.flagMask
        let offset = value & ~MigrationWire.flagMask
        switch flags & ~MigrationWire.flagContinue {
        case MigrationWire.flagPage, MigrationWire.flagZero:
            return try stepPage(&window, flags: flags, offset: offset, into: &sink)
        case MigrationWire.flagEnd where value == MigrationWire.flagEnd:
            guard !blocks.isEmpty else { throw .ramLayoutMissing }
            window.advance(8)
            item = .footer(kind)
            return true
        case MigrationWire.flagMemSize where flags == MigrationWire.flagMemSize:
            guard kind == .start, blocks.isEmpty else { throw .ramLayoutRepeated }
            guard offset > 0 else { throw .badBlockLength(name: "(all blocks)", length: 0, left: 0) }
            guard offset <= limits.maxRamBytes else { throw .ramTooLarge(bytes: offset, limit: limits.maxRamBytes) }
            window.advance(8)
            item = .blockList(left: offset)
            return true
        default: throw .unsupportedRamFlags(flags)
        }
    }

    /// The common case in a loop of its own: whole pages of the same block as before.
    private func deliverPages<Sink: MigrationSink>(_ window: inout StreamWindow, into sink: inout Sink) {
        let item = 8 + MigrationWire.page
        let block = currentBlock
        let length = currentLength
        let wanted = MigrationWire.flagPage | MigrationWire.flagContinue
        while window.remaining >= item, let value = window.peek(UInt64.self) {
            let offset = value & ~MigrationWire.flagMask
            guard value & MigrationWire.flagMask == wanted, offset < length else { return }
            guard let data = window.peek(bytes: MigrationWire.page, at: 8) else { return }
            sink.page(block: block, offset: offset, data: data)
            window.advance(item)
        }
    }

    private mutating func stepPage<Sink: MigrationSink>(
        _ window: inout StreamWindow, flags: UInt64, offset: UInt64, into sink: inout Sink
    ) throws(MigrationStreamError.Reason) -> Bool {
        guard !blocks.isEmpty else { throw .ramLayoutMissing }
        var block = currentBlock
        var position = 8
        if flags & MigrationWire.flagContinue == 0 {
            guard let (name, end) = try window.peekName(at: 8) else { return false }
            guard let index = blockIndex[name] else { throw .unknownBlock(name) }
            block = index
            position = end
        }
        guard block >= 0 else { throw .noBlockYet }
        let length = blocks[block].length
        // Both are multiples of 4096, so a page that begins inside lies inside.
        guard offset < length else { throw .pageOutsideBlock(name: blocks[block].name, offset: offset, length: length) }
        if flags & MigrationWire.flagPage != 0 {
            guard let data = window.peek(bytes: MigrationWire.page, at: position) else { return false }
            sink.page(block: block, offset: offset, data: data)
            position += MigrationWire.page
        } else {
            guard let fill = window.peek(UInt8.self, at: position) else { return false }
            if fill == 0 {
                sink.zeroPage(block: block, offset: offset)
            } else {
                let filled = [UInt8](repeating: fill, count: MigrationWire.page)
                filled.withUnsafeBytes { sink.page(block: block, offset: offset, data: $0) }
            }
            position += 1
        }
        currentBlock = block
        currentLength = length
        window.advance(position)
        return true
    }

    /// One entry of the list: name, u64 length.
    mutating func stepBlockList<Sink: MigrationSink>(
        _ window: inout StreamWindow, left: UInt64, into sink: inout Sink
    ) throws(MigrationStreamError.Reason) -> Bool {
        guard listed.count < limits.maxBlocks else { throw .tooManyBlocks(limit: limits.maxBlocks) }
        guard let (name, end) = try window.peekName(at: 0), let length = window.peek(UInt64.self, at: end) else {
            return false
        }
        guard length > 0, length <= left, length % UInt64(MigrationWire.page) == 0 else {
            throw .badBlockLength(name: name, length: length, left: left)
        }
        guard blockIndex.updateValue(listed.count, forKey: name) == nil else { throw .duplicateBlock(name) }
        listed.append(RamBlockDescription(name: name, length: length))
        window.advance(end + 8)
        guard length == left else {
            item = .blockList(left: left - length)
            return true
        }
        blocks = listed
        item = .ramItems(.start)
        sink.ramLayout(blocks, sectionID: ramSectionID ?? 0)
        return true
    }
}
