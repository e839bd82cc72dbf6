"""Processes of ours: started in sessions of their own, looked at through /proc, ended by their own process id."""
import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

from .failure import Failure

LAUNCH = Path(__file__).resolve().parents[2] / "Images" / "launch"
DISK_MIB = 64
TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")


def start(words, output, environment=None):
    """Starts a process whose output goes to a file."""
    with open(output, "ab") as log:
        return subprocess.Popen([str(word) for word in words], env=environment, stdin=subprocess.DEVNULL, stdout=log,
                                stderr=log, start_new_session=True)


def launch_command(directory, mode, options, qemu_arguments):
    """Images/launch's QEMU command for a test guest: the words, and the environment that a primary needs."""
    printed = subprocess.run([str(LAUNCH), "--dir", str(directory), "--mode", mode, "--print"] + options + ["--"]
                             + qemu_arguments, check=True, stdout=subprocess.PIPE, text=True).stdout
    words, environment = shlex.split(printed), {}
    while "=" in words[0] and not words[0].startswith("/"):
        name, value = words.pop(0).split("=", 1)
        environment[name] = value
    return words, environment


def make_disk(path):
    with open(path, "wb") as disk:
        disk.truncate(DISK_MIB << 20)


def is_alive(pid):
    """Runs, and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def arguments_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def children_of(pid):
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            if parent == pid:
                found.append(int(entry.name))
    return found


def memory_mib(pid):
    """What /proc/PID/status says: resident, and the part of it that is shared memory (tmpfs)."""
    text = Path(f"/proc/{pid}/status").read_text()

    def field(name):
        match = re.search(rf"^{name}:\s+(\d+) kB", text, re.M)
        return int(match.group(1)) / 1024 if match else 0.0

    return field("VmRSS"), field("RssShmem")


def cpu_ms(pid):
    """Processor time used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * TICK_MS


def end(process, seconds=10):
    """SIGTERM, and SIGKILL when that does not do. Returns the exit code."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def kill_marked(mark):
    """kill -9 of every process with `mark` in its command line, which must be a name that only we have given."""
    for pid in [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]:
        if pid == os.getpid() or not any(mark in word for word in arguments_of(pid)):
            continue
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        deadline = time.monotonic() + 10
        while is_alive(pid):
            if time.monotonic() > deadline:
                raise Failure(f"process {pid} does not end after SIGKILL")
            time.sleep(0.005)
