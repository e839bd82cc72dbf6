/// Header, configuration, and everything that begins with a type byte.
extension ColoPrimaryStream {
    mutating func stepHeader(_ window: inout StreamWindow) throws(MigrationStreamError.Reason) -> Bool {
        guard let magic = window.peek(UInt32.self) else { return false }
        guard magic == MigrationWire.magic else { throw .wrongMagic(magic) }
        guard let version = window.peek(UInt32.self, at: 4) else { return false }
        guard version == MigrationWire.version else { throw .unsupportedVersion(version) }
        window.advance(8)
        state = .configuration
        return true
    }

    mutating func stepConfiguration<Sink: MigrationSink>(
        _ window: inout StreamWindow, into sink: inout Sink
    ) throws(MigrationStreamError.Reason) -> Bool {
        guard let type = window.peek(UInt8.self) else { return false }
        guard type == MigrationWire.configuration else { throw .configurationExpected(found: type) }
        guard let payload = window.peek(bytes: window.remaining - 1, at: 1) else { return false }
        guard let (configuration, length) = try Self.configuration(in: payload, limits: limits) else { return false }
        for subsection in configuration.subsections {
            switch subsection {
            case .capabilities(let names):
                // Listed are only those that change what the stream looks like (x-ignore-shared, mapped-ram).
                if let name = names.first { throw .unsupportedCapability(name) }
            case .targetPageBits(let bits):
                guard bits == 12 else { throw .unsupportedPageBits(bits) }
            case .uuid: break
            }
        }
        do throws(MigrationStreamError) {
            try sink.configuration(UnsafeRawBufferPointer(rebasing: payload[..<length]))
        } catch {
            throw error.reason
        }
        sink.machineName(configuration.machineName)
        machine = configuration
        window.advance(1 + length)
        state = .setup
        return true
    }

    private static func configuration(
        in payload: UnsafeRawBufferPointer, limits: MigrationLimits
    ) throws(MigrationStreamError.Reason) -> (MachineConfiguration, Int)? {
        do throws(MachineConfiguration.Problem) {
            return try MachineConfiguration.parsePrefix(payload, limit: limits.maxConfigurationBytes)
        } catch {
            throw .configuration(error)
        }
    }

    mutating func stepSections<Sink: MigrationSink>(
        _ window: inout StreamWindow, into sink: inout Sink
    ) throws(MigrationStreamError.Reason) -> Bool {
        switch item {
        case .section: return try stepSectionType(&window, into: &sink)
        case .command(let left):
            let taken = min(left, window.remaining)
            window.advance(taken)
            item = taken == left ? .section : .command(left: left - taken)
            return true
        case .blockList(let left): return try stepBlockList(&window, left: left, into: &sink)
        case .ramItems(let kind): return try stepRamItems(&window, kind: kind, into: &sink)
        case .footer(let kind): return try stepFooter(&window, kind: kind, into: &sink)
        }
    }

    private var expectedSection: String {
        switch state {
        case .setup: "a command (0x08) or the RAM layout (0x01)"
        case .precopy: "a RAM section (0x02, 0x03) or a command (0x08)"
        case .precopyEnded: "a device section (0x04) or a command (0x08)"
        default: "a RAM section (0x02, 0x03), a command (0x08) or the end mark (0x00)"
        }
    }

    private mutating func stepSectionType<Sink: MigrationSink>(
        _ window: inout StreamWindow, into sink: inout Sink
    ) throws(MigrationStreamError.Reason) -> Bool {
        guard let type = window.peek(UInt8.self) else { return false }
        switch (type, state) {
        case (MigrationWire.command, _): return try stepCommand(&window)
        case (MigrationWire.sectionStart, .setup): return try stepStart(&window)
        case (MigrationWire.sectionPart, .precopy): return try stepRamSection(&window, kind: .part)
        case (MigrationWire.sectionEnd, .precopy): return try stepRamSection(&window, kind: .end)
        case (MigrationWire.sectionPart, .checkpointRam) where !hasRamEnded:
            return try stepRamSection(&window, kind: .part)
        case (MigrationWire.sectionEnd, .checkpointRam) where !hasRamEnded:
            return try stepRamSection(&window, kind: .end)
        case (MigrationWire.sectionFull, .precopyEnded):
            state = .initialDevices
            return true
        case (MigrationWire.endOfFile, .checkpointRam):
            guard hasRamEnded else { throw .checkpointWithoutRam }
            window.advance(1)
            state = .checkpointRamEnded
            return true
        default: throw .unexpectedSection(type: type, expected: expectedSection)
        }
    }

    private mutating func stepCommand(_ window: inout StreamWindow) throws(MigrationStreamError.Reason) -> Bool {
        guard let number = window.peek(UInt16.self, at: 1) else { return false }
        if let name = MigrationWire.refusedCommand(number) { throw .refusedCommand(number: number, name: name) }
        guard let length = window.peek(UInt16.self, at: 3) else { return false }
        if number == MigrationWire.commandEnableColo { isColoEnabled = true }
        window.advance(5)
        if length > 0 { item = .command(left: Int(length)) }
        return true
    }

    /// Type, id, name, instance, version.
    private mutating func stepStart(_ window: inout StreamWindow) throws(MigrationStreamError.Reason) -> Bool {
        guard let id = window.peek(UInt32.self, at: 1), let (name, end) = try window.peekName(at: 5) else {
            return false
        }
        guard isColoEnabled else { throw .coloNotEnabled }
        guard name == MigrationWire.ramSectionName else { throw .unsupportedLiveSection(name: name) }
        guard let instance = window.peek(UInt32.self, at: end), let version = window.peek(UInt32.self, at: end + 4)
        else {
            return false
        }
        guard version == MigrationWire.ramSectionVersion, instance == 0 else {
            throw .unsupportedRamSection(version: version, instance: instance)
        }
        ramSectionID = id
        window.advance(end + 8)
        item = .ramItems(.start)
        return true
    }

    private mutating func stepRamSection(
        _ window: inout StreamWindow, kind: SectionKind
    ) throws(MigrationStreamError.Reason) -> Bool {
        guard let id = window.peek(UInt32.self, at: 1) else { return false }
        guard let ramSectionID, !blocks.isEmpty else { throw .ramLayoutMissing }
        guard id == ramSectionID else { throw .wrongSectionID(found: id, expected: ramSectionID) }
        window.advance(5)
        item = .ramItems(kind)
        return true
    }

    private mutating func stepFooter<Sink: MigrationSink>(
        _ window: inout StreamWindow, kind: SectionKind, into sink: inout Sink
    ) throws(MigrationStreamError.Reason) -> Bool {
        guard let type = window.peek(UInt8.self) else { return false }
        guard type == MigrationWire.footer else { throw .footerExpected(found: type) }
        guard let id = window.peek(UInt32.self, at: 1) else { return false }
        guard let ramSectionID, id == ramSectionID else {
            throw .wrongFooterID(found: id, expected: ramSectionID ?? 0)
        }
        window.advance(5)
        item = .section
        switch (state, kind) {
        case (.setup, _): state = .precopy
        case (.precopy, .end):
            state = .precopyEnded
            sink.ramRoundEnded()
        case (.precopy, _): sink.ramRoundEnded()
        case (_, .end): hasRamEnded = true
        default: break
        }
        return true
    }
}
