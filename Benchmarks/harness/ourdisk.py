"""colo-blk as a disk server: `colo-blk disk serve`, and its NBD server on memory."""
import json
import socket
import time

from . import processes
from .diskpeers import Server, tail
from .failure import Failure


class OurDisk(Server):
    """A secondary disk. Before the first checkpoint it keeps no old contents: that is its plain write-through."""

    def __init__(self, directory, binary, size, durability, budget_mib):
        super().__init__(directory, f"ours-{durability}")
        self.store = self.directory / f"store-{durability}"
        self.durability = durability
        self.start([binary, "disk", "serve", f"{self.store}/bench", "--size", str(size), "--durability", durability,
                    "--budget", str(budget_mib), "--socket", self.socket])
        self.control = socket.socket(socket.AF_UNIX)
        self.control.settimeout(120)
        self.control.connect(str(self.store / "control.sock"))
        self.lines = self.control.makefile("rb")

    @property
    def uri(self):
        return super().uri.replace("///?", "///bench?")

    def ask(self, verb):
        """What the verbs `disk status`, `checkpoint` and `rollback` ask; no new process is started for it."""
        self.control.sendall(json.dumps({"verb": verb}).encode() + b"\n")
        line = self.lines.readline()
        if not line:
            raise Failure(f"colo-blk closed its control socket: {tail(self.log)}")
        answer = json.loads(line)
        if answer.get("error"):
            raise Failure(f"{verb}: {answer['error']}")
        return answer

    def checkpoint(self):
        """Milliseconds of a checkpoint's round trip."""
        begun = time.monotonic()
        self.ask("diskCheckpoint")
        return (time.monotonic() - begun) * 1000

    def status(self):
        return self.ask("diskStatus")["disk"]

    def hidden_bytes(self):
        return self.status()["hiddenBytes"]

    def wait_until_drained(self, seconds=60):
        """Until no write waits in memory."""
        deadline = time.monotonic() + seconds
        while (left := self.status()["bufferedBytes"]) > 0:
            if time.monotonic() > deadline:
                raise Failure(f"{left} bytes still wait in memory after {seconds} s")
            time.sleep(0.002)

    def close(self):
        if self.process:
            self.control.close()
            processes.end(self.process, 60)


class OurMemory(Server):
    """The NBD server alone, on memory."""

    def __init__(self, directory, binary, size):
        super().__init__(directory, "ours-ram")
        self.start([binary, "disk", "memory", "--size", str(size), "--socket", self.socket])
