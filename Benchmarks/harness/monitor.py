"""A QMP client, and the guest's pauses as QEMU's own events tell them."""
import json
import socket
import time

from .failure import Failure


class Monitor:
    """A QMP client. Events are kept in the order of arrival."""

    def __init__(self, path, process, timeout_s=60):
        deadline = time.monotonic() + timeout_s
        while True:
            self.socket = socket.socket(socket.AF_UNIX)
            try:
                self.socket.connect(str(path))
                break
            except OSError as error:
                self.socket.close()
                if process.poll() is not None:
                    raise Failure(
                        f"QEMU ended with {process.returncode} before its monitor could be reached") from error
                if time.monotonic() > deadline:
                    raise Failure(f"no monitor at {path}: {error}") from error
                time.sleep(0.02)
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

    def close(self):
        self.socket.close()


def _microseconds(event):
    return event["timestamp"]["seconds"] * 1_000_000 + event["timestamp"]["microseconds"]


def checkpoints(events):
    """The guest's pauses, each with what went before: (milliseconds from STOP to RESUME, milliseconds from STOP to the
    STOP before it or None)."""
    found, stop, before, is_stopped = [], None, None, False
    for event in events:
        if event["event"] == "STOP":
            before, stop, is_stopped = stop, _microseconds(event), True
        elif event["event"] == "RESUME" and is_stopped:
            interval = (stop - before) / 1000 if before is not None else None
            found.append(((_microseconds(event) - stop) / 1000, interval))
            is_stopped = False
    return found
