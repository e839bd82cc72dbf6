// swift-tools-version: 6.1
import PackageDescription

// The disk pipeline measured from inside: a package of its own, so that the product does not depend on it.
let package = Package(
    name: "pipeline",
    platforms: [.macOS(.v15)],
    dependencies: [.package(name: "colo-blk", path: "../..")],
    targets: [
        .executableTarget(
            name: "pipeline", dependencies: [.product(name: "ColoBlkEngine", package: "colo-blk")],
            swiftSettings: [
                .swiftLanguageMode(.v6), .enableUpcomingFeature("ExistentialAny"),
                .enableUpcomingFeature("MemberImportVisibility"),
            ])
    ]
)
