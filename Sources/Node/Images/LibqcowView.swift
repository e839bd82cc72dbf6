import CQcow
import Glibc
import QEMU
import Qcow2
import Units

/// What libqcow, an independent reader, says about a qcow2 file, and where it differs from us. It is a second opinion
/// only: it reads some images wrongly without a word (see ``LibqcowView/doubts``).
struct LibqcowView {
    /// Why libqcow does not open the file; nil when it does.
    private(set) var refusal: String?
    private(set) var version: UInt32 = 0
    private(set) var mediaSize: UInt64 = 0
    private(set) var encryptionMethod: UInt32 = 0
    private(set) var snapshots: Int32 = 0
    private(set) var backingFile: String?
    /// What it says otherwise than we do.
    private(set) var differences: [String] = []
    /// What it is known to read wrongly, or only with help, in this image.
    private(set) var doubts: [String] = []

    init(_ layer: ImageLayer, _ reader: ImageReader) {
        var handle: OpaqueFile? = nil
        var error: OpaqueError? = nil
        defer { libqcow_error_free(&error) }
        guard libqcow_file_initialize(&handle, &error) == 1 else {
            refusal = Self.words(error)
            return
        }
        defer { libqcow_file_free(&handle, nil) }
        guard libqcow_file_open(handle, layer.path, libqcow_get_access_flags_read(), &error) == 1 else {
            refusal = Self.words(error)
            return
        }
        defer { libqcow_file_close(handle, nil) }
        libqcow_file_get_format_version(handle, &version, nil)
        libqcow_file_get_media_size(handle, &mediaSize, nil)
        libqcow_file_get_encryption_method(handle, &encryptionMethod, nil)
        libqcow_file_get_number_of_snapshots(handle, &snapshots, nil)
        backingFile = Self.backingFile(handle)
        compare(reader.header)
        doubt(layer, reader)
    }

    private typealias OpaqueFile = UnsafeMutablePointer<libqcow_file_t>
    private typealias OpaqueError = UnsafeMutablePointer<libqcow_error_t>

    /// The innermost reason, which is the last line of its backtrace.
    private static func words(_ error: OpaqueError?) -> String {
        var text = [CChar](repeating: 0, count: 4096)
        guard libqcow_error_backtrace_sprint(error, &text, text.count) > 0 else { return "no reason given" }
        let bytes = text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }
        let lines = String(decoding: bytes, as: UTF8.self).split(separator: "\n")
        return lines.first.map { first in
            lines.count > 1 ? "\(first) (\(lines.dropFirst().joined(separator: " ")))" : String(first)
        } ?? "no reason given"
    }

    private static func backingFile(_ handle: OpaqueFile?) -> String? {
        var size = 0
        guard libqcow_file_get_utf8_backing_filename_size(handle, &size, nil) == 1, (1...4096).contains(size) else {
            return nil
        }
        var text = [UInt8](repeating: 0, count: size)
        guard libqcow_file_get_utf8_backing_filename(handle, &text, size, nil) == 1 else { return nil }
        return String(decoding: text.prefix { $0 != 0 }, as: UTF8.self)
    }

    private mutating func compare(_ header: ImageHeader) {
        func differ(_ what: String, _ theirs: some Equatable, _ ours: some Equatable) -> String {
            "\(what): libqcow says \(theirs), we say \(ours)"
        }
        if version != UInt32(header.version) { differences.append(differ("version", version, header.version)) }
        if mediaSize != header.virtualSize {
            differences.append(differ("size of the disk", mediaSize, header.virtualSize))
        }
        if Int(snapshots) != header.snapshots.count {
            differences.append(differ("snapshots", snapshots, header.snapshots.count))
        }
        if encryptionMethod != 0 { differences.append(differ("encryption", encryptionMethod, 0)) }
        if backingFile != header.backingFile {
            differences.append(differ("backing file", backingFile ?? "none", header.backingFile ?? "none"))
        }
    }

    /// Looks at the first tables only: this is a hint, not a proof.
    private mutating func doubt(_ layer: ImageLayer, _ reader: ImageReader) {
        if reader.header.backingFile != nil {
            doubts.append("it does not open the backing file by itself: what is not in this file reads as zeroes")
        }
        var offset: UInt64 = 0
        for _ in 0..<4096 where offset < layer.size {
            guard let extent = try? layer.extent(at: offset, upTo: .max, findingHoles: false) else { break }
            if case .zero = extent.content {
                doubts.append("it reads zero clusters as old data or as the file's first bytes (at \(offset))")
                break
            }
            offset = extent.range.end
        }
    }

    var json: JSONValue {
        if let refusal { return ["opens": false, "refusal": .string(refusal)] }
        var members: [String: JSONValue] = [
            "opens": true, "format-version": .whole(UInt64(version)), "virtual-size": .whole(mediaSize),
            "encryption-method": .whole(UInt64(encryptionMethod)), "snapshots": .integer(Int64(snapshots)),
            "differences": .array(differences.map { .string($0) }), "doubts": .array(doubts.map { .string($0) }),
        ]
        if let backingFile { members["backing-filename"] = .string(backingFile) }
        return .object(members)
    }

    var lines: [String] {
        if let refusal { return ["libqcow: does not open it: \(refusal)"] }
        var lines = [
            "libqcow: opens it: version \(version), \(mediaSize) bytes, \(snapshots) snapshots, encryption "
                + "\(encryptionMethod == 0 ? "none" : String(encryptionMethod))"
                + (differences.isEmpty ? "; the same as ours" : "")
        ]
        lines += differences.map { "libqcow differs: \($0)" }
        lines += doubts.map { "libqcow beware: \($0)" }
        return lines
    }
}
