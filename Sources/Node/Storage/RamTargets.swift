import Glibc
import RamCache
import Units

/// Decodes an epoch into the staging; the cache keeps the last commit.
struct RamStagingTarget: PageBatchTarget {
    let staging: RamStaging
    let cache: RamCacheFiles

    func reference(block: Int, page: UInt64) -> UnsafeRawPointer? {
        switch staging.place(cache.layout.globalPage(block: block, page: page)) {
        case .absent: cache.page(block, page)
        case .zero: nil
        case .data(let contents): UnsafeRawPointer(contents)
        }
    }

    func destination(block: Int, page: UInt64) throws(RamStoreError) -> UnsafeMutableRawPointer {
        // The cache's memory is taken now, so that nothing can fail once the epoch is committed.
        try cache.take(block, page)
        return try staging.stage(cache.layout.globalPage(block: block, page: page))
    }

    func zero(block: Int, page: UInt64) throws(RamStoreError) {
        let global = cache.layout.globalPage(block: block, page: page)
        if case .absent = staging.place(global), cache.page(block, page) == nil { return }
        try staging.stageZero(global)
    }
}

/// Decodes straight into a cache that nobody uses yet: the initial copy, and a rebuild from disk.
struct RamFillTarget: PageBatchTarget {
    let cache: RamCacheFiles

    func reference(block: Int, page: UInt64) -> UnsafeRawPointer? { cache.page(block, page) }

    func destination(block: Int, page: UInt64) throws(RamStoreError) -> UnsafeMutableRawPointer {
        try cache.take(block, page)
        return cache.writablePage(block, page)
    }

    func zero(block: Int, page: UInt64) throws(RamStoreError) {
        guard cache.page(block, page) != nil else { return }
        memset(cache.writablePage(block, page), 0, Sizes.page)
    }
}
