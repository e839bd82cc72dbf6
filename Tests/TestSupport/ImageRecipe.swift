import Foundation

/// Why a recipe could not be followed.
public struct RecipeFailed: Error, CustomStringConvertible {
    public let description: String

    public init(description: String) { self.description = description }
}

/// How QEMU's own programs make an image, or a chain of images. Nothing of it is ever committed.
public struct ImageRecipe: Sendable, CustomStringConvertible {
    public let name: String
    /// Which known fault of libqcow 20201213 keeps it from showing the right bytes; nil: it must.
    public let libqcowFault: String?
    /// Makes the files in a folder; returns the top file's path.
    let make: @Sendable (ImageKitchen) throws -> String

    public var description: String { name }

    /// Whether the programs are there.
    public static let canCook = Program.path(of: "qemu-img") != nil && Program.path(of: "qemu-io") != nil

    public func cook(in folder: String) throws -> String { try make(ImageKitchen(folder: folder)) }

    private init(_ name: String, fault: String? = nil, _ make: @escaping @Sendable (ImageKitchen) throws -> String) {
        self.name = name
        self.libqcowFault = fault
        self.make = make
    }

    // Faults of libqcow, by name.
    public static let zeroClusters = "zero clusters read as old data or as the file's first bytes"
    public static let extendedL2 = "extended L2 entries are refused"
    public static let zstd = "zstd is refused"
    public static let parents = "a parent has to be set by hand, and may be qcow2 of the same size only"

    private static let size = 1_310_720 + 512

    private static func plain(
        _ name: String, _ options: String, zeroes: Bool = true, fault: String? = nil, seed: UInt64
    ) -> ImageRecipe {
        // Version 2 has no zero clusters: QEMU writes zeroes there.
        let hasZeroClusters = zeroes && !options.contains("compat=0.10")
        return ImageRecipe(name, fault: fault ?? (hasZeroClusters ? zeroClusters : nil)) { kitchen in
            let path = try kitchen.create("top.qcow2", options, size: size)
            try kitchen.scribble(path, size: size, seed: seed, zeroes: zeroes)
            return path
        }
    }

    private static func compressed(
        _ name: String, _ options: String, fault: String? = nil, seed: UInt64
    ) -> ImageRecipe {
        ImageRecipe(name, fault: fault) { kitchen in
            let raw = try kitchen.raw("source.raw", size: size, seed: seed)
            let path = kitchen.path("top.qcow2")
            try kitchen.img(["convert", "-f", "raw", "-c", "-O", "qcow2", "-o", options, raw, path])
            // Some clusters are written again, in the open.
            try kitchen.io(path, ["write -P 200 70k 3k", "write -P 201 600k 40k"])
            return path
        }
    }

    /// One recipe for each feature of the format.
    public static let all: [ImageRecipe] = [
        plain("version 2", "compat=0.10", seed: 1),
        plain("version 2 without zeroes", "compat=0.10", zeroes: false, seed: 2),
        plain("version 2 with clusters of 512 bytes", "compat=0.10,cluster_size=512", zeroes: false, seed: 3),
        plain("clusters of 512 bytes", "cluster_size=512", seed: 4),
        plain("clusters of 4 KiB", "cluster_size=4k", seed: 5),
        plain("clusters of 64 KiB", "cluster_size=64k", seed: 6),
        plain("clusters of 64 KiB without zeroes", "cluster_size=64k", zeroes: false, seed: 7),
        plain("clusters of 2 MiB", "cluster_size=2M", zeroes: false, seed: 8),
        plain("extended L2, 16 KiB", "extended_l2=on,cluster_size=16k", fault: extendedL2, seed: 9),
        plain("extended L2, 64 KiB", "extended_l2=on,cluster_size=64k", fault: extendedL2, seed: 10),
        plain("extended L2, 2 MiB", "extended_l2=on,cluster_size=2M", fault: extendedL2, seed: 11),
        plain("refcounts of 1 bit", "refcount_bits=1", zeroes: false, seed: 12),
        plain("refcounts of 64 bits", "refcount_bits=64", zeroes: false, seed: 13),
        compressed("zlib", "cluster_size=64k", seed: 14),
        compressed("zlib, 4 KiB", "cluster_size=4k", seed: 15),
        compressed("zlib, 2 MiB", "cluster_size=2M", seed: 16),
        compressed("zlib, version 2, 512 bytes", "compat=0.10,cluster_size=512", seed: 17),
        compressed("zstd", "compression_type=zstd", fault: zstd, seed: 18),
        compressed("zstd, 4 KiB", "compression_type=zstd,cluster_size=4k", fault: zstd, seed: 19),
        compressed("zstd, 2 MiB", "compression_type=zstd,cluster_size=2M", fault: zstd, seed: 20),
        compressed("zlib with extended L2", "extended_l2=on,cluster_size=32k", fault: extendedL2, seed: 21),
        ImageRecipe("lazy refcounts, left dirty") { kitchen in
            let path = try kitchen.create("top.qcow2", "lazy_refcounts=on", size: size)
            try kitchen.crash(path, ["write -P 7 0 100k", "write -P 8 700k 64k", "flush"])
            return path
        },
        ImageRecipe("internal snapshots", fault: nil) { kitchen in
            let path = try kitchen.create("top.qcow2", "cluster_size=4k", size: size)
            try kitchen.scribble(path, size: size, seed: 22, zeroes: false)
            try kitchen.img(["snapshot", "-c", "first", path])
            try kitchen.io(path, ["write -P 77 10k 200k"])
            try kitchen.img(["snapshot", "-c", "second", path])
            try kitchen.io(path, ["write -P 78 100k 10k"])
            return path
        },
        ImageRecipe("persistent bitmaps", fault: zeroClusters) { kitchen in
            let path = try kitchen.create("top.qcow2", "cluster_size=64k", size: size)
            try kitchen.img(["bitmap", "--add", "--enable", path, "b0"])
            try kitchen.scribble(path, size: size, seed: 23, zeroes: true)
            return path
        },
        plain("preallocation of metadata", "preallocation=metadata", zeroes: false, seed: 24),
        plain("preallocation of space", "preallocation=falloc", zeroes: false, seed: 25),
        ImageRecipe("zeroes that keep their place", fault: zeroClusters) { kitchen in
            let path = try kitchen.create("top.qcow2", "cluster_size=4k", size: size)
            try kitchen.io(path, ["write -P 5 0 1M", "write -z 64k 256k", "write -z -u 512k 128k", "discard 768k 64k"])
            return path
        },
        ImageRecipe("nothing at all", fault: nil) { try $0.create("top.qcow2", "cluster_size=64k", size: size) },
        ImageRecipe("over raw", fault: parents) { kitchen in
            _ = try kitchen.raw("base.raw", size: size, seed: 30)
            return try kitchen.overlay("top.qcow2", over: "base.raw", "raw", "cluster_size=4k", seed: 31)
        },
        ImageRecipe("over a shorter raw", fault: parents) { kitchen in
            _ = try kitchen.raw("base.raw", size: 700_000, seed: 32)
            return try kitchen.overlay("top.qcow2", over: "base.raw", "raw", "cluster_size=64k", seed: 33)
        },
        ImageRecipe("over a longer qcow2", fault: parents) { kitchen in
            let base = try kitchen.create("base.qcow2", "cluster_size=2M", size: 3 << 20)
            try kitchen.scribble(base, size: 3 << 20, seed: 34, zeroes: true)
            return try kitchen.overlay("top.qcow2", over: "base.qcow2", "qcow2", "cluster_size=64k", seed: 35)
        },
        ImageRecipe("extended L2 over compressed over raw", fault: parents) { kitchen in
            _ = try kitchen.raw("base.raw", size: size, seed: 36)
            let middle = kitchen.path("middle.qcow2")
            try kitchen.img(["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", middle])
            try kitchen.io(middle, ["write -c -P 9 64k 64k", "write -c -P 10 640k 64k", "write -P 11 704k 1k"])
            return try kitchen.overlay(
                "top.qcow2", over: "middle.qcow2", "qcow2", "extended_l2=on,cluster_size=64k", seed: 37)
        },
        ImageRecipe("a chain of nine", fault: parents) { kitchen in
            _ = try kitchen.raw("0.raw", size: size, seed: 40)
            var below = "0.raw"
            for level in 1...8 {
                let options = level % 2 == 0 ? "cluster_size=4k" : "cluster_size=16k"
                _ = try kitchen.overlay(
                    "\(level).qcow2", over: below, level == 1 ? "raw" : "qcow2", options, seed: 40 + UInt64(level),
                    writes: 6)
                below = "\(level).qcow2"
            }
            return kitchen.path("8.qcow2")
        },
        ImageRecipe("a sparse raw file", fault: "it is no qcow2") { try $0.raw("top.raw", size: size, seed: 50) },
    ]

    /// The recipe of this name. Traps when there is none.
    public static func named(_ name: String) -> ImageRecipe {
        guard let recipe = all.first(where: { $0.name == name }) else { preconditionFailure("no recipe '\(name)'") }
        return recipe
    }
}
