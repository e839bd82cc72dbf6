"""What a test guest says on its serial console. Images/guest/selfcheck.c lists the lines."""
import time

from .failure import Failure

ALARMS = ("RAMFAIL", "DISKFAIL", "Kernel panic", "Oops", "BUG:", "Call Trace", "I/O error", "SELFCHECK bad",
          "soft lockup")


class SerialLog:
    """A serial log, read as it grows."""

    def __init__(self, path, offset=0):
        """Reads from `offset` on. A line that has lost its beginning is no known line and so does not count."""
        self.path, self.offset = path, offset
        self.rest = b""
        self.faults = []
        self.boot = None
        self.first_tick = self.last_tick = None
        self.ram_lines = 0
        self.disk_lines = 0
        #: Records written by all disks, from the last line of each.
        self.records = {}

    def read(self):
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                data = file.read()
        except OSError:
            return self
        self.offset += len(data)
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            self._take(line.decode(errors="replace").strip("\r\0 "))
        return self

    def _take(self, line):
        words = line.split()
        if any(alarm in line for alarm in ALARMS):
            self.faults.append(line)
        elif len(words) < 2:
            return
        elif words[0] == "TICK" and len(words) > 3 and words[1].isdigit():
            number, boot = int(words[1]), words[2]
            if self.last_tick is not None and (number != self.last_tick + 1 or boot != self.boot):
                self.faults.append(f"tick {number} of {boot} after tick {self.last_tick} of {self.boot}")
            self.first_tick = number if self.first_tick is None else self.first_tick
            self.last_tick, self.boot = number, boot
        elif words[0] == "RAMOK":
            self.ram_lines += 1
        elif words[0] == "DISKOK" and len(words) > 2:
            self.disk_lines += 1
            self.records[words[1]] = int(words[2])

    @property
    def record_total(self):
        return sum(self.records.values())

    def __str__(self):
        return (f"tick {self.last_tick}, {self.ram_lines} RAM rounds, {self.disk_lines} disk reports, "
                f"faults {self.faults[:3]}")


def follow_survivor(path, offset, boot, writes, seconds):
    """Follows a guest after its failover until every self-check has passed, and for `seconds` at least.

    Returns the faults, which are to be none, and the log. `boot` is what the lost guest called itself."""
    log, begun = SerialLog(path, offset), time.monotonic()
    while True:
        log.read()
        elapsed = time.monotonic() - begun
        ticks = 0 if log.first_tick is None else log.last_tick - log.first_tick
        passed = ticks >= 10 and log.ram_lines >= 3 and (log.disk_lines >= 2 or not writes)
        if log.faults or (passed and elapsed >= seconds):
            break
        if elapsed > seconds + 30:
            log.faults.append(f"no progress after the failover: {log}")
            break
        time.sleep(0.05)
    if not log.faults and log.boot != boot:
        log.faults.append(f"another guest: {log.boot}, not {boot}")
    return log.faults, log


def wait_until_busy(log, writes, is_alive, seconds=120):
    """Waits until the guest has booted and every self-check has passed."""
    deadline = time.monotonic() + seconds
    while True:
        log.read()
        if log.faults:
            raise Failure(f"the guest reports {log.faults[:3]}")
        if (log.last_tick or 0) >= 5 and log.ram_lines >= 2 and (log.disk_lines or not writes):
            return
        if not is_alive():
            raise Failure("QEMU ended while the guest booted")
        if time.monotonic() > deadline:
            raise Failure(f"the guest is not ready after {seconds} s: {log}")
        time.sleep(0.05)
