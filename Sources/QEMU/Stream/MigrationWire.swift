/// Numbers of QEMU's migration stream, all big endian. Written from observed streams of QEMU 7.2 and 10.0.
enum MigrationWire {
    /// "QEVM".
    static let magic: UInt32 = 0x5145_564D
    static let version: UInt32 = 3

    /// Type bytes that open a part of the stream.
    static let endOfFile: UInt8 = 0x00
    static let sectionStart: UInt8 = 0x01
    static let sectionPart: UInt8 = 0x02
    static let sectionEnd: UInt8 = 0x03
    static let sectionFull: UInt8 = 0x04
    static let subsection: UInt8 = 0x05
    static let vmdesc: UInt8 = 0x06
    static let configuration: UInt8 = 0x07
    static let command: UInt8 = 0x08
    static let footer: UInt8 = 0x7E

    static let ramSectionName = "ram"
    static let ramSectionVersion: UInt32 = 4

    static let page = 4096
    /// A RAM item is an offset whose low twelve bits are flags.
    static let flagMask: UInt64 = 0xFFF
    static let flagZero: UInt64 = 0x02
    static let flagMemSize: UInt64 = 0x04
    static let flagPage: UInt64 = 0x08
    static let flagEnd: UInt64 = 0x10
    static let flagContinue: UInt64 = 0x20

    static let commandEnableColo: UInt16 = 8

    /// Commands that lead to a stream this parser does not speak; every other command is skipped by its length.
    static func refusedCommand(_ number: UInt16) -> String? {
        switch number {
        case 1: "open-return-path"
        case 3: "postcopy-advise"
        case 4: "postcopy-listen"
        case 5: "postcopy-run"
        case 6: "postcopy-ram-discard"
        case 7: "packaged"
        case 9: "postcopy-resume"
        case 10: "recv-bitmap"
        default: nil
        }
    }

    /// Names of the flags that are not understood here, for messages.
    static func names(ofFlags flags: UInt64) -> String {
        let known: [(UInt64, String)] = [
            (0x01, "full (obsolete)"), (0x02, "zero"), (0x04, "mem-size"), (0x08, "page"), (0x10, "end"),
            (0x20, "continue"), (0x40, "xbzrle"), (0x80, "hook (rdma)"), (0x100, "compress"),
            (0x200, "multifd-flush"), (0x400, "unknown 0x400"), (0x800, "unknown 0x800"),
        ]
        let names = known.filter { flags & $0.0 != 0 }.map(\.1)
        return names.isEmpty ? "none" : names.joined(separator: " + ")
    }
}
