"""The one error of the benchmarks, and the voice in which they speak."""
import sys


class Failure(Exception):
    """Something did not do what it should; the text says what."""


def remark(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def tail(path, length=600):
    """The end of a log, for messages."""
    try:
        return path.read_text(errors="replace")[-length:].strip()
    except OSError:
        return f"(no {path})"
