"""The results of Benchmarks/disks as tables: medians of the rounds, [least - most], ratios within a round, and the budget
that each ratio is held against."""
import statistics

from . import diskcases
from .table import align

REPLICATION, QEMU_NBD, NBDKIT, RAW = (
    diskcases.REPLICATION, diskcases.QEMU_NBD, diskcases.NBDKIT, diskcases.RAW)
MEMORY, DISK = diskcases.OURS["memory"], diskcases.OURS["disk"]
EXPORT = "colo-blk memory export"

#: The columns of a results table: figure, heading, digits.
COLUMNS = (
    ("iops", "IOPS", 0), ("burst_iops", "of fio alone", 0), ("read_iops", "reads", 0), ("p50_us", "p50 us", 0),
    ("p99_us", "p99 us", 0), ("p50_ratio", "p50 / unprotected", 2), ("held_ratio", "bytes held / byte", 2),
    ("ms", "ms", 3), ("worst_ms", "worst ms", 2), ("hidden_mb", "hidden MB", 0), ("cpu_percent", "cpu %", 0),
    ("cpu_us_per_io", "cpu us / op", 2), ("rss_mib", "RSS MiB", 0),
)


class Results:
    def __init__(self, results):
        self.results = results

    def values(self, case, placement, subject, figure):
        """By round."""
        return {found["round"]: found[figure] for found in self.results
                if (found["case"], found["placement"], found["subject"]) == (case, placement, subject)
                and found.get(figure) is not None}

    def ratios(self, case, placement, ours, peer, figure="iops", other_case=None):
        """Of the rounds in which both were measured. `other_case` is the peer's, when it is another one."""
        mine = self.values(case, placement, ours, figure)
        theirs = self.values(other_case or case, placement, peer, figure)
        return [mine[number] / theirs[number] for number in mine if theirs.get(number)]

    def placements(self):
        return list(dict.fromkeys(found["placement"] for found in self.results))

    def cases(self, placement):
        return list(dict.fromkeys(found["case"] for found in self.results if found["placement"] == placement))

    def subjects(self, placement, case):
        return list(dict.fromkeys(found["subject"] for found in self.results
                                  if found["placement"] == placement and found["case"] == case))


def spread(values, digits):
    """Median [least - most]."""
    if not values:
        return ""
    text = f"{statistics.median(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} [{min(values):.{digits}f} - {max(values):.{digits}f}]"


def figures(results):
    """One table for each placement: every case and every subject, as lines."""
    lines = []
    for placement in results.placements():
        rows = []
        for case in results.cases(placement):
            for index, subject in enumerate(results.subjects(placement, case)):
                cells = [spread(list(results.values(case, placement, subject, figure).values()), digits)
                         for figure, _, digits in COLUMNS]
                rows.append([case if index == 0 else "", subject] + cells)
        used = [column for column in range(len(COLUMNS)) if any(row[column + 2] for row in rows)]
        heading = [f"**{placement}**", "subject"] + [COLUMNS[column][1] for column in used]
        lines += align([heading] + [row[:2] + [row[column + 2] for column in used] for row in rows]) + [""]
    return lines


def budgets(results):
    """The ratios of the design's budgets, as lines. The peer's share is taken in the same round."""
    rows = [["budget", "where", "what", "ratio", "reach", "then"]]

    def add(budget, placement, what, values, reach, then, digits=2):
        if values:
            rows.append([budget, placement, what, spread(values, digits), reach, then])

    for placement, reach in (("disk", ">= 3"), ("tmpfs", ">= 2.5")):
        first = "first overwrite 4K QD32"
        for ours in (MEMORY, DISK):
            add("P1", placement, f"{ours} / {REPLICATION}", results.ratios(first, placement, ours, REPLICATION), reach, "")
            add("P1", placement, f"{ours} / its own plain export",
                results.ratios(first, placement, ours, ours, other_case="plain 4K QD32"), "", ">= 0.7")
        for load in ("64K QD8", "1M QD4"):
            case = f"first overwrite {load}"
            for ours in (MEMORY, DISK):
                add("P2", placement, f"{ours}, {load} / {REPLICATION}",
                    results.ratios(case, placement, ours, REPLICATION), ">= 1.5", "")
                add("P2", placement, f"{ours}, {load} / (1 / (1/read + 1/write)) of fio",
                    copy_on_write_share(results, case, placement, ours), "", ">= 0.8")
        warm = "warm 4K QD32"
        for ours in (MEMORY, DISK):
            add("P3", placement, f"{ours} / {QEMU_NBD}", results.ratios(warm, placement, ours, QEMU_NBD), ">= 1.5", "")
            add("P3", placement, f"{ours} / fio", results.ratios(warm, placement, ours, RAW), "", ">= 0.5")
        for subject in (MEMORY, DISK, REPLICATION):
            held = results.values("space of a 4K overwrite", placement, subject, "held_ratio")
            add("P4", placement, subject, list(held.values()), "" if subject == REPLICATION else "<= 1.25",
                "" if subject == REPLICATION else "<= 1.1")
        guest = "guest's write, 4K QD1"
        for subject in results.subjects(placement, guest):
            is_ours = subject.startswith("colo-blk")
            add("P5", placement, f"{subject}, p50 attached / not",
                list(results.values(guest, placement, subject, "p50_ratio").values()), "<= 1.6" if is_ours else "",
                "<= 1.3" if is_ours else "")
        for case in (case for case in results.cases(placement) if case.startswith("commit")):
            for subject in (MEMORY, REPLICATION):
                add("P6", placement, f"{subject}, {case}, ms",
                    list(results.values(case, placement, subject, "ms").values()),
                    "<= 2" if subject == MEMORY else "", "<= 0.5" if subject == MEMORY else "")
            add("P7", placement, f"({DISK} - {MEMORY}) / fdatasync, {case}",
                sync_share(results, case, placement), "<= 3", "<= 1.5")
    add("P13", "memory", f"{EXPORT} / {NBDKIT}, 4K QD32 writes",
        results.ratios("NBD server, randwrite 4K QD32", "memory", EXPORT, NBDKIT), ">= 0.9", ">= 1.2")
    add("P13", "memory", f"{EXPORT} / {NBDKIT}, 4K QD32 reads",
        results.ratios("NBD server, randread 4K QD32", "memory", EXPORT, NBDKIT), ">= 0.9", ">= 1.2")
    return align(rows)


def copy_on_write_share(results, case, placement, ours):
    """Our rate as a share of what a disk can do at best when each write is preceded by a read and followed by another
    write: 1 / (1/read + 1/write)."""
    mine = results.values(case, placement, ours, "iops")
    read, write = (results.values(case, placement, RAW, figure) for figure in ("read_iops", "iops"))
    return [mine[number] * (1 / read[number] + 1 / write[number]) for number in mine if read.get(number)]


def sync_share(results, case, placement):
    """What durability adds to a commit, in units of the same round's fdatasync."""
    durable, not_durable = (results.values(case, placement, subject, "ms") for subject in (DISK, MEMORY))
    sync = results.values("fdatasync", placement, "write 4K, fdatasync", "ms")
    return [(durable[number] - not_durable[number]) / sync[number]
            for number in durable if number in not_durable and sync.get(number)]
