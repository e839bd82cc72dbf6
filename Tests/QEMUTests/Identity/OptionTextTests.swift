import Testing

@testable import QEMU

@Suite struct OptionTextTests {
    @Test func commasAreDoubledInsideValues() {
        let text = OptionText("file=/a,,b.img,if=virtio,readonly", implied: "driver")
        #expect(text["file"] == "/a,b.img")
        #expect(text["if"] == "virtio")
        #expect(text["readonly"] == "on")
        #expect(text["driver"] == nil)
        #expect(text.text() == "file=/a,,b.img,if=virtio,readonly")
    }

    @Test func theFirstWordMayBeAKeysValue() {
        let text = OptionText("pc,accel=kvm", implied: "type")
        #expect(text["type"] == "pc" && text["accel"] == "kvm")
        #expect(text.text(implied: "type") == "pc,accel=kvm")
        #expect(text.text() == "type=pc,accel=kvm")
        #expect(OptionText("type=q35", implied: "type").text(implied: "type") == "q35")
    }

    @Test func jsonBecomesDottedKeys() {
        let text = OptionText(#"{"driver":"qcow2","read-only":false,"file":{"driver":"file","filename":"/x"},"n":[7]}"#)
        #expect(text["driver"] == "qcow2" && text["read-only"] == "off")
        #expect(text["file.filename"] == "/x" && text["n.0"] == "7")
    }

    @Test func theLastOfEqualKeysCountsAndAReplacedOneKeepsItsPlace() {
        var text = OptionText("a=1,b=2,a=3")
        #expect(text["a"] == "3")
        text["a"] = "4"
        #expect(text.text() == "a=4,b=2")
        text["b"] = nil
        #expect(text.text() == "a=4")
    }

    @Test func aCommandLineIsCutAtItsOptions() {
        let line = QEMUCommandLine([
            "/lib/ld-linux.so", "--library-path", "/l", "/usr/bin/qemu-system-x86_64", "-enable-kvm", "--m", "64",
            "disk.img", "-S", "-append", "-x",
        ])
        #expect(line.program.count == 4)
        #expect(
            line.options == [
                .init("enable-kvm"), .init("m", "64"), .init("", "disk.img"), .init("S"), .init("append", "-x"),
            ])
        #expect(QEMUCommandLine([]).options.isEmpty)
        #expect(QEMUCommandLine(["renamed", "-m"]).options == [.init("m")])
    }
}
