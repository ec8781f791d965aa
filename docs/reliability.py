"""The tables of reliability.md and planted-bugs.md, from what tests/faults/total.py and prove.py have written beside
them."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

PAGE = Path(__file__).with_suffix(".md")
TOTAL = Path(__file__).with_suffix(".json")
BUGS_PAGE = PAGE.with_name("planted-bugs.md")
PROOFS = BUGS_PAGE.with_suffix(".json")
MARK = re.compile(r"(?<=<!-- table: )(\w+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)
FIGURE: TypeAdapter[Any] = TypeAdapter(Any)
Told = Mapping[str, Any]


def page() -> str:
    """The page with its tables made anew; the text between them is as somebody has written it."""
    total = FIGURE.validate_json(TOTAL.read_bytes())
    return MARK.sub(lambda mark: f"{mark[1]}{mark[2]}{TABLES[mark[1]](total)}", PAGE.read_text())


def bugs_page() -> str:
    table = _bugs(FIGURE.validate_json(PROOFS.read_bytes()))
    return MARK.sub(lambda mark: f"{mark[1]}{mark[2]}{table}", BUGS_PAGE.read_text())


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 1) -> str:
    """`texts`: so many columns, the first ones, aren't numbers."""
    lines = [head, ["---"] * texts + ["--:"] * (len(head) - texts), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _sums(total: Told) -> str:
    names = {
        "runs_counted": "runs",
        "faults_injected": "faults injected",
        "messages": "messages requested",
        "calls": "calls that reached Meta's stand-in",
        "webhooks": "different webhooks received",
        "planted": "bad records planted",
        "unknown_outcomes": "outcomes told as unknown",
        "stops": "STOPs",
        "violations": "violations",
    }
    rows = [[name, f"{total[key]:,}"] for key, name in names.items()]
    late = total["after_stop"]
    rows.append(["STOPs that no marketing call followed", f"{late['none']:,}"])
    told = "{p99_seconds:.1f} s / {most_seconds:.1f} s".format(**late)
    rows.append(["from a STOP's 200 to the last marketing call: p99 / most, faults included", told])
    rows.insert(1, ["hours", f"{total['seconds'] / 3600:.1f}"])
    return _rows(["", ""], rows)


def _scenarios(total: Told) -> str:
    def seconds(value: float | None) -> str:
        return "" if value is None else f"{value:,.1f}"

    rows = [
        [name, f"{one['faults']:,}", seconds(one["recovered_median_seconds"]), seconds(one["recovered_most_seconds"])]
        for name, one in total["scenarios"].items()
    ]
    return _rows(["fault", "times", "recovered after: median, s", "most, s"], rows)


def _invariants(total: Told) -> str:
    broken = dict.fromkeys(total["looked_at"], 0)
    for run in total["runs"]:
        for name, count in run["violations"].items():
            broken[name] += count
    rows = [
        [f"{name} {total['titles'][name]}", f"{looks:,}", f"{broken[name]:,}"]
        for name, looks in total["looked_at"].items()
    ]
    return _rows(["invariant", "looked at", "violations"], rows)


def _runs(total: Told) -> str:
    def rows() -> Iterator[list[str]]:
        for run in total["runs"]:
            broken = ", ".join(f"{name}: {count}" for name, count in run["violations"].items()) or "none"
            missing = [f"{run['not_injected']} not injected"] if run["not_injected"] else []
            faults = ", ".join([f"{sum(run['faults'].values())}", *missing])
            numbers = [f"{run['seconds'] / 60:.0f}", faults, f"{run['messages']:,}", f"{run['calls']:,}"]
            yield [run["began_at"], str(run["seed"]), run["commit"], broken, *numbers]

    head = ["began", "seed", "commit", "violations", "minutes", "faults", "messages", "calls"]
    return _rows(head, rows(), texts=4)


def _commands(total: Told) -> str:
    lines = [f"{run['commit'][:12]}  {_bare(run['command'])}\n" for run in total["runs"]]
    return f"```\n{''.join(lines)}```\n"


def _bare(command: str) -> str:
    """Without where that run was written: it is of that machine."""
    return re.sub(r" --folder \S+", "", command.rpartition("tests/faults/")[2])


def _bugs(proofs: Sequence[Told]) -> str:
    def rows() -> Iterator[list[str]]:
        for one in proofs:
            found = ", ".join(f"{name} ({count:,})" for name, count in one["found"].items()) or "**not found**"
            other = ", ".join(f"{name} ({count:,})" for name, count in one["other"].items())
            run = f"{one['began_at']}, seed {one['seed']}, {one['commit']}"
            beside = f"; beside {', '.join(one['beside'])}" if one["beside"] else ""
            first = one["first"].replace("|", "\\|")
            yield [f"**{one['bug']}**: {one['what']}", found, first, other, f"{one['runs']}: {run}{beside}"]

    head = ["bug", "found by (violations)", "the first", "also broken", "runs, and the last"]
    return _rows(head, rows(), texts=len(head))


TABLES: Mapping[str, Callable[[Told], str]] = {
    "sums": _sums,
    "scenarios": _scenarios,
    "invariants": _invariants,
    "runs": _runs,
    "commands": _commands,
}
