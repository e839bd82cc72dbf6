"""A test guest protected by colo-blk: `serve` on a unix socket, `attach`, and in the end `failover`."""
import json
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from . import figures, processes
from .failure import Failure, remark, tail
from .monitor import Monitor, checkpoints
from .serial import SerialLog, follow_survivor, wait_until_busy

UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
PROGRESS = re.compile(r"epoch (\d+)  pause ([\d.]+) ms  dirty (\d+) pages  sent ([\d.]+) (B|KiB|MiB|GiB)  "
                      r"lag ([\d.]+) ms")


class Attach:
    """`colo-blk attach` on a terminal of its own, because there it tells of its checkpoints five times a second."""

    def __init__(self, words):
        terminal, other_end = os.openpty()
        self.begun = time.monotonic()
        self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=other_end, stderr=other_end,
                                        start_new_session=True)
        os.close(other_end)
        #: (monotonic seconds, text), oldest first.
        self.lines = []
        self.reader = threading.Thread(target=self._read, args=(terminal,), daemon=True)
        self.reader.start()

    def _read(self, terminal):
        rest = ""
        while True:
            try:
                data = os.read(terminal, 65536)
            except OSError:
                break
            if not data:
                break
            now = time.monotonic()
            *lines, rest = re.split(r"[\r\n]+", rest + data.decode(errors="replace"))
            self.lines += [(now, text) for line in lines if (text := line.replace("\x1b[K", "").strip())]
        os.close(terminal)

    def wait_for(self, words, seconds):
        """Waits for a line with these words; returns the seconds from the start to that line."""
        deadline = time.monotonic() + seconds
        while True:
            is_alive = self.process.poll() is None
            for when, text in list(self.lines):
                if words in text:
                    return when - self.begun
            if not is_alive:
                raise Failure(f"attach ended with {self.process.returncode} before '{words}': {self.last_words}")
            if time.monotonic() > deadline:
                raise Failure(f"attach does not say '{words}' within {seconds} s: {self.last_words}")
            time.sleep(0.01)

    @property
    def last_words(self):
        return " | ".join(text for _, text in self.lines[-8:])

    def samples(self, since, until):
        """One sample for each checkpoint that a progress line told of: dirty pages, bytes on the link, lag."""
        found = {}
        for when, text in list(self.lines):
            match = PROGRESS.match(text)
            if match and since <= when <= until:
                epoch, _, dirty, amount, unit, lag = match.groups()
                found.setdefault(int(epoch), (int(dirty), float(amount) * UNITS[unit], float(lag)))
        return list(found.values())


class Protected:
    """A guest, its secondary, and what joins them."""

    kind = "colo-blk"

    def __init__(self, mode, interval_ms, durability, binary):
        self.mode, self.interval_ms, self.durability, self.binary = mode, interval_ms, durability, str(binary)
        self.writes = mode in ("disk", "all")
        self.directory = Path(tempfile.mkdtemp(prefix="cbb-"))
        # Unlike any other guest's on this host: the caches of all stores share a directory in shared memory.
        self.name = f"bench-{self.directory.name[4:].lower().replace('_', 'x')}"
        self.store, self.link = self.directory / "store", self.directory / "link.sock"
        self.serve_log = self.directory / "serve.log"
        self.guest = self.serve = self.attach = self.monitor = None

    # Starting

    def set_up(self):
        self.serve = processes.start(
            [self.binary, "serve", "--store", self.store, "--listen", f"unix:{self.link}"], self.serve_log)
        directory = self.directory / "guest"
        directory.mkdir()
        processes.make_disk(directory / "disk0.raw")
        watch = directory / "watch.sock"
        words, environment = processes.launch_command(
            directory, self.mode, ["--disk", str(directory / "disk0.raw")],
            ["-qmp", f"unix:{watch},server=on,wait=off"])
        self.guest = processes.start(words, directory / "qemu.log", {**os.environ, **environment})
        self.monitor = Monitor(watch, self.guest)
        self.wait_for_serve("listening", 30)
        self.log = SerialLog(directory / "serial.log")
        wait_until_busy(self.log, self.writes, lambda: self.guest.poll() is None)

    def wait_for_serve(self, words, seconds):
        deadline = time.monotonic() + seconds
        while words not in (text := self.serve_log.read_text(errors="replace")):
            if self.serve.poll() is not None:
                raise Failure(f"serve ended with {self.serve.returncode}: {text[-600:]}")
            if "could not be started from its checkpoint" in text:
                raise Failure(f"the secondary's trial start failed: {text[-600:]}")
            if time.monotonic() > deadline:
                raise Failure(f"serve does not say '{words}' within {seconds} s: {text[-600:]}")
            time.sleep(0.02)

    def protect(self):
        """Returns the seconds from the start of `attach` to the first committed checkpoint."""
        self.attach = Attach([
            self.binary, "attach", "--qmp", str(self.directory / "guest" / "qmp.sock"), "--to", f"unix:{self.link}",
            "--guest", self.name, "--interval", f"{self.interval_ms}ms", "--durability", self.durability])
        seconds = self.attach.wait_for("protected:", 90)
        agents = [pid for pid in processes.children_of(self.attach.process.pid)
                  if "agent" in processes.arguments_of(pid)[1:2]]
        if len(agents) != 1:
            raise Failure(f"attach has {len(agents)} agents: {self.attach.last_words}")
        self.agent = agents[0]
        # The secondary starts the guest once, paused, after the first commit; that must not disturb the measurement.
        self.wait_for_serve("a failover is proven", 60)
        self.monitor.listen(5 * self.interval_ms / 1000)
        return seconds

    # Measuring

    def cpu_ms(self):
        return {"primary": processes.cpu_ms(self.guest.pid), "secondary": processes.cpu_ms(self.serve.pid),
                "agent": processes.cpu_ms(self.agent) + processes.cpu_ms(self.attach.process.pid)}

    def cache_mib(self):
        """What the secondary holds of the guest's RAM in shared memory."""
        blocks = 0
        for folder in self.memory_folders():
            blocks += sum(path.stat().st_blocks for path in folder.rglob("*") if path.is_file())
        return blocks / 2048

    def memory_folders(self):
        return list(Path("/dev/shm").glob(f"colo-blk-{os.geteuid()}/*-{self.name}"))

    def measure(self, count, verify_s):
        """Measures `count` checkpoints, then the failover; returns the figures and what the guest complained of."""
        self.set_up()
        result = {"attach_s": round(self.protect(), 2)}
        self.monitor.events.clear()
        used, begun, records = self.cpu_ms(), time.monotonic(), self.log.read().record_total
        deadline = begun + 60 + 5 * count * self.interval_ms / 1000
        while len(checkpoints(self.monitor.events)) < count:
            if self.attach.process.poll() is not None:
                raise Failure(f"attach ended with {self.attach.process.returncode}: {self.attach.last_words}")
            if time.monotonic() > deadline:
                raise Failure(f"not reached in time: {count} checkpoints; {self.attach.last_words}")
            self.monitor.listen(0.05)
        now = time.monotonic()
        result |= figures.of_checkpoints(checkpoints(self.monitor.events)[:count])
        result["guest_records_per_s"] = round((self.log.read().record_total - records) / (now - begun), 1)
        for side, value in self.cpu_ms().items():
            result[f"cpu_{side}_percent"] = round((value - used[side]) / (now - begun) / 10, 1)
        result |= self.link_figures(begun, now) | self.memory_figures()
        accelerator = "kvm" if self.monitor("query-kvm")["enabled"] else "tcg"

        self.monitor.close()
        self.guest.kill()
        self.guest.wait()
        report, seen_ms = self.fail_over()
        result |= {"failover_ms": round(report["millisecondsToRunning"], 1), "failover_verb_ms": round(seen_ms, 1)}
        faults, after = follow_survivor(self.restored_serial(report), 0, self.log.read().boot, self.writes, verify_s)
        faults = self.log.faults + faults
        if after.first_tick is not None:
            result["ticks_back"] = self.log.last_tick - after.first_tick + 1
            # A tick whose line the checkpoint cut in two is in no log as a whole: -1.
            if not -1 <= result["ticks_back"] <= 30:
                faults.append(f"tick {after.first_tick} after tick {self.log.last_tick}")
        faults += self.wind_up()
        return {"kind": self.kind, "mode": self.mode, "durability": self.durability,
                "interval_set_ms": self.interval_ms, "accel": accelerator, **result, "faults": faults}

    def link_figures(self, since, until):
        samples = self.attach.samples(since, until)
        if not samples:
            raise Failure(f"attach told of no checkpoint: {self.attach.last_words}")
        dirty, sent, lag = ([sample[field] for sample in samples] for field in range(3))
        states = [path.stat().st_size for path in (self.store / self.name / "device").glob("state-*")]
        return {
            "samples": len(samples), "dirty_pages": figures.median(dirty, 0),
            "link_kib": round(statistics.median(sent) / 1024, 1),
            "device_state_kib": round(max(states) / 1024, 1) if states else None,
            "lag_ms": figures.median(lag), "lag_p95_ms": figures.percentile(lag, 0.95),
        }

    def memory_figures(self):
        serve, shared = processes.memory_mib(self.serve.pid)
        cache = self.cache_mib()
        return {
            "rss_guest_mib": round(processes.memory_mib(self.guest.pid)[0], 1), "rss_secondary_mib": round(serve, 1),
            # Every page once: resident without the cache that it maps, and the cache.
            "held_secondary_mib": round(serve - shared + cache, 1), "cache_mib": round(cache, 1),
            "rss_agent_mib": round(processes.memory_mib(self.agent)[0], 1),
            "rss_guardian_mib": round(processes.memory_mib(self.attach.process.pid)[0], 1),
        }

    # Failover and the end

    def fail_over(self):
        """The guest is dead, so --force. Returns the report, and the milliseconds that the command took as a whole."""
        decided = time.monotonic()
        done = subprocess.run([self.binary, "failover", self.name, "--store", str(self.store), "--force", "--json"],
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              timeout=90)
        seconds = time.monotonic() - decided
        if done.returncode != 0:
            raise Failure(f"failover exits with {done.returncode}: {done.stderr.strip()}; {tail(self.serve_log)}")
        return json.loads(done.stdout), seconds * 1000

    def restored_serial(self, report):
        for word in report["arguments"]:
            if match := re.search(r"/[^,=]*/serial0\.log", word):
                return match.group()
        raise Failure(f"no serial0.log in the restored guest's command: {report['arguments']}")

    def wind_up(self):
        """Ends what is left in order; returns what was not as it should be."""
        faults = []
        try:
            if (code := self.attach.process.wait(20)) != 3:
                faults.append(f"attach exits with {code}, not 3, after the guest's death: {self.attach.last_words}")
        except subprocess.TimeoutExpired:
            faults.append(f"attach does not end after the guest's death: {self.attach.last_words}")
        self.kill_restored()
        removed = subprocess.run([self.binary, "remove", self.name, "--store", str(self.store)],
                                 stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                 timeout=60)
        if removed.returncode != 0:
            faults.append(f"remove exits with {removed.returncode}: {removed.stdout.strip()}")
        elif left := self.memory_folders():
            faults.append(f"remove leaves {left}")
        if (code := processes.end(self.serve)) != 0:
            remark(f"serve exits with {code} after SIGTERM: {tail(self.serve_log, 100)}")
        return faults

    def kill_restored(self):
        """The restored guest's QEMU is nobody's child; its files lie in a folder that only this guest has."""
        processes.kill_marked(f"-{self.name}/run/")

    def clean_up(self, keep):
        self.kill_restored()
        if self.guest and self.guest.poll() is None:
            self.guest.kill()
            self.guest.wait()
        for process in (self.attach and self.attach.process, self.serve):
            if process:
                processes.end(process)
        if keep:
            remark(f"kept {self.directory}")
            return
        for folder in self.memory_folders():
            shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(self.directory, ignore_errors=True)
