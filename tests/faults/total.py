"""The running total of all runs: docs/reliability.json, to which finished runs are added.

    .venv/bin/python tests/faults/total.py .state/faults/*/

A run is known by its seed and the moment it began: added again, it replaces itself. Those with violations count too.
"""

import argparse
import json
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from judge import RULES
from rich.console import Console
from rich.table import Table

Json = dict[str, Any]
SUMMED = ("messages", "calls", "webhooks", "planted", "unknown_outcomes", "stops", "seconds")
TOTAL = Path(__file__).parents[2] / "docs" / "reliability.json"


def summary(result: Json) -> Json:
    """What stays of a run's result.json."""
    verdict = result["verdict"]
    injected = [fault for fault in result["faults"] if fault["error"] is None]
    recoveries: dict[str, list[float]] = defaultdict(list)
    for fault in injected:
        if fault["recovered_seconds"] is not None:
            recoveries[fault["scenario"]].append(round(fault["recovered_seconds"], 1))
    kept = ("seed", "commit", "command", "machine", "began_at", "seconds", "rate", "replicas")
    facts = verdict["facts"]
    return {name: result[name] for name in kept} | {
        "faults": dict(sorted(Counter(fault["scenario"] for fault in injected).items())),
        "not_injected": len(result["faults"]) - len(injected),
        "skipped": result["skipped"],
        "messages": facts["messages"],
        "calls": facts["calls"],
        "webhooks": facts["webhooks"],
        "planted": facts["planted"],
        "unknown_outcomes": verdict["invariants"]["I15"]["counts"].get("unknown outcomes", 0),
        "stops": verdict["invariants"]["I12"]["counts"].get("STOPs", 0),
        "outcomes": facts["outcomes"],
        "late_after_stop_seconds": [seconds for seconds in facts["stop_seconds"] if seconds],
        "violations": {
            name: len(one["violations"]) for name, one in verdict["invariants"].items() if one["violations"]
        },
        "looked_at": {name: sum(one["counts"].values()) for name, one in verdict["invariants"].items()},
        "recovered_seconds": dict(sorted(recoveries.items())),
    }


def add(total: Json, runs: Iterable[Json]) -> Json:
    by_name = {(run["began_at"], run["seed"]): run for run in [*total.get("runs", []), *map(summary, runs)]}
    kept = [by_name[name] for name in sorted(by_name)]
    faults: Counter[str] = Counter()
    looked_at: Counter[str] = Counter()
    recoveries: dict[str, list[float]] = defaultdict(list)
    for run in kept:
        faults.update(run["faults"])
        looked_at.update(run["looked_at"])
        for name, took in run["recovered_seconds"].items():
            recoveries[name] += took
    return {
        "runs_counted": len(kept),
        "faults_injected": faults.total(),
        "violations": sum(sum(run["violations"].values()) for run in kept),
        **{name: sum(run[name] for run in kept) for name in SUMMED},
        "scenarios": {name: {"faults": count, **_times(recoveries[name])} for name, count in sorted(faults.items())},
        "after_stop": _after_stop(kept),
        "titles": {name: title for name, title, *_ in RULES},
        "looked_at": dict(looked_at),
        "runs": kept,
    }


def _after_stop(runs: Iterable[Json]) -> Json:
    """From a STOP's 200 to the last marketing call to that person: how many had none, and how late it was else."""
    runs = list(runs)
    late = sorted(seconds for run in runs for seconds in run["late_after_stop_seconds"])
    stops = sum(run["stops"] for run in runs)
    every = [0.0] * (stops - len(late)) + late
    return {"none": stops - len(late), "p99_seconds": every[int(0.99 * len(every))], "most_seconds": every[-1]}


def _times(took: list[float]) -> Json:
    """Of the recoveries of a scenario, from the end of the fault to the usual lag."""
    if not took:
        return {"recovered_median_seconds": None, "recovered_most_seconds": None}
    return {"recovered_median_seconds": round(statistics.median(took), 1), "recovered_most_seconds": max(took)}


def show(total: Json, console: Console) -> None:
    table = Table("scenario", "faults", "recovered: median", "most")
    for name, one in total["scenarios"].items():
        median, most = one["recovered_median_seconds"], one["recovered_most_seconds"]
        table.add_row(name, f"{one['faults']:,}", f"{median} s", f"{most} s")
    console.print(table)
    console.print(
        f"{total['runs_counted']} runs: {total['faults_injected']:,} faults, {total['messages']:,} messages,"
        f" {total['webhooks']:,} webhooks, {total['violations']} violations"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folders", type=Path, nargs="*", help="folders of runs; those without a result.json are left out"
    )
    parser.add_argument("--total", type=Path, default=TOTAL)
    told = parser.parse_args()
    known: Json = json.loads(told.total.read_bytes()) if told.total.exists() else {}
    results = [path for path in (folder / "result.json" for folder in told.folders) if path.exists()]
    total = add(known, (json.loads(path.read_bytes()) for path in results))
    told.total.write_text(json.dumps(total, indent=1) + "\n")
    show(total, Console(highlight=False, soft_wrap=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
