import QEMU

/// Command lines as people and libvirt write them, with what QEMU 7.2.22 answers about them.
struct GuestSample {
    var arguments: [String]
    var answers: GuestAnswers

    static func words(_ text: String) -> [String] { text.split(separator: " ").map(String.init) }

    static func disk(
        _ device: String, node: String, qdev: String, file: String, format: String = "qcow2",
        size: Int64 = 67_108_864, readOnly: Bool = false
    ) -> JSONValue {
        [
            "device": .string(device), "qdev": .string(qdev), "locked": false, "removable": false,
            "inserted": [
                "node-name": .string(node), "ro": .bool(readOnly), "drv": .string(format), "file": .string(file),
                "image": ["virtual-size": .integer(size), "filename": .string(file), "format": .string(format)],
            ],
        ]
    }

    static func answers(
        machine: String = "pc-i440fx-7.2", backend: String = "pc.ram", kvm: Bool = true, disks: [JSONValue]
    ) -> GuestAnswers {
        GuestAnswers(
            answers: [
                "query-version": ["qemu": ["major": 7, "minor": 2, "micro": 22], "package": "Debian"],
                "query-status": ["running": true, "status": "running"],
                "query-kvm": ["enabled": .bool(kvm), "present": true],
                "query-name": [:], "query-block": .array(disks), "query-block-jobs": [],
                "query-cpus-fast": [["cpu-index": 0]], "query-iothreads": [], "query-memory-devices": [],
                "query-memory-size-summary": ["base-memory": 268_435_456], "query-migrate": [:],
                "query-migrate-capabilities": [["capability": "x-colo", "state": false]],
                "query-chardev": [["label": "serial0"]], "query-named-block-nodes": [],
            ], machineType: "\(machine)-machine",
            machineProperties: ["memory-backend": .string("/objects/\(backend)"), "suppress-vmdesc": false])
    }

    static let plain = GuestSample(
        arguments: words(
            "qemu-system-x86_64 -M pc -m 256 -smp 2 -nographic -drive file=vda.qcow2,if=virtio,discard=unmap,aio=native "
                + "-drive if=none,id=hd1,file=/img/d1.raw,format=raw,cache=none,serial=S1 -device virtio-scsi-pci,id=s0 "
                + "-device scsi-hd,drive=hd1,bus=s0.0,id=disk1 -hda old.img -cdrom boot.iso -kernel vmlinuz "
                + "-append console=ttyS0 -netdev user,id=n0,hostfwd=tcp::2222-:22 -device virtio-net-pci,netdev=n0 "
                + "-qmp unix:/run/q.sock,server=on,wait=off -monitor telnet:127.0.0.1:55,server -daemonize "
                + "-pidfile /run/q.pid"),
        answers: answers(disks: [
            disk(
                "virtio0", node: "#block1", qdev: "/machine/peripheral-anon/device[0]/virtio-backend", file: "vda.qcow2"
            ),
            disk("hd1", node: "#block2", qdev: "disk1", file: "/img/d1.raw", format: "raw"),
            disk("ide0-hd0", node: "#block3", qdev: "/machine/unattached/device[9]", file: "old.img", format: "raw"),
            disk("ide1-cd0", node: "#block4", qdev: "/machine/unattached/device[10]", file: "boot.iso", readOnly: true),
            ["device": "floppy0", "removable": true],
        ]))

    static let libvirt = GuestSample(
        arguments: [
            "/usr/bin/qemu-system-x86_64", "-name", "guest=vm1,debug-threads=on", "-S", "-object",
            #"{"qom-type":"memory-backend-memfd","id":"pc.ram","x-use-canonical-path-for-ramblock-id":false,"size":268435456}"#,
            "-machine", "pc-q35-7.2,usb=off,dump-guest-core=off,memory-backend=pc.ram", "-accel", "kvm", "-cpu", "host",
            "-m", "size=262144k", "-no-user-config", "-nodefaults", "-chardev",
            "socket,id=charmonitor,fd=20,server=on,wait=off", "-mon", "chardev=charmonitor,id=monitor,mode=control",
            "-no-shutdown", "-blockdev",
            #"{"driver":"file","filename":"/img/base.qcow2","node-name":"libvirt-3-storage","read-only":true}"#,
            "-blockdev",
            #"{"node-name":"libvirt-3-format","read-only":true,"driver":"qcow2","file":"libvirt-3-storage"}"#,
            "-blockdev",
            #"{"driver":"file","filename":"/img/vm1.qcow2","node-name":"libvirt-2-storage","aio":"native"}"#,
            "-blockdev",
            #"{"node-name":"libvirt-2-format","read-only":false,"discard":"unmap","driver":"qcow2","#
                + #""file":"libvirt-2-storage","backing":"libvirt-3-format"}"#, "-device",
            #"{"driver":"virtio-blk-pci","bus":"pci.3","drive":"libvirt-2-format","id":"virtio-disk0"}"#, "-blockdev",
            #"{"driver":"file","filename":"/img/cd.iso","node-name":"libvirt-1-storage","read-only":true}"#,
            "-blockdev",
            #"{"node-name":"libvirt-1-format","read-only":true,"driver":"raw","file":"libvirt-1-storage"}"#, "-device",
            #"{"driver":"ide-cd","bus":"ide.0","drive":"libvirt-1-format","id":"sata0-0-0"}"#, "-netdev",
            "tap,fd=22,id=hostnet0,vhost=on,vhostfd=24", "-device",
            #"{"driver":"virtio-net-pci","netdev":"hostnet0","id":"net0"}"#, "-chardev", "pty,id=charserial0",
            "-device",
            #"{"driver":"isa-serial","chardev":"charserial0","id":"serial0"}"#, "-chardev",
            "socket,id=charchannel0,fd=19,server=on,wait=off", "-device",
            #"{"driver":"virtserialport","chardev":"charchannel0","name":"org.qemu.guest_agent.0"}"#, "-vnc",
            "127.0.0.1:0",
        ],
        answers: answers(
            machine: "pc-q35-7.2",
            disks: [
                disk(
                    "", node: "libvirt-2-format", qdev: "/machine/peripheral/virtio-disk0/virtio-backend",
                    file: "/img/vm1.qcow2"),
                disk(
                    "", node: "libvirt-1-format", qdev: "sata0-0-0", file: "/img/cd.iso", format: "raw", readOnly: true),
            ]))

    func identity(ram: [RamBlockDescription] = []) throws -> GuestIdentity {
        var identity = try GuestIdentity.capture(
            answers, arguments: arguments, executable: "/usr/bin/qemu-system-x86_64", workingDirectory: "/home/me")
        identity.ramLayout = ram
        return identity
    }
}
