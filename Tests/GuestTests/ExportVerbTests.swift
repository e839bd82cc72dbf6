import Foundation
import Glibc
import Testing

extension RealGuests {
    /// `colo-blk export` of a guest that goes on writing, and being protected.
    @Suite struct ExportVerbTests {
        @Test(.enabled(if: access("/usr/bin/qemu-img", X_OK) == 0, "qemu-img is not installed"))
        func viewsStayWhatTheyWereWhileTheGuestIsProtectedFurther() throws {
            try Scene.run("export") { scene in
                let guest = try scene.launch(.init(workload: .disk))
                let secondary = try scene.startedSecondary()
                let name = scene.guestName("g")
                try guest.waitUntilBusy()
                let attach = try scene.attach(guest, to: secondary, name: name)
                try attach.waitUntilProtected()
                try secondary.waitForProof(name)

                let first = try View(scene, secondary, name, number: 0)
                let disk = try first.contents()
                try secondary.waitForCheckpoints(5, of: name)
                let second = try View(scene, secondary, name, number: 1, options: ["--writable-scratch"])
                #expect(second.epoch >= first.epoch + 5)
                let later = try second.contents()
                #expect(later != disk, "the guest has written in between")
                // What is written into a view is its own.
                try second.io("write -P 165 1M 64k", "read -P 165 1M 64k")
                try secondary.waitForCheckpoints(5, of: name)
                #expect(try first.contents() == disk)
                let written = try second.contents()
                #expect(written[..<(1 << 20)] == later[..<(1 << 20)])
                #expect(written[(1 << 20) + 65_536..<later.count] == later[(1 << 20) + 65_536..<later.count])
                #expect(written[(1 << 20)..<(1 << 20) + 65_536].allSatisfy { $0 == 165 })

                let status = try secondary.status(name)
                #expect(status["state"].string == "protected", "\(status)")
                #expect(status["exports"].array.map { $0["epoch"].int } == [first.epoch, second.epoch], "\(status)")
                try first.close()
                try second.close()
                try attach.detach()
                try guest.checkAlive()
                let folder = "\(secondary.store)/\(name)/disks"
                let left = try FileManager.default.subpathsOfDirectory(atPath: folder).filter { $0.contains("view-") }
                #expect(left.isEmpty, "\(left)")
            }
        }

        /// One `colo-blk export` and its disk as clients see it.
        private final class View {
            let epoch: Int
            private let process: ChildProcess
            private let uri: String
            private let directory: String

            init(
                _ scene: Scene, _ secondary: Secondary, _ name: String, number: Int, options: [String] = []
            ) throws {
                guard let binary = Settings.binary else { throw TestFailure("COLO_BLK_BIN is not set") }
                directory = scene.directory
                let output = "\(scene.directory)/view\(number)"
                let process = try ChildProcess(
                    "export", binary,
                    ["export", name, "--store", secondary.store, "--socket", output + ".sock", "--json"] + options,
                    output: output + ".json", error: output + ".log")
                self.process = process
                try waitUntil("the view is open", within: 20, seen: { process.errorText }) {
                    guard process.isRunning else { throw TestFailure("export ended: \(process.errorText)") }
                    return (try? JSON(parsing: process.outputText))?["disks"].array.isEmpty == false
                }
                let report = try JSON(parsing: process.outputText)
                guard let epoch = report["epoch"].int, let uri = report["disks"][0]["uri"].string else {
                    throw TestFailure("export says: \(process.outputText)")
                }
                (self.epoch, self.uri) = (epoch, uri)
            }

            func contents() throws -> Data {
                let path = "\(directory)/view.raw"
                defer { unlink(path) }
                try tool("qemu-img", ["convert", "-f", "raw", "-O", "raw", uri, path])
                return try Data(contentsOf: URL(fileURLWithPath: path))
            }

            func io(_ commands: String...) throws {
                let said = try tool("qemu-io", ["-f", "raw"] + commands.flatMap { ["-c", $0] } + [uri])
                #expect(!said.contains("failed"), "\(said)")
            }

            func close() throws {
                process.signal(SIGTERM)
                let code = try process.waitForExit(within: 10)
                #expect(code == 0, "\(process.errorText)")
            }

            @discardableResult
            private func tool(_ name: String, _ arguments: [String]) throws -> String {
                let log = "\(directory)/tool.log"
                defer { unlink(log) }
                let process = try ChildProcess(name, name, arguments, output: log)
                let code = try process.waitForExit(within: 60)
                guard code == 0 else { throw TestFailure("\(name) exits with \(code): \(process.outputText)") }
                return process.outputText
            }
        }
    }
}
