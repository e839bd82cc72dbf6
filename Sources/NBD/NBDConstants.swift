// Numbers of the NBD protocol (fixed newstyle), from the protocol document of the NetworkBlockDevice project.

enum NBDMagic {
    /// "NBDMAGIC"
    static let greeting: UInt64 = 0x4E42_444D_4147_4943
    /// "IHAVEOPT"
    static let option: UInt64 = 0x4948_4156_454F_5054
    static let optionReply: UInt64 = 0x0003_E889_0455_65A9
    static let request: UInt32 = 0x2560_9513
    static let simpleReply: UInt32 = 0x6744_6698
    static let structuredReply: UInt32 = 0x668E_33EF
}

/// Flags that both sides exchange before options; server and client use the same values.
enum NBDHandshakeFlag {
    static let fixedNewstyle: UInt16 = 1 << 0
    static let noZeroes: UInt16 = 1 << 1
}

enum NBDOption: UInt32 {
    case exportName = 1
    case abort = 2
    case list = 3
    case startTLS = 5
    case info = 6
    case go = 7
    case structuredReply = 8
    case listMetaContext = 9
    case setMetaContext = 10
}

enum NBDOptionReply: UInt32 {
    case ack = 1
    case server = 2
    case info = 3
    case metaContext = 4
    case unsupported = 0x8000_0001
    case policy = 0x8000_0002
    case invalid = 0x8000_0003
    case tlsRequired = 0x8000_0005
    case unknownExport = 0x8000_0006
    case tooBig = 0x8000_0009
}

enum NBDInfo {
    static let export: UInt16 = 0
    static let name: UInt16 = 1
    static let description: UInt16 = 2
    static let blockSize: UInt16 = 3
}

/// What a request asks for.
public enum NBDCommand: UInt16, Sendable {
    case read = 0
    case write = 1
    case disconnect = 2
    case flush = 3
    case trim = 4
    case cache = 5
    case writeZeroes = 6
    case blockStatus = 7
}

enum NBDCommandFlag {
    static let fua: UInt16 = 1 << 0
    static let noHole: UInt16 = 1 << 1
    static let doNotFragment: UInt16 = 1 << 2
    static let requestOne: UInt16 = 1 << 3
    static let fastZero: UInt16 = 1 << 4
}

enum NBDChunk {
    static let flagDone: UInt16 = 1 << 0
    static let typeNone: UInt16 = 0
    static let typeOffsetData: UInt16 = 1
    static let typeOffsetHole: UInt16 = 2
    static let typeBlockStatus: UInt16 = 5
    static let typeError: UInt16 = 1 << 15 | 1
    static let typeErrorOffset: UInt16 = 1 << 15 | 2
}

/// The one metadata context offered here.
enum NBDAllocation {
    static let name = "base:allocation"
    /// What block status replies call it; any number would do.
    static let id: UInt32 = 1
}

/// The error numbers that may travel in an NBD reply.
public enum NBDErrno: UInt32, Sendable, CaseIterable {
    case notPermitted = 1
    case io = 5
    case noMemory = 12
    case invalid = 22
    case noSpace = 28
    case overflow = 75
    case notSupported = 95
    case shutdown = 108
}

/// What an export says about itself in its transmission flags.
public struct NBDExportFlags: OptionSet, Sendable, CustomStringConvertible {
    public let rawValue: UInt16

    public init(rawValue: UInt16) {
        self.rawValue = rawValue
    }

    /// Always sent.
    static let hasFlags = NBDExportFlags(rawValue: 1 << 0)
    public static let readOnly = NBDExportFlags(rawValue: 1 << 1)
    public static let flush = NBDExportFlags(rawValue: 1 << 2)
    public static let fua = NBDExportFlags(rawValue: 1 << 3)
    public static let rotational = NBDExportFlags(rawValue: 1 << 4)
    public static let trim = NBDExportFlags(rawValue: 1 << 5)
    public static let writeZeroes = NBDExportFlags(rawValue: 1 << 6)
    /// Sent by the session itself once structured replies are agreed.
    static let doNotFragment = NBDExportFlags(rawValue: 1 << 7)
    /// A flush on one connection covers the writes of all.
    public static let multiConnection = NBDExportFlags(rawValue: 1 << 8)
    public static let cache = NBDExportFlags(rawValue: 1 << 10)
    public static let fastZero = NBDExportFlags(rawValue: 1 << 11)

    /// Everything that a handler which keeps data in memory can do.
    public static let full: NBDExportFlags = [.flush, .fua, .trim, .writeZeroes, .fastZero, .cache]

    public var description: String { "0x" + String(rawValue, radix: 16) }
}
