"""The results of all rounds as tables: medians over the rounds, their spread, and ratios to the peer."""
import statistics

PEER = "COLO pair"
#: Figure, its heading, digits, and whether a ratio to the peer's figure means something.
ROWS = (
    ("pause_ms", "guest pause, median, ms", 2, True),
    ("pause_p95_ms", "guest pause, p95, ms", 2, True),
    ("pause_max_ms", "guest pause, longest, ms", 2, True),
    ("interval_ms", "from checkpoint to checkpoint, ms", 0, True),
    ("failover_ms", "failover, decision to RUNNING, ms", 1, True),
    ("failover_verb_ms", "  the same, the whole command, ms", 1, False),
    ("attach_s", "attach to protected, s", 2, False),
    ("dirty_pages", "dirty pages of a checkpoint", 0, False),
    ("link_kib", "link, KiB of a checkpoint", 1, False),
    ("device_state_kib", "  of that device state, as it is, KiB", 1, False),
    ("lag_ms", "lag of the commit, median, ms", 2, False),
    ("lag_p95_ms", "lag of the commit, p95, ms", 2, False),
    ("rss_secondary_mib", "secondary's process, resident, MiB", 0, True),
    ("held_secondary_mib", "  with the RAM it keeps, MiB", 0, True),
    ("rss_agent_mib", "agent, resident, MiB", 0, False),
    ("rss_guardian_mib", "guardian, resident, MiB", 0, False),
    ("cpu_primary_percent", "processor, primary's QEMU, %", 0, True),
    ("cpu_agent_percent", "processor, agent and guardian, %", 0, False),
    ("cpu_secondary_percent", "processor, secondary, %", 0, True),
    ("guest_records_per_s", "guest's disk records a second", 0, True),
)


def title(result):
    return PEER if result["kind"] == "colo-pair" else f"colo-blk, {result['durability']}"


def number(value, digits):
    return f"{value:.{digits}f}"


def spread(values, digits):
    """Median, and from the least to the most when there are more than one."""
    if not values:
        return "-"
    text = number(statistics.median(values), digits)
    return text if len(values) == 1 else f"{text} [{number(min(values), digits)} - {number(max(values), digits)}]"


def ratio(ours, peers):
    """The ratios of the rounds in which both were measured."""
    both = [ours[key] / peers[key] for key in ours if peers.get(key)]
    return spread(both, 2)


def by_round(results, name):
    return {result["round"]: result[name] for result in results if result.get(name) is not None}


def render(results):
    """One table for each mode, as lines."""
    lines = []
    for mode in dict.fromkeys(result["mode"] for result in results):
        of_mode = [result for result in results if result["mode"] == mode]
        titles = sorted({title(result) for result in of_mode}, key=lambda text: (text == PEER, text))
        columns = {text: [result for result in of_mode if title(result) == text] for text in titles}
        ours = [text for text in titles if text != PEER] if PEER in titles else []
        rows = [[f"**{mode}**"] + titles + [f"{text.split(', ')[1]} / pair" for text in ours]]
        for name, heading, digits, comparable in ROWS:
            values = {text: by_round(columns[text], name) for text in titles}
            if not any(any(found.values()) for found in values.values()):
                continue
            row = [heading] + [spread(list(values[text].values()), digits) for text in titles]
            row += [ratio(values[text], values[PEER]) if comparable else "" for text in ours]
            rows.append(row)
        checks = []
        for text in titles:
            good = sum(not result["faults"] for result in columns[text])
            checks.append(f"{good} of {len(columns[text])} good")
        rows.append(["guest's self-checks"] + checks + ["" for _ in ours])
        pauses = [str(sum(result.get("checkpoints", 0) for result in columns[text])) for text in titles]
        rows.append(["checkpoints measured"] + pauses + ["" for _ in ours])
        lines += align(rows) + [""]
    return lines


def align(rows):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|"] + lines[1:]
