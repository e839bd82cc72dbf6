// swift-tools-version: 6.1
import PackageDescription

// libFuzzer targets; see README.md. A target's main function is libFuzzer's own.
let fuzzer: [SwiftSetting] = [.swiftLanguageMode(.v6), .unsafeFlags(["-parse-as-library"])]

func target(_ name: String, _ more: [Target.Dependency] = []) -> Target {
    .executableTarget(
        name: name, dependencies: [.product(name: "ColoBlkLanguages", package: "colo-blk")] + more,
        swiftSettings: fuzzer)
}

let package = Package(
    name: "colo-blk-fuzz",
    platforms: [.macOS(.v15)],
    dependencies: [.package(name: "colo-blk", path: "..")],
    targets: [
        target("FuzzMigrationStream"),
        target("FuzzPageBatch"),
        target("FuzzNBD"),
        target("FuzzPackets"),
        // The door to zlib is a link to the main package's, and so is the unpacker that goes through it.
        .systemLibrary(name: "FuzzZlib", pkgConfig: "zlib"),
        target("FuzzQcow2", ["FuzzZlib"]),
    ]
)
