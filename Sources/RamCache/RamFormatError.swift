import Units

/// What is wrong with a file of the RAM store: a delta log, a base image, a staging map or a marker. The file's name
/// is added by whoever opened it.
public struct RamFormatError: Error, Equatable, CustomStringConvertible {
    /// What is wrong.
    public enum Fault: String, Sendable {
        case truncated = "ends inside a record"
        case magic = "has the wrong magic"
        case version = "has an unknown version"
        case headerChecksum = "has a header that does not match its CRC-32C"
        case session = "belongs to another session"
        case layout = "was made for another RAM layout"
        case epoch = "has an epoch out of order"
        case recordKind = "has an unknown kind of record"
        case recordChecksum = "has a record header that does not match its CRC-32C"
        case recordLength = "has a record with an impossible length"
        case index = "has a batch out of order"
        case batch = "has a damaged batch"
        case seal = "has a seal that does not match the batches before it"
        case chain = "has a seal that does not match the epochs before it"
        case unsealed = "ends before the epoch that is needed is sealed"
        case reserved = "has a reserved field that is not zero"
        case pageCount = "has the wrong number of pages"
        case tableChecksum = "has a table that does not match its CRC-32C"
        case pageChecksum = "has a page that does not match its CRC-32C"
        case state = "has an unknown state"
        case entry = "has an entry that names no page or no slot"
        case length = "does not have the length that the commit record names"
        case digest = "does not have the digest that the commit record names"
    }

    public let fault: Fault
    /// Byte of the file at which the fault was found.
    public let offset: UInt64
    /// The offending value.
    public let value: UInt64
    /// The epoch it belongs to, where that is known.
    public let epoch: Epoch?
    /// What the batch itself complains about, when the fault is ``Fault/batch``.
    public let batch: RamBatchError?

    public init(
        _ fault: Fault, offset: UInt64, value: UInt64 = 0, epoch: Epoch? = nil, batch: RamBatchError? = nil
    ) {
        self.fault = fault
        self.offset = offset
        self.value = value
        self.epoch = epoch
        self.batch = batch
    }

    public var description: String {
        let ofEpoch = epoch.map { ", epoch \($0)" } ?? ""
        let inner = batch.map { ": \($0)" } ?? ""
        return "\(fault.rawValue) (byte \(offset), value \(value)\(ofEpoch))\(inner)"
    }
}

/// Names a file that recovery needs, as the commit record vouches for it.
public struct RamFileReference: Sendable, Hashable, CustomStringConvertible {
    /// What the file is.
    public enum Kind: UInt8, Sendable {
        /// `base-N.ram` with its checksums in `base-N.sum`: all pages at the end of epoch N.
        case base = 1
        /// `delta-N.log`: the batches of epoch N and the epochs behind it.
        case log = 2
    }

    public let kind: Kind
    /// Base: the epoch whose end it shows. Log: the first epoch in it.
    public let epoch: Epoch
    /// Bytes that count. A log may be longer; what is behind them is cut.
    public let length: UInt64
    /// Base: CRC-32C of the header of its checksum file. Log: the chain value of its last seal that counts.
    public let digest: UInt32

    public init(kind: Kind, epoch: Epoch, length: UInt64, digest: UInt32) {
        self.kind = kind
        self.epoch = epoch
        self.length = length
        self.digest = digest
    }

    /// The file's name in the directory `ram/` of a guest.
    public var name: String {
        switch kind {
        case .base: Self.baseName(epoch)
        case .log: Self.logName(epoch)
        }
    }

    /// The name of the file with the checksums of a base image.
    public static func sumName(_ epoch: Epoch) -> String { "base-\(epoch).sum" }
    public static func baseName(_ epoch: Epoch) -> String { "base-\(epoch).ram" }
    public static func logName(_ epoch: Epoch) -> String { "delta-\(epoch).log" }

    public var description: String { "\(name) (\(length) bytes)" }
}
