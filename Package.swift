// swift-tools-version: 6.1
import PackageDescription

// Who may import whom is written in docs/architecture.md and enforced by Tests/ArchitectureTests.

let swiftSettings: [SwiftSetting] = [
    .swiftLanguageMode(.v6),
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("MemberImportVisibility"),
]

let argumentParser: Target.Dependency = .product(name: "ArgumentParser", package: "swift-argument-parser")
let logging: Target.Dependency = .product(name: "Logging", package: "swift-log")
let nioCore: Target.Dependency = .product(name: "NIOCore", package: "swift-nio")
let nioPosix: Target.Dependency = .product(name: "NIOPosix", package: "swift-nio")
let nioTLS: Target.Dependency = .product(name: "NIOTLS", package: "swift-nio")
let nioSSL: Target.Dependency = .product(name: "NIOSSL", package: "swift-nio-ssl")
let crypto: Target.Dependency = .product(name: "Crypto", package: "swift-crypto")
let serviceLifecycle: Target.Dependency = .product(name: "ServiceLifecycle", package: "swift-service-lifecycle")
let unixSignals: Target.Dependency = .product(name: "UnixSignals", package: "swift-service-lifecycle")
let subprocess: Target.Dependency = .product(name: "Subprocess", package: "swift-subprocess")
let systemPackage: Target.Dependency = .product(name: "SystemPackage", package: "swift-system")

let package = Package(
    name: "colo-blk",
    platforms: [.macOS(.v15)],
    products: [
        .executable(name: "colo-blk", targets: ["colo-blk"]),
        // For Benchmarks and Fuzz, which are packages of their own.
        .library(name: "ColoBlkEngine", targets: ["Node", "RamCache", "NBD", "Qcow2", "QEMU", "Link", "Units"]),
        // What reads bytes from outside, without the corridor.
        .library(name: "ColoBlkLanguages", targets: ["NBD", "Qcow2", "QEMU", "Link", "RamCache", "Units"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.0"),
        .package(url: "https://github.com/apple/swift-crypto", from: "4.5.0"),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.0"),
        .package(url: "https://github.com/apple/swift-nio", from: "2.101.0"),
        .package(url: "https://github.com/apple/swift-nio-ssl", from: "2.37.0"),
        .package(url: "https://github.com/apple/swift-system", from: "1.8.0"),
        .package(url: "https://github.com/swift-server/swift-service-lifecycle", from: "2.13.0"),
        .package(url: "https://github.com/swiftlang/swift-subprocess", from: "1.0.2", traits: []),
    ],
    targets: [
        // Doors to C.
        .target(name: "CAio", linkerSettings: [.linkedLibrary("aio")]),
        .target(name: "CKernels"),
        .target(name: "CLinux"),
        .systemLibrary(name: "CZlib", pkgConfig: "zlib", providers: [.apt(["zlib1g-dev"])]),
        .systemLibrary(name: "CZstd", pkgConfig: "libzstd", providers: [.apt(["libzstd-dev"])]),
        .systemLibrary(name: "CQcow", pkgConfig: "libqcow", providers: [.apt(["libqcow-dev"])]),

        // Words and disks.
        .target(name: "Units", dependencies: ["CKernels"], swiftSettings: swiftSettings),
        .target(name: "AsyncIO", dependencies: ["Units", "CAio", systemPackage], swiftSettings: swiftSettings),

        // Languages: bytes in, events and actions out.
        .target(name: "NBD", dependencies: ["Units"], swiftSettings: swiftSettings),
        .target(name: "QEMU", dependencies: ["Units"], swiftSettings: swiftSettings),
        .target(name: "Qcow2", dependencies: ["Units"], swiftSettings: swiftSettings),
        .target(name: "Link", dependencies: ["Units"], swiftSettings: swiftSettings),

        // The engine: decisions, no I/O.
        .target(name: "BlockReplica", dependencies: ["Units", "Qcow2"], swiftSettings: swiftSettings),
        .target(name: "RamCache", dependencies: ["Units", "CZstd"], swiftSettings: swiftSettings),
        .target(name: "Checkpointer", dependencies: ["Units"], swiftSettings: swiftSettings),

        // The corridor and the front door.
        .target(
            name: "Node",
            dependencies: [
                "Units", "AsyncIO", "NBD", "QEMU", "Qcow2", "Link", "BlockReplica", "RamCache", "Checkpointer",
                "CLinux", "CQcow", "CZlib", "CZstd", crypto, nioCore, nioPosix, nioSSL, nioTLS, logging,
                subprocess, systemPackage,
            ],
            swiftSettings: swiftSettings),
        .executableTarget(
            name: "colo-blk",
            dependencies: ["Node", "Units", argumentParser, logging, serviceLifecycle, unixSignals],
            swiftSettings: swiftSettings),

        // Tests.
        .target(name: "TestSupport", path: "Tests/TestSupport", swiftSettings: swiftSettings),
        // Two hosts in virtual time; and the program that runs them for hours.
        .target(
            name: "Simulator",
            dependencies: ["Units", "Link", "Qcow2", "BlockReplica", "RamCache", "Checkpointer", "TestSupport"],
            path: "Tests/Simulator", swiftSettings: swiftSettings),
        .executableTarget(
            name: "simulate", dependencies: ["Simulator"], path: "Tests/simulate", swiftSettings: swiftSettings),
        test("SimulationTests", ["Simulator", "Units"]),
        test("UnitsTests", ["Units"]),
        test("AsyncIOTests", ["AsyncIO", "Units", systemPackage]),
        test("NBDTests", ["NBD", "Units"]),
        test("QEMUTests", ["QEMU", "Units"]),
        test("Qcow2Tests", ["Qcow2", "CQcow", "Units"]),
        test("LinkTests", ["Link", "Units"]),
        test("BlockReplicaTests", ["BlockReplica", "Qcow2", "Units"]),
        test("RamCacheTests", ["RamCache", "Units"]),
        test("CheckpointerTests", ["Checkpointer", "Units"]),
        test(
            "NodeTests",
            [
                "Node", "QEMU", "Units", "AsyncIO", "Qcow2", "BlockReplica", "RamCache", "Link", "Checkpointer", "NBD",
                "CLinux", nioCore, nioPosix, logging, systemPackage,
            ]),
        // Other programs as our clients and servers: qemu-img, qemu-io, nbdkit, libnbd, fio; black box.
        .testTarget(
            name: "InteropTests", dependencies: ["TestSupport"], exclude: ["Resources"], swiftSettings: swiftSettings),
        test("ArchitectureTests", []),
        // Real guests; black box but for the formats on the wire.
        test("GuestTests", ["Link", "Checkpointer", "Units", "QEMU"]),
    ]
)

func test(_ name: String, _ dependencies: [Target.Dependency]) -> Target {
    .testTarget(name: name, dependencies: dependencies + ["TestSupport"], swiftSettings: swiftSettings)
}
