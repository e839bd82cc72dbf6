import QEMU
import Testing

/// Media that were changed since the start, and other changes of a running machine.
@Suite struct GuestMediaTests {
    private static func drive(_ device: String, qdev: String, file: String?, node: String = "#block9") -> JSONValue {
        var entry: [String: JSONValue] = ["device": .string(device), "qdev": .string(qdev), "removable": true]
        if let file {
            entry["inserted"] = [
                "node-name": .string(node), "ro": true, "drv": "raw", "file": .string(file),
                "image": ["virtual-size": 1_048_576, "filename": .string(file), "format": "raw"],
            ]
        }
        return .object(entry)
    }

    private static func build(_ text: String, _ drives: [JSONValue]) throws -> FailoverCommand {
        let sample = GuestSample(
            arguments: GuestSample.words("qemu-system-x86_64 -m 256 " + text),
            answers: GuestSample.answers(disks: drives))
        let written = try sample.identity(ram: []).encoded()
        return FailoverCommand.build(
            try GuestIdentity.decode(written),
            .init(disks: [:], ram: [], runtimeDirectory: "/run/g", qmpSocket: "/run/g/qmp", mode: .failover))
    }

    private static let cdrom = "-drive if=none,id=cd0,media=cdrom,file=/a.iso,format=raw -device ide-cd,drive=cd0,id=cd"

    @Test(
        "what was in the drive is in the new one's",
        arguments: [
            (cdrom, "cd0", "cd", "/a.iso", "if=none,id=cd0,media=cdrom,file=/a.iso,format=raw"),
            (cdrom, "cd0", "cd", "/b,c.iso", "file=/b,,c.iso,format=raw,if=none,id=cd0,media=cdrom"),
            (cdrom, "cd0", "cd", nil, "if=none,id=cd0,media=cdrom"),
            ("-cdrom /a.iso", "ide1-cd0", "", "/a.iso", "file=/a.iso,index=2,media=cdrom"),
            ("-cdrom /a.iso", "ide1-cd0", "", "/b.iso", "file=/b.iso,format=raw,index=2,media=cdrom"),
            ("-cdrom /a.iso", "ide1-cd0", "", nil, "index=2,media=cdrom"),
            ("-drive media=cdrom,id=cd0", "cd0", "", "/b.iso", "file=/b.iso,format=raw,media=cdrom,id=cd0"),
            ("-drive media=cdrom,id=cd0", "cd0", "", nil, "media=cdrom,id=cd0"),
        ])
    func drives(_ text: String, _ device: String, _ qdev: String, _ file: String?, _ expected: String) throws {
        let command = try Self.build(text, [Self.drive(device, qdev: qdev, file: file)])
        #expect(command.arguments.contains(expected), "\(command.arguments)")
        #expect(!command.hasBlockers, "\(command.findings)")
    }

    private static let node =
        "-blockdev driver=file,node-name=f,filename=/a.iso,read-only=on "
        + "-blockdev driver=raw,node-name=n,file=f,read-only=on -device ide-cd,drive=n,id=cd"

    @Test func aDriveMadeOfNodes() throws {
        let same = try Self.build(Self.node, [Self.drive("", qdev: "cd", file: "/a.iso", node: "n")])
        #expect(same.arguments.contains("driver=raw,node-name=n,file=f,read-only=on") && !same.hasBlockers)
        let other = try Self.build(Self.node, [Self.drive("", qdev: "cd", file: "/b.iso", node: "#block7")])
        let expected = "driver=raw,node-name=n,read-only=on,file.driver=file,file.filename=/b.iso"
        #expect(other.arguments.contains(expected) && !other.hasBlockers, "\(other.arguments)")
        let empty = try Self.build(Self.node, [Self.drive("", qdev: "cd", file: nil)])
        #expect(empty.findings.contains { $0.code == "medium-ejected" && $0.severity == .blocker })
    }

    @Test func aMediumThatNoOptionHasRoomFor() throws {
        let command = try Self.build("-m 256", [Self.drive("ide1-cd0", qdev: "", file: "/b.iso")])
        #expect(command.findings.contains { $0.code == "medium-not-on-command-line" && $0.severity == .blocker })
        #expect(!(try Self.build("-m 256", [Self.drive("ide1-cd0", qdev: "", file: nil)])).hasBlockers)
    }

    @Test func aDeviceOfTheCommandLineThatIsGone() {
        var answers = GuestSample.answers(disks: [])
        let words = GuestSample.words(
            "qemu-system-x86_64 -device virtio-rng-pci,id=rng -device virtio-balloon-pci,id=b")
        answers.peripherals = [.init(name: "b", type: "virtio-balloon-pci", hotplugged: false)]
        func codes() -> [String] {
            DoctorReport.examine(answers, arguments: words, outOfBand: true).findings
                .filter { $0.severity == .blocker }.map(\.code)
        }
        #expect(codes() == ["unplugged-device"])
        answers.peripherals.append(.init(name: "rng", type: "virtio-rng-pci", hotplugged: false))
        #expect(codes().isEmpty)
    }

    @Test("what changes a machine is named, and nothing else is a change")
    func shape() throws {
        func shape(
            _ file: String?, _ devices: [String], cpus: Int = 1, jobs: Bool = false
        ) -> GuestShape {
            var answers = GuestSample.answers(disks: [Self.drive("cd0", qdev: "cd", file: file)])
            answers.peripherals = devices.map { .init(name: $0, type: "virtio-net-pci", hotplugged: false) }
            answers.answers["query-cpus-fast"] = .array((0..<cpus).map { ["cpu-index": .integer(Int64($0))] })
            if jobs { answers.answers["query-block-jobs"] = [["device": "colo-blk-mirror-0"]] }
            return GuestShape(answers)
        }
        let before = shape("/a.iso", ["nic0"])
        #expect(shape("/a.iso", ["nic0"], jobs: true).change(since: before) == nil)
        #expect(shape("/b.iso", ["nic0"]).change(since: before) == "drive cd0 holds /b.iso")
        #expect(shape(nil, ["nic0"]).change(since: before) == "drive cd0 holds nothing")
        let other = shape("/a.iso", ["nic1"], cpus: 2).change(since: before)
        #expect(other == "device nic0 is gone, device nic1 was plugged in, 2 processors instead of 1")
    }
}
