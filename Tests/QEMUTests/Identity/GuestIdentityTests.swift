import QEMU
import Testing

@Suite struct GuestIdentityTests {
    @Test func writableInsertedDisksAreTakenAndTheOthersAreNot() throws {
        let identity = try GuestSample.plain.identity()
        #expect(identity.disks.map(\.id) == ["virtio0", "hd1", "ide0-hd0"])
        #expect(identity.disks.map(\.discard) == [true, false, false])
        #expect(identity.disks[0].node == "#block1" && identity.disks[0].size == 67_108_864)
        #expect(identity.machine == "pc-i440fx-7.2" && identity.memoryBackend == "pc.ram")
        #expect(identity.networks == [GuestNetwork(id: "n0", kind: "user", vhost: false)])
    }

    @Test func disksMadeWithBlockdevAreNamedAfterTheirNode() throws {
        let identity = try GuestSample.libvirt.identity()
        #expect(identity.disks.map(\.id) == ["libvirt-2-format"])
        #expect(identity.disks.first?.discard == true)
        #expect(identity.networks.first?.vhost == true)
    }

    @Test func idsAreUniqueAndFitForDirectories() throws {
        var sample = GuestSample.plain
        sample.answers.answers["query-block"] = [
            GuestSample.disk("a/b", node: "#1", qdev: "x", file: "1"),
            GuestSample.disk("a_b", node: "#2", qdev: "y", file: "2"),
            GuestSample.disk("", node: "#3", qdev: "/machine/..", file: "3"),
            GuestSample.disk("", node: "..", qdev: "", file: "4"),
        ]
        #expect(try sample.identity().disks.map(\.id) == ["a_b", "a_b-2", "_machine_..", "disk"])
    }

    @Test func guestJsonSurvivesAndAnotherFormatIsRefused() throws {
        var identity = try GuestSample.libvirt.identity(ram: [RamBlockDescription(name: "pc.ram", length: 268_435_456)])
        identity.configuration = [1, 2, 255]
        #expect(try GuestIdentity.decode(identity.encoded()) == identity)
        identity.format = 2
        let bytes = try identity.encoded()
        #expect(throws: GuestIdentity.UnknownFormat(format: 2)) { try GuestIdentity.decode(bytes) }
        #expect(throws: (any Error).self) { try GuestIdentity.decode(Array("{\"format\":1}".utf8)) }
        #expect(throws: (any Error).self) { try GuestIdentity.decode([]) }
    }

    @Test func missingAnswersAreNamed() {
        #expect(throws: GuestIdentity.Incomplete.self) {
            try GuestIdentity.capture(GuestAnswers(), arguments: ["qemu"])
        }
    }

    @Test func hotPluggedDevicesAreRemembered() throws {
        var sample = GuestSample.plain
        sample.answers.peripherals = [
            .init(name: "nic1", type: "e1000", hotplugged: true), .init(name: "s0", type: "x", hotplugged: false),
        ]
        #expect(try sample.identity().hotplugged == ["nic1 (e1000)"])
    }
}
