"""P5: what a guest's write costs while it is protected, beside the same write before.

Every case exports the guest's disk from its own QEMU over NBD; fio stands in for the guest, since a small guest without
KVM could not load a disk. What a case does between the two measurements is what protects it.
"""
import os
import shutil
import tempfile
import uuid
from pathlib import Path

from . import diskpeers, fio, processes
from .diskpeers import QEMU, QemuNbd, ReplicationPrimary, ReplicationSecondary
from .failure import Failure, tail
from .fio import Load
from .monitor import Monitor
from .protected import Attach

MIB = 1 << 20
SIZE = 1024 * MIB
#: Small enough to be overwritten as a whole before a measurement of what was overwritten before.
REGION = 128 * MIB
LOADS = (Load("randwrite", 4096, 1, REGION, seconds=2), Load("randwrite", 4096, 32, REGION, seconds=2))


class Case:
    """A guest's disk in `base`, and what protects it."""

    def __init__(self, base, binary, is_direct):
        self.directory = Path(tempfile.mkdtemp(prefix="cbg-", dir=base))
        self.binary, self.is_direct, self.opened = binary, is_direct, []
        self.disk = self.directory / "guest.raw"
        try:
            diskpeers.fill(self.disk, SIZE)
            self.set_up()
        except BaseException:
            self.close()
            raise

    def keep(self, opened):
        """What is to be closed in the end, the last one first."""
        self.opened.append(opened)
        return opened

    def copy(self, name):
        """The secondary's disk, with the contents of the guest's."""
        path = self.directory / name
        shutil.copyfile(self.disk, path)
        return path

    def close(self):
        for opened in reversed(self.opened):
            opened.close()
        diskpeers.remove(self.directory)


class ColoPrimary(Case):
    """QEMU's own: a quorum of the guest's disk and of a replication secondary."""

    subjects = {"first overwrites": "QEMU COLO, first overwrites", "again": "QEMU COLO, overwritten before"}

    def set_up(self):
        folder = self.directory / "secondary"
        folder.mkdir()
        self.secondary = self.keep(ReplicationSecondary(folder, self.copy("secondary.raw"), self.is_direct))
        self.primary = self.keep(ReplicationPrimary(self.directory, self.disk, self.is_direct))
        self.uri = self.primary.uri

    def attach(self):
        self.secondary.protect()
        self.primary.join(self.secondary.socket, "parent0")

    def forget(self):
        self.secondary.checkpoint()


class PlainMirror(Case):
    """A mirror to a raw disk over NBD, without checkpoints: what QEMU's own live copy costs."""

    subjects = {"again": "mirror to a disk"}

    def set_up(self):
        self.target = self.keep(QemuNbd(self.directory, self.copy("target.raw"), self.is_direct))
        self.guest = self.keep(GuestDisk(self.directory, self.disk, self.is_direct))
        self.uri = self.guest.uri

    def attach(self):
        self.guest.qmp("blockdev-add", **{
            "driver": "nbd", "node-name": "target", "server": {"type": "unix", "path": str(self.target.socket)}})
        self.guest.qmp("blockdev-mirror", **{
            "job-id": "mirror", "device": "disk", "target": "target", "sync": "none", "copy-mode": "write-blocking",
            "filter-node-name": "mirror-top"})
        for _ in range(300):
            if any(job["ready"] for job in self.guest.qmp("query-block-jobs")):
                return
            self.guest.qmp.listen(0.1)
        raise Failure("the mirror is not ready after 30 s")

    def forget(self):
        """Nothing is kept."""


class GuestDisk:
    """A QEMU without a machine that exports one disk."""

    def __init__(self, directory, disk, is_direct):
        self.socket, qmp, self.log = directory / "guest.sock", directory / "guest.qmp", directory / "guest.log"
        self.process = processes.start([
            QEMU, "-M", "none", "-S", "-display", "none", "-nodefaults", "-qmp", f"unix:{qmp},server=on,wait=off",
            "-blockdev", blockdev(disk, is_direct)], self.log)
        self.qmp = Monitor(qmp, self.process)
        self.uri = export(self.qmp, self.socket)

    def close(self):
        self.qmp.close()
        processes.end(self.process)


class ColoBlk(Case):
    """`colo-blk attach` of a running guest: disks, RAM and device state, a checkpoint every 200 ms. The measured disk is
    one that the guest itself leaves alone."""

    subjects = {"again": "colo-blk attach"}

    def set_up(self):
        folder = self.directory / "guest"
        folder.mkdir()
        self.name = f"bench-{uuid.uuid4().hex[:12]}"
        watch, socket = folder / "watch.sock", folder / "nbd.sock"
        words, environment = processes.launch_command(folder, "idle", ["--no-disk"], [
            "-qmp", f"unix:{watch},server=on,wait=off", "-blockdev", blockdev(self.disk, self.is_direct),
            "-device", "virtio-blk-pci,drive=disk,id=data,share-rw=on"])
        self.guest = self.keep(Process(processes.start(words, folder / "qemu.log", {**os.environ, **environment})))
        self.uri = export(Monitor(watch, self.guest.process), socket)

    def attach(self):
        store = self.directory / "store"
        attach = Attach([str(self.binary), "attach", "--qmp", str(self.directory / "guest" / "qmp.sock"),
                         "--store", str(store), "--guest", self.name])
        self.keep(Process(attach.process))
        attach.wait_for("protected:", 180)

    def forget(self):
        """Every checkpoint forgets."""


class Process:
    def __init__(self, process):
        self.process = process

    def close(self):
        processes.end(self.process, 20)


def blockdev(disk, is_direct):
    cache = ",file.aio=native,file.cache.direct=on,cache.direct=on" if is_direct else ""
    return f"driver=raw,node-name=disk,file.driver=file,file.filename={disk}{cache}"


def export(qmp, socket):
    qmp("nbd-server-start", addr={"type": "unix", "data": {"path": str(socket)}})
    qmp("block-export-add", **{"type": "nbd", "id": "export", "node-name": "disk", "name": "disk", "writable": True})
    return fio.socket_uri(socket, "disk")


def measure(kind, placement, base, binary, is_direct, seed):
    """The results of one case: guest-visible writes attached and not, and their ratio."""
    case = kind(base, binary, is_direct)
    try:
        before = {load.name: fio.nbd(load, case.uri, seed) for load in LOADS}
        case.attach()
        for state, subject in kind.subjects.items():
            if state == "again":
                fio.nbd(Load("write", MIB, 4, REGION, total=REGION), case.uri, seed)
            for load in LOADS:
                if state == "again":
                    after = fio.nbd(load, case.uri, seed)
                else:
                    case.forget()
                    # Few enough that the same cluster is seldom met twice.
                    some = Load(load.mode, load.block, load.depth, SIZE, total=1500 * load.block)
                    after = fio.nbd(some, case.uri, seed)
                yield {"case": f"guest's write, {load.name[len('randwrite '):]}", "placement": placement,
                       "subject": subject, "p50_us": round(after["p50_us"], 1), "p99_us": round(after["p99_us"], 1),
                       "iops": round(after["iops"], 1), "plain_p50_us": round(before[load.name]["p50_us"], 1),
                       "p50_ratio": round(after["p50_us"] / before[load.name]["p50_us"], 3)}
    except Failure as failure:
        logs = [f"{path.name}: {tail(path, 200)}" for path in case.directory.rglob("*.log")]
        raise Failure(f"{failure} ({'; '.join(logs)})") from failure
    finally:
        case.close()


KINDS = (ColoPrimary, PlainMirror, ColoBlk)
