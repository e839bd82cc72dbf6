"""Where and when a benchmark ran."""
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from .failure import Failure, remark


def load():
    """The 1-minute load average."""
    return round(os.getloadavg()[0], 2)


def describe(binary=None):
    """The machine, QEMU and colo-blk, for the record."""
    qemu = os.environ.get("COLO_BLK_QEMU", "qemu-system-x86_64")
    model = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    memory = re.search(r"^MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text(), re.M)
    filesystem = subprocess.run(["stat", "-fc", "%T", tempfile.gettempdir()], stdout=subprocess.PIPE, text=True)
    machine = {
        "kind": "machine", "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "cores": os.cpu_count(),
        "cpu": model.group(1) if model else platform.machine(),
        "memory_mib": int(memory.group(1)) // 1024 if memory else None, "kernel": platform.release(),
        "files_on": filesystem.stdout.strip(), "load_1m": load(), "qemu": first_line([qemu, "--version"]),
    }
    if binary:
        machine["colo_blk"] = first_line([binary, "--version"])
    return machine


def first_line(command):
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        raise Failure(f"{command[0]} cannot be run: {error}") from error
    return done.stdout.splitlines()[0] if done.stdout else "?"


def find_binary():
    """The colo-blk to measure: COLO_BLK_BIN, or the one on the path, or the release build of this tree."""
    built = Path(__file__).resolve().parents[2] / ".build" / "release" / "colo-blk"
    for candidate in (os.environ.get("COLO_BLK_BIN"), shutil.which("colo-blk"), built):
        if candidate and os.access(candidate, os.X_OK):
            return Path(candidate).resolve()
    raise Failure("no colo-blk: set COLO_BLK_BIN to a release build (swift build -c release)")


def wait_for_quiet(most, seconds):
    """Waits until the load average is below `most`; says so when it never is."""
    deadline = time.monotonic() + seconds
    while load() >= most:
        if time.monotonic() > deadline:
            remark(f"still a load of {load()} after {seconds:.0f} s; measuring anyway")
            return
        time.sleep(2)
