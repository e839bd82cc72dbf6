import Qcow2
import QEMU

/// `colo-blk image check`: one file's tables against its refcounts.
public struct ImageCheckReport: Sendable {
    /// How qemu-img ends.
    public enum Verdict: Int32, Sendable {
        case clean = 0
        case corrupt = 2
        case leaks = 3
    }

    public let path: String
    public let result: ImageCheckResult

    public var verdict: Verdict {
        result.corruptions > 0 ? .corrupt : result.leaks > 0 ? .leaks : .clean
    }

    /// What is wrong, in words; a last line says how many more there are.
    public var findings: [String] {
        let more = result.corruptions + result.leaks - result.findings.count
        return result.findings + (more > 0 ? ["... and \(more) more"] : [])
    }

    /// Checks one qcow2 file; what is below it is not opened. `nil`: the format has nothing to check.
    public static func check(path: String, format: ImageFormat?) throws(ImageChainError) -> ImageCheckReport? {
        _ = try FileIdentity(path)
        let layer = try ImageLayer(path: path, format: format, direct: true)
        guard let reader = layer.reader else { return nil }
        var check = ImageCheck(reader)
        try layer.run(&check)
        return ImageCheckReport(path: path, result: check.result)
    }

    /// The keys of `qemu-img check --output=json`; as there, figures that are 0 are left out where they may be.
    public var json: JSONValue {
        var members: [String: JSONValue] = [
            "filename": .string(path), "format": "qcow2", "check-errors": 0,
            "image-end-offset": .whole(result.endOffset), "total-clusters": .whole(result.totalClusters),
        ]
        func add(_ key: String, _ value: UInt64) { if value > 0 { members[key] = .whole(value) } }
        add("corruptions", UInt64(result.corruptions))
        add("leaks", UInt64(result.leaks))
        add("allocated-clusters", result.allocatedClusters)
        add("fragmented-clusters", result.fragmentedClusters)
        add("compressed-clusters", result.compressedClusters)
        return .object(members)
    }

    public func text() throws -> String { try JSONText.encode(json) }

    public var lines: [String] {
        var lines: [String] = []
        if result.corruptions == 0 && result.leaks == 0 { lines.append("No errors were found on the image.") }
        if result.corruptions > 0 {
            lines += [
                "\(result.corruptions) errors were found on the image.",
                "Data may be corrupted, or further writes to the image may corrupt it.",
            ]
        }
        if result.leaks > 0 {
            lines += [
                "\(result.leaks) leaked clusters were found on the image.",
                "This means waste of disk space, but no harm to data.",
            ]
        }
        if result.totalClusters > 0 {
            let allocated = percent(result.allocatedClusters, of: result.totalClusters)
            let fragmented = percent(result.fragmentedClusters, of: result.allocatedClusters)
            let compressed = percent(result.compressedClusters, of: result.allocatedClusters)
            lines.append(
                "\(result.allocatedClusters)/\(result.totalClusters) = \(allocated)% allocated, \(fragmented)% "
                    + "fragmented, \(compressed)% compressed clusters")
        }
        lines.append("Image end offset: \(result.endOffset)")
        return lines
    }

    private func percent(_ part: UInt64, of total: UInt64) -> String {
        total == 0 ? "0.00" : Fixed.text(Double(part) * 100 / Double(total), 2)
    }
}
