#!/usr/bin/env python3
"""Measures a real QEMU COLO pair: the peer that colo-blk's pause and failover times are compared with.

For each mode it starts two QEMUs on this machine with the project's test guest (Images/launch), set up as QEMU's
docs/COLO-FT.txt says but without the network proxy: the primary's disk is a quorum, the secondary's a replication
chain (active and hidden qcow2 over its own raw disk), joined by NBD and a migration with x-colo, over unix sockets.
It then measures, on the primary, the time between the STOP and RESUME events of each checkpoint, kills the primary
with SIGKILL and measures the time until the secondary has left COLO and runs alone. One JSON object per mode goes to
standard output, remarks go to standard error.

    Benchmarks/colo-pair/colo_pair.py [--modes idle,mem,disk] [--checkpoints 60] [--delay-ms 200] [--keep]

COLO_BLK_QEMU, COLO_BLK_ACCEL and COLO_BLK_IMAGES have the meaning they have for Images/launch. Under TCG the primary
gets the preload workaround, and RAM has a size that is not a multiple of 256 KiB.

The guest stays stopped until COLO has started, so it boots while it is protected: when it runs during the initial
copy, QEMU 7.2 loses disk writes on the secondary. Exit code 0: every mode was measured and the surviving guest's
self-checks passed.
"""
import argparse
import json
import os
import re
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LAUNCH = Path(__file__).resolve().parents[2] / "Images" / "launch"
DISK_MIB = 64


class Failure(Exception):
    """The pair did not do what it should; the text says what."""


def remark(text):
    print(f"colo-pair: {text}", file=sys.stderr, flush=True)


class Monitor:
    """A QMP client. Events are kept in the order of arrival."""

    def __init__(self, path, process, timeout_s=20):
        deadline = time.monotonic() + timeout_s
        while True:
            self.socket = socket.socket(socket.AF_UNIX)
            try:
                self.socket.connect(str(path))
                break
            except OSError as error:
                self.socket.close()
                if process.poll() is not None:
                    raise Failure(f"QEMU ended with {process.returncode} before its monitor could be reached") from error
                if time.monotonic() > deadline:
                    raise Failure(f"no monitor at {path}: {error}") from error
                time.sleep(0.02)
        self.socket.settimeout(timeout_s)
        self.buffer = b""
        self.events = []
        self._line(timeout_s)
        self("qmp_capabilities")

    def _line(self, timeout_s):
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self.buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self.socket.settimeout(left)
            data = self.socket.recv(65536)
            if not data:
                raise Failure("the monitor was closed")
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(line)

    def __call__(self, command, **arguments):
        request = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        self.socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            try:
                answer = self._line(20)
            except TimeoutError as error:
                raise Failure(f"no answer to {command} within 20 s") from error
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise Failure(f"{command}: {answer['error']['desc']}")
            else:
                return answer["return"]

    def listen(self, seconds):
        """Collects events for a time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                message = self._line(left)
            except TimeoutError:
                return
            if "event" in message:
                self.events.append(message)


def microseconds(event):
    return event["timestamp"]["seconds"] * 1_000_000 + event["timestamp"]["microseconds"]


def pauses_ms(events):
    """Guest pauses: the time from each STOP to the RESUME that follows it."""
    pauses, stopped = [], None
    for event in events:
        if event["event"] == "STOP":
            stopped = microseconds(event)
        elif event["event"] == "RESUME" and stopped is not None:
            pauses.append((microseconds(event) - stopped) / 1000)
            stopped = None
    return pauses


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def resident_kib(pid):
    match = re.search(r"^VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)
    return int(match.group(1)) if match else 0


class Pair:
    """Two QEMUs, their files and their monitors."""

    def __init__(self, mode, delay_ms):
        self.mode, self.delay_ms = mode, delay_ms
        self.directory = Path(tempfile.mkdtemp(prefix="colo-pair-"))
        self.processes = []

    def path(self, name):
        return str(self.directory / name)

    def start(self, side, arguments, preload):
        """Starts Images/launch's QEMU command with our disks; returns the process and its monitor."""
        directory = self.directory / side
        directory.mkdir()
        printed = subprocess.run(
            [LAUNCH, "--dir", directory, "--mode", self.mode, "--no-disk", "--append", "colo.disks=1", "--print", "--"]
            + arguments + ["-device", "virtio-blk-pci,drive=colo-disk0,id=vd0"],
            check=True, stdout=subprocess.PIPE, text=True).stdout
        words, environment = shlex.split(printed), dict(os.environ)
        while "=" in words[0] and not words[0].startswith("/"):
            name, value = words.pop(0).split("=", 1)
            if preload:
                environment[name] = value
        with open(directory / "qemu.log", "wb") as log:
            process = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.processes.append(process)
        return process, Monitor(directory / "qmp.sock", process)

    def serial(self, side):
        path = self.directory / side / "serial.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def set_up(self):
        for name in ("primary.raw", "secondary.raw"):
            with open(self.path(name), "wb") as disk:
                disk.truncate(DISK_MIB << 20)
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
        self.primary_qmp("migrate-set-parameters", **{"x-checkpoint-delay": self.delay_ms, "max-bandwidth": 1 << 40})
        self.primary_qmp("migrate", uri=f"unix:{self.path('migration.sock')}")

    def wait_until(self, what, condition, seconds):
        deadline = time.monotonic() + seconds
        while not condition():
            for side, process in (("primary", self.primary), ("secondary", self.secondary)):
                if process.poll() is not None:
                    log = (self.directory / side / "qemu.log").read_text(errors="replace")
                    raise Failure(f"the {side} ended with {process.returncode} before {what}: {log[-500:]}")
            if time.monotonic() > deadline:
                raise Failure(f"not reached within {seconds} s: {what}")
            self.primary_qmp.listen(0.05)

    def guest_works(self):
        text = self.serial("primary")
        return "RAMOK 2 " in text and (self.mode not in ("disk", "all") or "DISKOK" in text)

    def measure(self, checkpoints):
        self.set_up()
        self.wait_until("COLO on the primary",
                        lambda: self.primary_qmp("query-migrate").get("status") == "colo", 60)
        self.wait_until("a working guest", self.guest_works, 120)
        self.primary_qmp.listen(3 * self.delay_ms / 1000)

        first = len(self.primary_qmp.events)
        self.wait_until(f"{checkpoints} checkpoints",
                        lambda: len(pauses_ms(self.primary_qmp.events[first:])) >= checkpoints,
                        60 + 5 * checkpoints * self.delay_ms / 1000)
        pauses = pauses_ms(self.primary_qmp.events[first:])[:checkpoints]
        resident = {side: resident_kib(process.pid) // 1024
                    for side, process in (("primary", self.primary), ("secondary", self.secondary))}
        complaints = self.serial("primary").count("FAIL ")

        before = len(self.serial("secondary"))
        start = time.monotonic()
        self.primary.kill()
        self.primary.wait()
        self.secondary_qmp("nbd-server-stop")
        self.secondary_qmp("x-colo-lost-heartbeat")
        while True:
            if (self.secondary_qmp("query-colo-status")["mode"] == "none"
                    and self.secondary_qmp("query-status")["status"] == "running"):
                break
            if time.monotonic() - start > 20:
                raise Failure("the secondary does not run 20 s after failover")
            time.sleep(0.0005)
        failover_ms = (time.monotonic() - start) * 1000

        # The survivor must be a sound guest: it ticks and verifies on.
        time.sleep(5)
        after = self.serial("secondary")[before:]
        complaints += after.count("FAIL ")
        sound = complaints == 0 and "TICK" in after and "RAMOK" in after
        if self.mode in ("disk", "all"):
            sound = sound and "DISKOK" in after
        return {
            "mode": self.mode, "peer": "qemu-colo-pair", "delay_ms": self.delay_ms, "checkpoints": len(pauses),
            "pause_ms_median": round(statistics.median(pauses), 2), "pause_ms_p95": round(percentile(pauses, 0.95), 2),
            "pause_ms_max": round(max(pauses), 2), "failover_ms": round(failover_ms, 1),
            "rss_mib_primary": resident["primary"], "rss_mib_secondary": resident["secondary"],
            "guest_sound": sound, "complaints": complaints,
            "qemu": self.secondary_qmp("query-version")["package"] or "unknown",
            "accel": self.accelerator(), "load_average_1m": round(os.getloadavg()[0], 1),
        }

    def accelerator(self):
        return "kvm" if self.secondary_qmp("query-kvm")["enabled"] else "tcg"

    def clean_up(self, keep):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        if keep:
            remark(f"kept {self.directory}")
        else:
            shutil.rmtree(self.directory, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", default="idle,mem,disk", help="comma separated: idle, mem, disk, all")
    parser.add_argument("--checkpoints", type=int, default=60, help="checkpoints to measure per mode")
    parser.add_argument("--delay-ms", type=int, default=200, help="x-checkpoint-delay")
    parser.add_argument("--keep", action="store_true", help="keep the run directories")
    options = parser.parse_args()
    modes = options.modes.split(",")
    if options.checkpoints < 1 or not set(modes) <= {"idle", "mem", "disk", "all"}:
        parser.error("unknown mode, or no checkpoints")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    good = True
    for mode in modes:
        pair = Pair(mode, options.delay_ms)
        try:
            result = pair.measure(options.checkpoints)
            print(json.dumps(result), flush=True)
            good = good and result["guest_sound"]
        except (Failure, OSError, subprocess.CalledProcessError) as error:
            remark(f"{mode}: {error}")
            good = False
        finally:
            pair.clean_up(options.keep)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
