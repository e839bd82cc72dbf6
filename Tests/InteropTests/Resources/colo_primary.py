"""A stock QEMU as COLO block replication's primary, writing into a server of ours.

    colo_primary.py DIRECTORY LOCAL_DISK NBD_SOCKET EXPORT COLO_BLK STORE/NAME

The primary's disk is a quorum of LOCAL_DISK and, through QEMU's replication driver, of our export, as QEMU's
docs/block-replication.txt has it; xen-set-replication starts the driver as COLO would. Writes come through an NBD export
of the quorum, whole sectors only: around others QEMU 7.2 sends garbage to the secondary, since the replication driver
refuses to be read (replication_co_readv) and the read-modify-write above it does not look at that. In the middle a checkpoint is made and LOCAL_DISK is copied to checkpoint.raw.
"""
import json
import os
import shutil
import socket
import subprocess
import sys
import time

directory, local, nbd_socket, export, colo_blk, disk = sys.argv[1:]
qmp_path, out_path = f"{directory}/qmp.sock", f"{directory}/guest.sock"
qemu = subprocess.Popen([
    os.environ.get("COLO_BLK_QEMU", "qemu-system-x86_64"), "-M", "none", "-S", "-display", "none", "-nodefaults",
    "-qmp", f"unix:{qmp_path},server=on,wait=off",
    "-drive", "if=none,id=colo-disk0,driver=quorum,read-pattern=fifo,vote-threshold=1,"
    f"children.0.driver=raw,children.0.file.filename={local}"], stdin=subprocess.DEVNULL)


class Monitor:
    def __init__(self):
        self.socket = socket.socket(socket.AF_UNIX)
        for _ in range(500):
            try:
                self.socket.connect(qmp_path)
                break
            except OSError:
                if qemu.poll() is not None:
                    sys.exit(f"QEMU ended with {qemu.returncode}")
                time.sleep(0.02)
        self.lines = self.socket.makefile("rb")
        self.lines.readline()
        self("qmp_capabilities")

    def __call__(self, command, **arguments):
        self.socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            line = self.lines.readline()
            if not line:
                sys.exit(f"QEMU closed its monitor at {command}")
            answer = json.loads(line)
            if "error" in answer:
                sys.exit(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]


def guest(*commands):
    """Writes as the guest would."""
    words = ["qemu-io", "-f", "raw"]
    for command in commands:
        words += ["-c", command]
    done = subprocess.run([*words, f"nbd+unix:///colo-disk0?socket={out_path}"], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode or "failed" in done.stdout:
        sys.exit(f"{commands}: {done.stdout}")


try:
    qmp = Monitor()
    qmp("nbd-server-start", addr={"type": "unix", "data": {"path": out_path}})
    qmp("nbd-server-add", device="colo-disk0", writable=True)
    qmp("blockdev-add", **{
        "driver": "replication", "node-name": "replication0", "mode": "primary",
        "file": {"driver": "nbd", "server": {"type": "unix", "path": nbd_socket}, "export": export}})
    qmp("x-blockdev-change", parent="colo-disk0", node="replication0")
    qmp("xen-set-replication", enable=True, primary=True)
    guest("write -P 0x31 0 4M", "write -P 0x32 5120 512", "write -z 8M 1M", "write -P 0x33 16M 64k", "flush")
    qmp("xen-colo-do-checkpoint")
    shutil.copyfile(local, f"{directory}/checkpoint.raw")
    subprocess.run([colo_blk, "disk", "checkpoint", disk], check=True, stdout=subprocess.DEVNULL)
    guest("write -P 0x41 1M 2M", "write -P 0x42 12M 3M", "write -P 0x43 20000256 512", "flush")
    shutil.copyfile(local, f"{directory}/later.raw")
    if qmp("query-xen-replication-status")["error"]:
        sys.exit("QEMU reports an error of the replication")
finally:
    qemu.kill()
    qemu.wait()
