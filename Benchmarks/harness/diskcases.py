"""What Benchmarks/disks measures, one method a measurement. Each yields results: dictionaries with `case`, `subject`
and figures."""
import mmap
import os
import statistics
import tempfile
import time
from pathlib import Path

from . import diskpeers, fio
from .diskpeers import Footprint, NbdkitMemory, QemuNbd, ReplicationSecondary
from .fio import Load
from .ourdisk import OurDisk, OurMemory

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
REPLICATION, QEMU_NBD, NBDKIT, RAW = "QEMU replication", "qemu-nbd", "nbdkit memory", "fio libaio"
OURS = {"memory": "colo-blk memory", "disk": "colo-blk disk"}

#: Size of the disks, and writes of each first-overwrite load. The more a volume holds, the fewer of QEMU's clusters of
#: 64 KiB are met twice: 9 % at these figures.
SIZES = {"disk": 4 * GIB, "tmpfs": 2 * GIB}
COLD = {
    "disk": (("4K QD32", 4 * KIB, 32, 12000), ("64K QD8", 64 * KIB, 8, 8000), ("1M QD4", MIB, 4, 1024)),
    "tmpfs": (("4K QD32", 4 * KIB, 32, 6000), ("64K QD8", 64 * KIB, 8, 6000), ("1M QD4", MIB, 4, 1024)),
}
WARM_REGION = 256 * MIB


class Placement:
    """The servers of one placement, all of them running; only the one that is measured has work."""

    def __init__(self, name, base, binary, budget_mib, repeats, seconds):
        self.name, self.binary, self.repeats, self.seconds = name, binary, repeats, seconds
        self.size = SIZES[name]
        self.directory = Path(tempfile.mkdtemp(prefix="cbd-", dir=base))
        self.servers, self.seed = {}, 0
        self.is_direct, self.is_protecting = name == "disk", False
        try:
            self._start(budget_mib)
        except BaseException:
            self.close()
            raise

    def _start(self, budget_mib):
        for folder in ("peer", "plain", "ours"):
            (self.directory / folder).mkdir()
        self.raw = self.directory / "plain" / "disk.raw"
        secondary = self.directory / "peer" / "secondary.raw"
        for path in (self.raw, secondary):
            diskpeers.fill(path, self.size)
        self.servers[QEMU_NBD] = QemuNbd(self.directory / "plain", self.raw, self.is_direct)
        self.servers[REPLICATION] = ReplicationSecondary(self.directory / "peer", secondary, self.is_direct)
        for durability, subject in OURS.items():
            if durability == "disk" and not self.is_direct:
                continue
            self.servers[subject] = OurDisk(
                self.directory / "ours", self.binary, self.size, durability, budget_mib)
            fio.nbd(Load("write", MIB, 8, self.size, total=self.size), self.servers[subject].uri, 1)

    @property
    def protecting(self):
        return [subject for subject in self.servers if subject != QEMU_NBD]

    def turn(self, subjects, number):
        """Another one is the first in every round."""
        shift = number % len(subjects)
        return subjects[shift:] + subjects[:shift]

    def next_seed(self):
        self.seed += 1
        return self.seed

    # Loads

    def load(self, subject, load, is_sustained):
        """One run. Sustained: the time goes on until our server has put everything where it belongs and, when it
        protects, has made a checkpoint of it: nothing is hidden in its memory. QEMU keeps nothing; there it ends with
        fio."""
        server = self.servers[subject]
        footprint = Footprint(server.pids)
        figures = fio.nbd(load, server.uri, self.next_seed())
        if is_sustained and isinstance(server, OurDisk):
            if self.is_protecting:
                server.checkpoint()
            else:
                server.wait_until_drained()
            # What fio spends before and behind its work is not the server's time.
            spent = time.monotonic() - figures["begun"] - self.overhead_s
            figures["burst_iops"] = figures["iops"]
            figures["seconds"] = max(spent, figures["seconds"])
            figures["iops"] = figures["ios"] / figures["seconds"]
        else:
            self.overhead_s = min(getattr(self, "overhead_s", 1e9), figures["overhead_s"])
        return {**figures, **footprint.figures()}

    def result(self, case, subject, runs):
        """Runs of one load as one result: all their operations over all their time."""
        ios, seconds = sum(run["ios"] for run in runs), sum(run["seconds"] for run in runs)
        result = {"case": case, "placement": self.name, "subject": subject, "iops": round(ios / seconds, 1)}
        for name in ("p50_us", "p99_us", "cpu_percent", "rss_mib", "burst_iops"):
            values = [run[name] for run in runs if name in run]
            if values:
                result[name] = round(statistics.median(values), 1)
        result["cpu_us_per_io"] = round(sum(run["cpu_ms"] for run in runs) * 1000 / ios, 2)
        return result

    def calibrate(self):
        """fio's own time beside its work, from a load of one write."""
        for _ in range(3):
            self.load(QEMU_NBD, Load("randwrite", 4 * KIB, 1, WARM_REGION, total=4 * KIB), False)

    # Cases

    def plain(self, number):
        """The same servers before anything is kept."""
        for name, block, depth, count in COLD[self.name]:
            load = self.cold_load(block, depth, count)
            for subject in self.turn(list(self.servers), number):
                runs = [self.load(subject, load, True) for _ in range(self.repeats)]
                yield self.result(f"plain {name}", subject, runs)

    def protect(self):
        for subject in self.protecting:
            server = self.servers[subject]
            if isinstance(server, ReplicationSecondary):
                server.protect()
            server.checkpoint()
        self.is_protecting = True

    def cold_load(self, block, depth, count):
        mode = "write" if block >= MIB else "randwrite"
        region = count * block if mode == "write" else self.size
        return Load(mode, block, depth, region, total=count * block)

    def cold(self, number):
        """P1, P2: every write meets a block for the first time since the checkpoint."""
        for name, block, depth, count in COLD[self.name]:
            load = self.cold_load(block, depth, count)
            runs = {subject: [] for subject in self.protecting}
            for repeat in range(self.repeats):
                for subject in self.turn(self.protecting, number + repeat):
                    runs[subject].append(self.load(subject, load, True))
                    if not isinstance(self.servers[subject], OurDisk):
                        self.servers[subject].checkpoint()
            for subject in self.protecting:
                yield self.result(f"first overwrite {name}", subject, runs[subject])
            yield from self.raw_load(f"first overwrite {name}", load)

    def raw_load(self, case, load):
        """The same writes by fio itself, and reads of the same kind: what 1/(1/read + 1/write) needs."""
        figures = fio.file(load, self.raw, self.next_seed())
        reading = Load("read" if load.mode == "write" else "randread", load.block, load.depth, load.region,
                       total=load.total)
        read = fio.file(reading, self.raw, self.next_seed())
        yield {"case": case, "placement": self.name, "subject": RAW, "iops": round(figures["iops"], 1),
               "p50_us": figures["p50_us"], "p99_us": figures["p99_us"], "read_iops": round(read["iops"], 1)}

    def warm(self, number):
        """P3: writes to blocks whose old contents are kept already."""
        prepare = Load("write", MIB, 4, WARM_REGION, total=WARM_REGION)
        load = Load("randwrite", 4 * KIB, 32, WARM_REGION, seconds=self.seconds)
        for subject in self.protecting:
            fio.nbd(prepare, self.servers[subject].uri, self.next_seed())
            if isinstance(self.servers[subject], OurDisk):
                self.servers[subject].wait_until_drained()
        for subject in self.turn(list(self.servers), number):
            yield self.result("warm 4K QD32", subject, [self.load(subject, load, True)])
        figures = fio.file(load, self.raw, self.next_seed())
        yield {"case": "warm 4K QD32", "placement": self.name, "subject": RAW, "iops": round(figures["iops"], 1),
               "p50_us": figures["p50_us"], "p99_us": figures["p99_us"]}
        for subject in self.protecting:
            self.servers[subject].checkpoint()

    def space(self, number):
        """P4: what the hidden disk occupies for each byte that was overwritten, 4 KiB at a time."""
        _, block, depth, count = COLD[self.name][0]
        for subject in self.turn(self.protecting, number):
            server = self.servers[subject]
            server.checkpoint()
            before = server.hidden_bytes()
            fio.nbd(self.cold_load(block, depth, count), server.uri, self.next_seed())
            if isinstance(server, OurDisk):
                server.wait_until_drained()
            held = server.hidden_bytes() - before
            yield {"case": "space of a 4K overwrite", "placement": self.name, "subject": subject,
                   "held_ratio": round(held / (count * block), 3)}
            server.checkpoint()

    def commit(self, number):
        """P6, P7: round trip of a checkpoint when the hidden disk is empty, holds 190 MB, and 1 GB."""
        for name, total, rounds in (("empty", 0, 20), ("190 MB", 190 * 1000 * 1000 // MIB * MIB, 3), ("1 GB", GIB, 2)):
            for subject in self.turn(self.protecting, number):
                server, times, held = self.servers[subject], [], 0
                for _ in range(rounds):
                    if total:
                        fio.nbd(Load("write", MIB, 4, total, total=total), server.uri, self.next_seed())
                        if isinstance(server, OurDisk):
                            server.wait_until_drained()
                        held = server.hidden_bytes()
                    times.append(server.checkpoint())
                yield {"case": f"commit, hidden disk {name}", "placement": self.name, "subject": subject,
                       "ms": round(statistics.median(times), 3), "worst_ms": round(max(times), 3),
                       "hidden_mb": round(held / 1e6)}
        yield {"case": "fdatasync", "placement": self.name, "subject": "write 4K, fdatasync",
               "ms": round(fdatasync_ms(self.directory, self.is_direct), 4)}

    def close(self):
        for server in self.servers.values():
            server.close()
        diskpeers.remove(self.directory)


def fdatasync_ms(directory, is_direct, count=200):
    """Median of fdatasync(2) behind an overwrite of 4 KiB."""
    path, times = Path(directory) / "sync.raw", []
    memory = mmap.mmap(-1, 4096)
    memory.write(os.urandom(4096))
    with open(path, "wb") as file:
        file.write(os.urandom(MIB))
        os.fsync(file.fileno())
    descriptor = os.open(path, os.O_RDWR | (os.O_DIRECT if is_direct else 0))
    try:
        for number in range(count):
            os.pwrite(descriptor, memory, number * 4096 % MIB)
            begun = time.monotonic()
            os.fdatasync(descriptor)
            times.append((time.monotonic() - begun) * 1000)
    finally:
        os.close(descriptor)
        path.unlink()
    return statistics.median(times)


def memory_servers(directory, binary, number, seconds):
    """P13: our NBD server beside nbdkit's, both on memory: no disk has a part in it."""
    size = 1 * GIB
    servers = {NBDKIT: NbdkitMemory(directory, size), "colo-blk memory export": OurMemory(directory, binary, size)}
    subjects = list(servers)
    subjects = subjects[number % 2:] + subjects[:number % 2]
    try:
        for server in servers.values():
            fio.nbd(Load("write", MIB, 4, size, total=size), server.uri, 1)
        for mode, block, depth in (("randwrite", 4 * KIB, 1), ("randwrite", 4 * KIB, 32), ("randread", 4 * KIB, 1),
                                   ("randread", 4 * KIB, 32), ("randwrite", 64 * KIB, 8), ("randread", MIB, 4),
                                   ("randwrite", MIB, 4)):
            load = Load(mode, block, depth, size, seconds=seconds)
            for subject in subjects:
                footprint = Footprint(servers[subject].pids)
                figures = {**fio.nbd(load, servers[subject].uri, number), **footprint.figures()}
                yield {"case": f"NBD server, {load.name}", "placement": "memory", "subject": subject,
                       **{name: round(figures[name], 1)
                          for name in ("iops", "p50_us", "p99_us", "cpu_percent", "rss_mib")},
                       "cpu_us_per_io": round(figures["cpu_ms"] * 1000 / figures["ios"], 2)}
    finally:
        for server in servers.values():
            server.close()
