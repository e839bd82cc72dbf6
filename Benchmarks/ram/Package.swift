// swift-tools-version: 6.1
import PackageDescription

// Page encoding beside its peers, on pages of real guests. See ../README.md.
let package = Package(
    name: "ram-bench",
    platforms: [.macOS(.v15)],
    dependencies: [.package(name: "colo-blk", path: "../..")],
    targets: [
        .target(
            name: "Peers", cSettings: [.unsafeFlags(["-O3"])], linkerSettings: [.linkedLibrary("zstd")]),
        .executableTarget(
            name: "RamBench", dependencies: ["Peers", .product(name: "ColoBlkLanguages", package: "colo-blk")],
            swiftSettings: [.swiftLanguageMode(.v6)]),
    ]
)
