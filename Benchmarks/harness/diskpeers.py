"""The peers of our disk server, each on a disk of its own: QEMU's replication driver, qemu-nbd, nbdkit.

Every server has `uri`, `pids` and `close()`.
"""
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from . import fio, processes
from .failure import Failure, remark, tail
from .monitor import Monitor

QEMU = os.environ.get("COLO_BLK_QEMU", "qemu-system-x86_64")


def fill(path, size):
    """A file without holes and without zeroes: the same random MiB again and again."""
    piece = os.urandom(1 << 20)
    with open(path, "wb") as disk:
        for start in range(0, size, len(piece)):
            disk.write(piece[: size - start])
        disk.flush()
        os.fsync(disk.fileno())


def wait_for_socket(path, process, log, seconds=30):
    deadline = time.monotonic() + seconds
    while not Path(path).is_socket():
        if process.poll() is not None:
            raise Failure(f"{process.args[0]} ended with {process.returncode}: {tail(log)}")
        if time.monotonic() > deadline:
            raise Failure(f"{process.args[0]} has made no socket within {seconds} s: {tail(log)}")
        time.sleep(0.01)


def file_options(path, is_direct):
    """QEMU's words for a host file: without page cache and with libaio where the file system takes that well."""
    more = ",{0}cache.direct=on,{0}aio=native" if is_direct else ""
    return lambda prefix: f"{prefix}filename={path}" + more.format(prefix)


class Server:
    """A process that serves NBD on a unix socket below `directory`."""

    def __init__(self, directory, name):
        self.directory = Path(directory)
        self.name = name
        self.socket = self.directory / f"{name}.sock"
        self.log = self.directory / f"{name}.log"
        self.process = None

    def start(self, words):
        self.socket.unlink(missing_ok=True)
        self.process = processes.start(words, self.log)
        wait_for_socket(self.socket, self.process, self.log)

    @property
    def uri(self):
        return fio.socket_uri(self.socket)

    @property
    def pids(self):
        return [self.process.pid]

    def close(self):
        if self.process:
            processes.end(self.process)


class QemuNbd(Server):
    """Plain qemu-nbd, as good as its options allow: O_DIRECT and libaio on a disk."""

    def __init__(self, directory, disk, is_direct):
        super().__init__(directory, "qemu-nbd")
        cache = ["--cache=none", "--aio=native"] if is_direct else ["--cache=writeback", "--aio=threads"]
        self.start(["qemu-nbd", "-t", "-f", "raw", "-k", self.socket, *cache, "--discard=unmap", disk])


class NbdkitMemory(Server):
    def __init__(self, directory, size):
        super().__init__(directory, "nbdkit")
        self.start(["nbdkit", "-f", "-U", self.socket, "memory", str(size)])


class ReplicationSecondary(Server):
    """QEMU's real replication driver on the secondary side, without a guest: docs/COLO-FT.txt's chain in a QEMU with no
    machine; `xen-set-replication` calls what the COLO process calls. Before `protect()` the export is a plain one."""

    def __init__(self, directory, disk, is_direct):
        super().__init__(directory, "replication")
        self.hidden = self.directory / "hidden.qcow2"
        active = self.directory / "active.qcow2"
        size = os.path.getsize(disk)
        for path in (active, self.hidden):
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, str(size)], check=True)
        secondary, hidden, over = (file_options(path, is_direct) for path in (disk, self.hidden, active))
        self.qmp_path = self.directory / "replication.qmp"
        self.qmp_path.unlink(missing_ok=True)
        self.process = processes.start([
            QEMU, "-M", "none", "-S", "-display", "none", "-nodefaults", "-qmp", f"unix:{self.qmp_path},server=on,wait=off",
            "-drive", f"if=none,id=parent0,driver=raw,{secondary('file.')}",
            "-drive", "if=none,id=childs0,driver=replication,mode=secondary,top-id=colo-disk0,file.driver=qcow2,"
            f"{over('file.file.')},file.backing.driver=qcow2,{hidden('file.backing.file.')},file.backing.backing=parent0",
            "-drive", "if=none,id=colo-disk0,driver=quorum,read-pattern=fifo,vote-threshold=1,children.0=childs0",
        ], self.log)
        try:
            self.qmp = Monitor(self.qmp_path, self.process)
        except Failure as failure:
            raise Failure(f"{failure}: {tail(self.log)}") from failure
        self.socket.unlink(missing_ok=True)
        self.qmp("nbd-server-start", addr={"type": "unix", "data": {"path": str(self.socket)}})
        self.qmp("nbd-server-add", device="parent0", writable=True)
        self.is_protecting = False

    @property
    def uri(self):
        return fio.socket_uri(self.socket, "parent0")

    def protect(self):
        """Replication begins: from here on old contents go to the hidden disk."""
        self.qmp("xen-set-replication", enable=True, primary=False)
        self.is_protecting = True

    def checkpoint(self):
        """Milliseconds of a checkpoint's round trip."""
        begun = time.monotonic()
        self.qmp("xen-colo-do-checkpoint")
        return (time.monotonic() - begun) * 1000

    def hidden_bytes(self):
        return self.hidden.stat().st_blocks * 512

    def close(self):
        if not self.process:
            return
        if self.is_protecting and self.process.poll() is None:
            # Without a guest nothing is to be kept: the quick end.
            self.process.send_signal(signal.SIGKILL)
        processes.end(self.process)
        self.qmp.close()


class ReplicationPrimary:
    """The primary side: a quorum of the local disk and of a secondary over NBD. An NBD export of the quorum stands in
    for the guest."""

    def __init__(self, directory, disk, is_direct):
        self.directory = Path(directory)
        self.log = self.directory / "primary.log"
        self.socket = self.directory / "primary.sock"
        self.qmp_path = self.directory / "primary.qmp"
        for path in (self.socket, self.qmp_path):
            path.unlink(missing_ok=True)
        local = file_options(disk, is_direct)
        self.process = processes.start([
            QEMU, "-M", "none", "-S", "-display", "none", "-nodefaults", "-qmp", f"unix:{self.qmp_path},server=on,wait=off",
            "-drive", "if=none,id=colo-disk0,driver=quorum,read-pattern=fifo,vote-threshold=1,"
            f"children.0.driver=raw,{local('children.0.file.')}",
        ], self.log)
        try:
            self.qmp = Monitor(self.qmp_path, self.process)
        except Failure as failure:
            raise Failure(f"{failure}: {tail(self.log)}") from failure
        self.qmp("nbd-server-start", addr={"type": "unix", "data": {"path": str(self.socket)}})
        self.qmp("nbd-server-add", device="colo-disk0", writable=True)

    def join(self, socket, export):
        """Begins to replicate to an NBD export."""
        self.qmp("blockdev-add", **{
            "driver": "replication", "node-name": "replication0", "mode": "primary",
            "file": {"driver": "nbd", "server": {"type": "unix", "path": str(socket)}, "export": export}})
        self.qmp("x-blockdev-change", parent="colo-disk0", node="replication0")
        self.qmp("xen-set-replication", enable=True, primary=True)

    @property
    def uri(self):
        return fio.socket_uri(self.socket, "colo-disk0")

    @property
    def pids(self):
        return [self.process.pid]

    def close(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.qmp.close()


class Footprint:
    """Processor time and memory of servers over a while."""

    def __init__(self, pids):
        self.pids = pids
        self.begun = time.monotonic()
        self.used = self._used()

    def _used(self):
        return sum(processes.cpu_ms(pid) for pid in self.pids)

    def figures(self):
        seconds = time.monotonic() - self.begun
        return {
            "cpu_percent": round((self._used() - self.used) / seconds / 10, 1),
            "cpu_ms": round(self._used() - self.used),
            "rss_mib": round(sum(processes.memory_mib(pid)[0] for pid in self.pids), 1),
        }


def remove(directory):
    shutil.rmtree(directory, ignore_errors=True)
    if Path(directory).exists():
        remark(f"could not remove all of {directory}")
