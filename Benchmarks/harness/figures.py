"""Numbers of samples, and what both kinds of protection report of their checkpoints."""
import statistics


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def median(values, digits=2):
    """None when there are no values."""
    return round(statistics.median(values), digits) if values else None


def of_checkpoints(found):
    """The figures of a list that monitor.checkpoints made."""
    pauses = [pause for pause, _ in found]
    return {
        "checkpoints": len(pauses), "pause_ms": median(pauses), "pause_p95_ms": round(percentile(pauses, 0.95), 2),
        "pause_max_ms": round(max(pauses), 2), "pauses_ms": [round(pause, 2) for pause in pauses],
        "interval_ms": median([interval for _, interval in found if interval is not None], 1),
    }
