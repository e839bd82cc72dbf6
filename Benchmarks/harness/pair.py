"""The peer: a real QEMU COLO pair.

Two QEMUs on this machine with the project's test guest (Images/launch), set up as QEMU's docs/COLO-FT.txt says but
without the network proxy: the primary's disk is a quorum, the secondary's a replication chain (active and hidden qcow2
over its own raw disk), joined by NBD and a migration with x-colo, over unix sockets.

The guest stays stopped until COLO has started, so it boots while it is protected: when it runs during the initial
copy, QEMU 7.2 loses disk writes on the secondary. Under TCG the primary gets the preload workaround.
"""
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from . import figures, processes
from .failure import Failure, remark, tail
from .monitor import Monitor, checkpoints
from .processes import DISK_MIB
from .serial import SerialLog, follow_survivor, wait_until_busy


class Pair:
    """Two QEMUs, their files and their monitors."""

    kind = "colo-pair"

    def __init__(self, mode, interval_ms):
        self.mode, self.interval_ms = mode, interval_ms
        self.writes = mode in ("disk", "all")
        self.directory = Path(tempfile.mkdtemp(prefix="colo-pair-"))
        self.processes = []

    def path(self, name):
        return str(self.directory / name)

    def start(self, side, arguments, preload):
        """Starts Images/launch's QEMU command with our disks; returns the process and its monitor."""
        directory = self.directory / side
        directory.mkdir()
        words, environment = processes.launch_command(
            directory, self.mode, ["--no-disk", "--append", "colo.disks=1"],
            arguments + ["-device", "virtio-blk-pci,drive=colo-disk0,id=vd0"])
        process = processes.start(
            words, directory / "qemu.log", {**os.environ, **(environment if preload else {})})
        self.processes.append(process)
        return process, Monitor(directory / "qmp.sock", process)

    def serial(self, side):
        return self.directory / side / "serial.log"

    def set_up(self):
        for name in ("primary.raw", "secondary.raw"):
            processes.make_disk(self.path(name))
        for name in ("active.qcow2", "hidden.qcow2"):
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", self.path(name), f"{DISK_MIB}M"], check=True)
        quorum = "if=none,id=colo-disk0,driver=quorum,read-pattern=fifo,vote-threshold=1"
        self.secondary, self.secondary_qmp = self.start("secondary", [
            "-drive", f"if=none,id=parent0,driver=raw,file.filename={self.path('secondary.raw')}",
            "-drive", "if=none,id=childs0,driver=replication,mode=secondary,top-id=colo-disk0,file.driver=qcow2,"
            f"file.file.filename={self.path('active.qcow2')},file.backing.driver=qcow2,"
            f"file.backing.file.filename={self.path('hidden.qcow2')},file.backing.backing=parent0",
            "-drive", f"{quorum},children.0=childs0",
            "-incoming", f"unix:{self.path('migration.sock')}"], preload=False)
        self.primary, self.primary_qmp = self.start("primary", [
            "-S", "-drive", f"{quorum},children.0.file.filename={self.path('primary.raw')},children.0.driver=raw"],
            preload=True)

        nbd = {"type": "unix", "path": self.path("nbd.sock")}
        colo = [{"capability": "x-colo", "state": True}]
        self.secondary_qmp("migrate-set-capabilities", capabilities=colo)
        self.secondary_qmp("nbd-server-start", addr={"type": "unix", "data": {"path": nbd["path"]}})
        self.secondary_qmp("nbd-server-add", device="parent0", writable=True)
        self.primary_qmp("blockdev-add", **{
            "driver": "replication", "node-name": "replication0", "mode": "primary",
            "file": {"driver": "nbd", "server": nbd, "export": "parent0"}})
        self.primary_qmp("x-blockdev-change", parent="colo-disk0", node="replication0")
        self.primary_qmp("migrate-set-capabilities", capabilities=colo)
        self.primary_qmp("migrate-set-parameters",
                         **{"x-checkpoint-delay": self.interval_ms, "max-bandwidth": 1 << 40})
        self.primary_qmp("migrate", uri=f"unix:{self.path('migration.sock')}")

    def check_alive(self):
        for side, process in (("primary", self.primary), ("secondary", self.secondary)):
            if process.poll() is not None:
                raise Failure(
                    f"the {side} ended with {process.returncode}: {tail(self.directory / side / 'qemu.log')}")
        return True

    def wait_until(self, what, condition, seconds):
        deadline = time.monotonic() + seconds
        while not condition():
            self.check_alive()
            if time.monotonic() > deadline:
                raise Failure(f"not reached within {seconds:.0f} s: {what}")
            self.primary_qmp.listen(0.05)

    def cpu_ms(self):
        return {"primary": processes.cpu_ms(self.primary.pid), "secondary": processes.cpu_ms(self.secondary.pid)}

    def measure(self, count, verify_s):
        """Measures `count` checkpoints, then the failover; returns the figures and what the guest complained of."""
        self.set_up()
        self.wait_until("COLO on the primary", lambda: self.primary_qmp("query-migrate").get("status") == "colo", 60)
        log = SerialLog(self.serial("primary"))
        wait_until_busy(log, self.writes, self.check_alive)
        self.primary_qmp.listen(3 * self.interval_ms / 1000)

        self.primary_qmp.events.clear()
        used, begun, records = self.cpu_ms(), time.monotonic(), log.read().record_total
        self.wait_until(f"{count} checkpoints", lambda: len(checkpoints(self.primary_qmp.events)) >= count,
                        60 + 5 * count * self.interval_ms / 1000)
        seconds = time.monotonic() - begun
        result = figures.of_checkpoints(checkpoints(self.primary_qmp.events)[:count])
        result["guest_records_per_s"] = round((log.read().record_total - records) / seconds, 1)
        for side, value in self.cpu_ms().items():
            result[f"cpu_{side}_percent"] = round((value - used[side]) / seconds / 10, 1)
        result["rss_guest_mib"] = round(processes.memory_mib(self.primary.pid)[0], 1)
        result["rss_secondary_mib"] = round(processes.memory_mib(self.secondary.pid)[0], 1)
        result["held_secondary_mib"] = result["rss_secondary_mib"]
        accelerator = "kvm" if self.secondary_qmp("query-kvm")["enabled"] else "tcg"

        self.primary.kill()
        self.primary.wait()
        result["failover_ms"] = round(self.fail_over(), 1)
        # A line that the secondary was printing meanwhile has lost its beginning and does not count.
        offset = self.serial("secondary").stat().st_size
        faults, _ = follow_survivor(self.serial("secondary"), offset, log.read().boot, self.writes, verify_s)
        return {"kind": self.kind, "mode": self.mode, "interval_set_ms": self.interval_ms, "accel": accelerator,
                **result, "faults": log.faults + faults}

    def fail_over(self):
        """The primary is gone: milliseconds from this decision until the secondary runs alone."""
        decided = time.monotonic()
        self.secondary_qmp("nbd-server-stop")
        self.secondary_qmp("x-colo-lost-heartbeat")
        while (self.secondary_qmp("query-colo-status")["mode"] != "none"
               or self.secondary_qmp("query-status")["status"] != "running"):
            if time.monotonic() - decided > 20:
                raise Failure("the secondary does not run 20 s after failover")
            time.sleep(0.0005)
        return (time.monotonic() - decided) * 1000

    def clean_up(self, keep):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        if keep:
            remark(f"kept {self.directory}")
        else:
            shutil.rmtree(self.directory, ignore_errors=True)
