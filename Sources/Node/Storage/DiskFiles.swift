import Units

/// The names of the files in a disk's directory.
enum DiskFiles {
    /// The disk that receives the primary's writes.
    static let secondary = "secondary.raw"
    /// Behind the name of a file that is not complete yet; recovery removes such files.
    static let unfinishedSuffix = ".new"

    /// The hidden disk with the pre-images of blocks overwritten in this epoch.
    static func hidden(_ epoch: Epoch) -> String { "hidden-\(epoch.rawValue).qcow2" }

    /// What a view of this checkpoint has set aside; see ``DiskViews``.
    static func view(_ epoch: Epoch) -> String { "view-\(epoch.rawValue).raw" }

    /// What a client of an export has written and nobody keeps.
    static func scratch(_ number: Int) -> String { "view-scratch-\(number).raw" }

    /// The epoch of a hidden disk's name; nil for other names.
    static func hiddenEpoch(_ name: String) -> Epoch? {
        guard name.hasPrefix("hidden-"), name.hasSuffix(".qcow2") else { return nil }
        guard let number = UInt64(name.dropFirst(7).dropLast(6)) else { return nil }
        let epoch = Epoch(number)
        return hidden(epoch) == name ? epoch : nil
    }
}
