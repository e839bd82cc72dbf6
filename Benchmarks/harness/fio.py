"""fio as the loader: its nbd engine against servers, libaio against a file."""
import json
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from .failure import Failure


@dataclass(frozen=True)
class Load:
    """What fio is to do. Either `total` bytes once over, or `seconds` of it; `region` bytes from the start of the disk.

    Random offsets never repeat before the whole region has been written (fio's random map), so `total` up to `region`
    overwrites every block at most once."""

    mode: str
    block: int
    depth: int
    region: int
    total: int = 0
    seconds: float = 0.0

    @property
    def name(self):
        size = f"{self.block >> 20}M" if self.block >= 1 << 20 else f"{self.block >> 10}K"
        return f"{self.mode} {size} QD{self.depth}"


def run(load, words, seed):
    """Runs fio once. Returns its figures, and how much longer than the work itself the program ran (`overhead_s`)."""
    words = ["fio", "--name=load", f"--rw={load.mode}", f"--bs={load.block}", f"--iodepth={load.depth}",
             f"--size={load.region}", f"--randseed={seed}", "--output-format=json", *words]
    if load.seconds:
        words += ["--time_based", f"--runtime={load.seconds}s"]
    if load.total:
        words += [f"--io_size={load.total}"]
    begun = time.monotonic()
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wall = time.monotonic() - begun
    try:
        # Remarks of fio may stand before the JSON.
        job = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
    except (ValueError, LookupError) as error:
        raise Failure(f"fio ended with {done.returncode}: {(done.stderr or done.stdout)[-400:].strip()}") from error
    if done.returncode or job["error"]:
        raise Failure(f"fio ended with {done.returncode}, error {job['error']}: {done.stderr[-400:].strip()}")
    side = job["read" if "read" in load.mode else "write"]
    seconds = side["runtime"] / 1000
    percentiles = side["clat_ns"].get("percentile", {})
    if not side["total_ios"] or seconds <= 0:
        raise Failure(f"fio did nothing in {wall:.2f} s: {load}")
    return {
        "ios": side["total_ios"], "seconds": seconds, "iops": side["total_ios"] / seconds,
        "p50_us": percentiles.get("50.000000", 0) / 1000, "p99_us": percentiles.get("99.000000", 0) / 1000,
        "overhead_s": wall - seconds, "begun": begun,
    }


def nbd(load, uri, seed):
    return run(load, ["--ioengine=nbd", f"--uri={uri}"], seed)


def file(load, path, seed):
    return run(load, ["--ioengine=libaio", "--direct=1", f"--filename={path}"], seed)


def socket_uri(path, export=""):
    """An NBD URI of a unix socket. The characters of our paths need no escape; others are refused."""
    if not re.fullmatch(r"[A-Za-z0-9/._-]+", str(path)):
        raise Failure(f"{path} cannot be written into an NBD URI here; set TMPDIR to a plain path")
    return f"nbd+unix:///{export}?socket={Path(path)}"
