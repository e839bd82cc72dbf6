import QEMU
import Testing

@Suite struct FailoverCommandTests {
    private static let ram = [
        RamBlockDescription(name: "pc.ram", length: 268_435_456),
        RamBlockDescription(name: "0000:00:02.0/vga.vram", length: 16_777_216),
    ]

    private func build(
        _ identity: GuestIdentity, _ mode: FailoverCommand.Mode = .failover, block: String? = "pc.ram",
        executable: String? = nil
    ) -> FailoverCommand {
        var disks: [String: FailoverCommand.Image] = [:]
        for disk in identity.disks { disks[disk.id] = .init(path: "/s/\(disk.id),x.qcow2") }
        let ram = block.map { [FailoverCommand.MappedBlock(name: $0, path: "/dev/shm/r", size: 268_435_456)] } ?? []
        return FailoverCommand.build(
            identity,
            .init(
                disks: disks, ram: ram, runtimeDirectory: "/run/g", qmpSocket: "/run/g/qmp", mode: mode,
                extraArguments: ["-incoming", "defer"], executable: executable))
    }

    private func codes(_ command: FailoverCommand, _ severity: Finding.Severity) -> [String] {
        command.findings.filter { $0.severity == severity }.map(\.code)
    }

    private func sample(_ text: String, disks: [JSONValue] = []) throws -> GuestIdentity {
        try GuestSample(
            arguments: GuestSample.words("qemu-system-x86_64 -m 256 " + text),
            answers: GuestSample.answers(disks: disks)
        ).identity(ram: Self.ram)
    }

    @Test func aPlainCommandLineIsCarriedOver() throws {
        let command = build(try GuestSample.plain.identity(ram: Self.ram))
        let expected = [
            "-machine", "pc-i440fx-7.2,memory-backend=pc.ram", "-m", "size=262144K", "-smp", "2", "-nographic",
            "-drive", "file=/s/virtio0,,x.qcow2,format=qcow2,if=virtio,discard=unmap",
            "-drive", "file=/s/hd1,,x.qcow2,format=qcow2,if=none,id=hd1,cache=none,serial=S1",
            "-device", "virtio-scsi-pci,id=s0", "-device", "scsi-hd,drive=hd1,bus=s0.0,id=disk1",
            "-drive", "file=/s/ide0-hd0,,x.qcow2,format=qcow2,index=0,media=disk",
            "-drive", "file=/home/me/boot.iso,index=2,media=cdrom", "-kernel", "/home/me/vmlinuz",
            "-append", "console=ttyS0", "-netdev", "user,id=n0,hostfwd=tcp::2222-:22",
            "-device", "virtio-net-pci,netdev=n0", "-object",
            "memory-backend-file,id=pc.ram,size=268435456,mem-path=/dev/shm/r,share=off,"
                + "x-use-canonical-path-for-ramblock-id=off",
            "-serial", "file:/run/g/serial0.log", "-monitor", "none", "-qmp",
            "unix:/run/g/qmp,server=on,wait=off", "-incoming", "defer",
        ]
        #expect(command.arguments == expected)
        #expect(command.executable == "/usr/bin/qemu-system-x86_64")
        #expect(!command.hasBlockers && codes(command, .note) == ["external-file"])
    }

    @Test func libvirtsNodesAreReplacedWholeAndItsDescriptorsAreNamed() throws {
        let command = build(try GuestSample.libvirt.identity(ram: Self.ram))
        let text = command.arguments
        #expect(
            text.contains(
                "driver=qcow2,node-name=libvirt-2-format,discard=unmap,file.driver=file,"
                    + "file.filename=/s/libvirt-2-format,,x.qcow2"))
        for gone in ["vm1.qcow2", "base.qcow2", "libvirt-2-storage", "libvirt-3", "charmonitor", "fd=", "memfd"] {
            #expect(!text.contains { $0.contains(gone) }, "\(gone)")
        }
        #expect(text.contains { $0.contains("/img/cd.iso") } && text.contains { $0.contains("libvirt-1-format") })
        #expect(text.contains("file,id=charserial0,path=/run/g/charserial0.log"))
        #expect(text.contains("socket,id=charchannel0,path=/run/g/charchannel0.sock,server=on,wait=off"))
        #expect(text.contains("pc-q35-7.2,usb=off,dump-guest-core=off,memory-backend=pc.ram"))
        #expect(
            text.contains(
                "memory-backend-file,id=pc.ram,size=268435456,mem-path=/dev/shm/r,share=off,"
                    + "x-use-canonical-path-for-ramblock-id=off"))
        #expect(text.contains("-no-shutdown") && text.contains("127.0.0.1:0") && !text.contains("-S"))
        #expect(codes(command, .blocker) == ["inherited-descriptor"])
    }

    @Test func aProofTouchesNothingOutside() throws {
        let command = build(try GuestSample.libvirt.identity(ram: Self.ram), .proof)
        let text = command.arguments
        #expect(text.contains("tap,id=hostnet0,script=no,downscript=no"))
        #expect(text.contains("null,id=charserial0") && text.contains("null,id=charchannel0"))
        #expect(text.contains("-S") && !text.contains("-vnc"))
        #expect(text.firstIndex(of: "-display").map { text[$0 + 1] } == "none")
        #expect(!command.hasBlockers)
        let plain = build(try GuestSample.plain.identity(ram: Self.ram), .proof).arguments
        #expect(plain.contains("user,id=n0,restrict=on") && plain.contains("null"))
        #expect(!plain.contains { $0.contains("hostfwd") || $0.contains("/run/g/serial") })
    }

    @Test func anObjectNamedByItsPathKeepsThatName() throws {
        var identity = try sample("-M q35,memory-backend=m0 -object memory-backend-memfd,id=m0,size=256M,share=on")
        identity.memoryBackend = "m0"
        identity.ramLayout = [RamBlockDescription(name: "/objects/m0", length: 268_435_456)]
        #expect(FailoverCommand.mappableBlocks(identity) == ["/objects/m0"])
        let command = build(identity, block: "/objects/m0")
        #expect(
            command.arguments.contains(
                "memory-backend-file,id=m0,size=268435456,mem-path=/dev/shm/r,share=off,"
                    + "x-use-canonical-path-for-ramblock-id=on"))
        #expect(command.arguments.contains("pc-i440fx-7.2,memory-backend=m0"))
        #expect(!command.hasBlockers)
    }

    @Test func onlyMainRAMAndObjectsCanBeMapped() throws {
        let identity = try sample("")
        #expect(FailoverCommand.mappableBlocks(identity) == ["pc.ram"])
        let command = build(identity, block: "0000:00:02.0/vga.vram")
        #expect(codes(command, .blocker) == ["unmappable-block"])
    }

    @Test func withoutMappedRAMNothingOfTheMemoryChangesButAFileIsNotOpenedAgain() throws {
        let command = build(
            try sample(
                "-m 1G,slots=2,maxmem=2G -machine pc,memory-backend=f "
                    + "-object memory-backend-file,id=f,size=1G,mem-path=/dev/hugepages,share=on"), block: nil)
        #expect(command.arguments.contains("1G,slots=2,maxmem=2G"))
        #expect(command.arguments.contains("qom-type=memory-backend-ram,id=f,size=1G,share=on"))
    }

    @Test func slotsStayWhenTheSizeBecomesExact() throws {
        let command = build(try sample("-m 256M,slots=4,maxmem=1G"))
        #expect(command.arguments.contains("size=262144K,slots=4,maxmem=1G"))
    }

    @Test(arguments: [
        ("mon:stdio", "file:/run/g/serial0.log"), ("pty", "file:/run/g/serial0.log"), ("none", "none"),
        ("/dev/ttyS0", "file:/run/g/serial0.log"), ("null", "null"), ("chardev:c0", "chardev:c0"), ("vc", "vc"),
        ("file:/var/log/x", "file:/run/g/serial0.log"),
        ("tcp::4444,server=on", "unix:/run/g/serial0.sock,server=on,wait=off"),
    ])
    func serialLinesLeaveTheHost(line: String, expected: String) throws {
        let arguments = build(try sample("-serial \(line)")).arguments
        #expect(arguments.firstIndex(of: "-serial").map { arguments[$0 + 1] } == expected)
    }

    @Test func aCharacterDeviceOfAMonitorAndOfASerialLineStays() throws {
        let arguments = build(
            try sample("-chardev stdio,mux=on,id=c -mon c,mode=readline -serial chardev:c -chardev null,id=n")
        ).arguments
        #expect(arguments.contains("file,id=c,path=/run/g/c.log,mux=on"))
        #expect(arguments.contains("chardev:c") && arguments.contains("null,id=n") && !arguments.contains("-mon"))
    }

    @Test func automaticDriveNamesFollowTheMachine() throws {
        let disk = { (name: String) in
            GuestSample.disk(name, node: "#x", qdev: "/machine/unattached/device[1]", file: "elsewhere")
        }
        let pc = build(try sample("-M pc -drive file=a -drive file=b,index=3 c.img", disks: [disk("ide1-hd1")]))
        #expect(pc.arguments.contains("file=/s/ide1-hd1,,x.qcow2,format=qcow2,index=3"))
        let q35 = build(try sample("-M q35 -drive file=a,media=cdrom -drive file=b", disks: [disk("ide1-hd0")]))
        #expect(q35.arguments.contains("file=/s/ide1-hd0,,x.qcow2,format=qcow2"))
        let flash = build(
            try sample("-drive if=pflash,file=code,readonly=on -drive if=pflash,file=vars", disks: [disk("pflash1")]))
        #expect(flash.arguments.contains("file=/s/pflash1,,x.qcow2,format=qcow2,if=pflash"))
        #expect(flash.arguments.contains("if=pflash,file=/home/me/code,readonly=on"))
    }

    @Test(arguments: [
        ("-drive file=/img/other.raw,if=virtio", "disk-unknown"), ("-hdb x", "disk-unknown"),
        ("-add-fd fd=3,set=1", "inherited-descriptor"), ("-netdev tap,id=n,fds=3:4", "inherited-descriptor"),
        ("-device vfio-pci,host=01:00.0", "host-device"), ("-virtfs local,path=/x,mount_tag=t", "shared-directory"),
        ("-netdev vhost-user,id=n,chardev=c", "vhost-device"), ("-snapshot", "snapshot-mode"),
        ("-readconfig x.cfg", "readconfig"), ("-tpmdev emulator,id=t,chardev=c", "tpm-emulator"),
        ("-blockdev driver=file,filename=/x,node-name=n -device virtio-blk,drive=n", "disk-unknown"),
    ])
    func whatCannotBeCarriedOverIsABlockerWithAWayOut(options: String, code: String) throws {
        let command = build(try sample(options))
        #expect(codes(command, .blocker) == [code], "\(command.findings)")
        #expect(command.findings.allSatisfy { $0.severity != .blocker || $0.remedy != nil })
        #expect(!command.arguments.contains { $0.contains("other.raw") })
    }

    @Test func aDiskThatIsNotOnTheCommandLineIsABlocker() throws {
        let disk = GuestSample.disk("hot", node: "hot0", qdev: "d9", file: "/img/hot.qcow2")
        #expect(codes(build(try sample("", disks: [disk])), .blocker) == ["disk-not-on-command-line"])
    }

    @Test func hotPluggedDevicesAreBlockers() throws {
        var identity = try sample("")
        identity.hotplugged = ["nic1 (e1000)"]
        #expect(codes(build(identity), .blocker) == ["hotplugged-device"])
    }

    @Test func aLoaderAndAnotherQEMUAreUnderstood() throws {
        var identity = try sample("")
        identity.arguments = ["/d/ld-linux.so", "--library-path", "/d/lib", "/d/qemu-system-x86_64", "-m", "256"]
        identity.executable = "/d/ld-linux.so"
        let loaded = build(identity)
        #expect(loaded.executable == "/d/ld-linux.so")
        #expect(loaded.arguments.prefix(4) == ["--library-path", "/d/lib", "/d/qemu-system-x86_64", "-machine"])
        let other = build(identity, executable: "/opt/qemu")
        #expect(other.executable == "/opt/qemu" && other.arguments.first == "-machine")
        identity.executable = "/d/ld-linux.so (deleted)"
        #expect(codes(build(identity), .warning) == ["qemu-replaced"])
    }

    @Test func theCommandIsQuotedForAShell() throws {
        let command = FailoverCommand(
            executable: "/usr/bin/qemu", arguments: ["-append", "a b", "it's", ""], findings: [])
        #expect(command.text == #"/usr/bin/qemu -append 'a b' 'it'\''s' ''"#)
    }
}
