"""A network of the benchmark's own: a namespace with one tap device, whose other end is the world outside."""
import json
import os
import subprocess
from pathlib import Path

from .failure import Failure

OUTSIDE = Path(__file__).resolve().parents[2] / "Images" / "outside"
GUEST = "10.0.2.15"
ECHO_PORT = 7007


class Wire:
    def __init__(self):
        if os.geteuid() != 0 or not os.access("/dev/net/tun", os.R_OK | os.W_OK):
            raise Failure("only root can make a tap in a network namespace, and /dev/net/tun is needed")
        self.name = f"cbbench{os.getpid()}"
        self._ip("netns", "add", self.name)
        for words in ("link set lo up", "tuntap add tap0 mode tap", "addr add 10.0.2.2/24 dev tap0", "link set tap0 up"):
            self._ip("-n", self.name, *words.split())

    @staticmethod
    def _ip(*words):
        done = subprocess.run(["ip", *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, timeout=30)
        if done.returncode != 0:
            raise Failure(f"ip {' '.join(words)} exits with {done.returncode}: {done.stdout.strip()}")

    @property
    def prefix(self):
        """Words before a command that is to run within it."""
        return ["ip", "netns", "exec", self.name]

    #: QEMU's words for the card, and the kernel's.
    qemu_arguments = ["-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no",
                      "-device", "virtio-net-pci,netdev=n0,id=nic0"]
    kernel_words = f"colo.net=1 colo.net_ms=1000000 colo.echo_port={ECHO_PORT}"

    def ping(self, count, pause_ms):
        """Round trips in milliseconds, one after the other, from outside to the guest's echo server."""
        done = subprocess.run([*self.prefix, "python3", str(OUTSIDE), "ping", GUEST, str(ECHO_PORT), str(count),
                               str(pause_ms)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, timeout=300)
        if done.returncode != 0:
            raise Failure(f"Images/outside ping exits with {done.returncode}: {done.stdout.strip()}")
        return json.loads(done.stdout.splitlines()[-1])

    def close(self):
        subprocess.run(["ip", "netns", "del", self.name], check=False)
