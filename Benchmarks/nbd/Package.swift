// swift-tools-version: 6.1
import PackageDescription

let package = Package(
    name: "nbd-benchmark",
    platforms: [.macOS(.v15)],
    dependencies: [
        .package(name: "colo-blk", path: "../.."),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.0"),
    ],
    targets: [
        .executableTarget(
            name: "nbd-memory",
            dependencies: [
                .product(name: "ColoBlkEngine", package: "colo-blk"), .product(name: "Logging", package: "swift-log"),
            ],
            swiftSettings: [.swiftLanguageMode(.v6)])
    ]
)
