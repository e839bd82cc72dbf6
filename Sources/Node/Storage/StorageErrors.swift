import AsyncIO

/// What storage errors of every kind have in common.
enum StorageErrors {
    /// Whether the medium, or a quota, is full.
    static func isNoSpace(_ error: any Error) -> Bool {
        switch error {
        case let error as IOError: error.isNoSpace
        case let error as DiskReplicaError: error.isNoSpace
        case let error as RamStoreError: error.isNoSpace
        default: false
        }
    }
}
