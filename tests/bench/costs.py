"""What a message costs in our own code, counted instead of timed: a guard that no busy machine can trip.

    .venv/bin/python tests/bench/costs.py            prints the costs beside the baseline
    .venv/bin/python tests/bench/costs.py --renew    writes the baseline, tests/bench/costs.json

Each stage on the way of a message gets two batches of 100, on a real PostgreSQL and without Kafka. Of the second are
counted: Python instructions (opcodes) executed in our packages, per message, and SQL statements, per batch. Both depend
on nothing but the code and Python's version. What libraries and servers do for it isn't seen here: `make bench` is.
"""

import argparse
import asyncio
import contextlib
import importlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from local_stack.postgres import Postgres
from rich.console import Console
from rich.table import Table
from way import Crowd, desk

BASELINE = Path(__file__).with_suffix(".json")
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
TOLERANCE = 0.05
BATCH = 100
PACKAGES = ("sendwhy", "consent", "billing", "dispatcher", "webhook_ingest", "message_log")
FOLDERS = tuple(str(Path(importlib.import_module(name).__file__ or "").parent) + "/" for name in PACKAGES)
Costs = dict[str, dict[str, float]]
console = Console(width=120)


class Counter:
    """Opcodes executed in our packages, and statements sent, by stage."""

    def __init__(self) -> None:
        self.costs: Costs = {}
        self._instructions = self._statements = 0

    @contextlib.contextmanager
    def counting(self, stage: str) -> Iterator[None]:
        self._instructions = self._statements = 0
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            yield
        finally:
            sys.settrace(before)
        self.costs[stage] = {"instructions": self._instructions / BATCH, "statements": self._statements}

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(FOLDERS):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._inside

    def _inside(self, frame: FrameType, event: str, arg: Any) -> Any:
        self._instructions += event == "opcode"
        return self._inside

    def on_query(self, _query: Any) -> None:
        self._statements += 1


async def measure(postgres: str | None) -> Costs:
    """Of the second batch: the first one fills caches. In the server at this address, or one of its own."""
    async with contextlib.AsyncExitStack() as stack:
        if postgres is None:
            folder = Path(tempfile.mkdtemp(prefix="sendwhy-costs-"))
            postgres = (await stack.enter_async_context(Postgres(folder))).url
        counter = Counter()
        bench = await stack.enter_async_context(desk(postgres, Crowd(), counter.counting, counter.on_query))
        await bench.set_up(2 * BATCH)
        await bench.go(range(BATCH))
        await bench.go(range(BATCH, 2 * BATCH))
        return counter.costs


def baseline() -> Costs | None:
    """Of this Python; None where nobody has counted with it yet: other versions have other instructions."""
    known: dict[str, Costs] = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    return known.get(VERSION)


def renew(costs: Costs) -> None:
    known = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    BASELINE.write_text(json.dumps(known | {VERSION: costs}, indent=1, sort_keys=True) + "\n")


def dearer(costs: Costs, before: Costs) -> list[str]:
    """What costs more than the baseline has it, in words."""
    found = [f"{name}: is not in the baseline" for name in costs.keys() - before.keys()]
    for name in costs.keys() & before.keys():
        for what, cost in costs[name].items():
            allowed = before[name][what] * (1 + TOLERANCE if what == "instructions" else 1)
            if cost > allowed:
                found.append(f"{name}: {cost:,.0f} {what}, {before[name][what]:,.0f} in the baseline")
    return sorted(found)


def show(costs: Costs, before: Costs | None) -> None:
    table = Table("stage", "instructions/message", "before", "statements/batch", "before", title=f"Python {VERSION}")
    for name, cost in costs.items():
        was = (before or {}).get(name, {})
        cells = [f"{numbers.get(what, 0):,.0f}" for what in ("instructions", "statements") for numbers in (cost, was)]
        table.add_row(name, *cells)
    table.add_section()
    table.add_row("all", f"{sum(cost['instructions'] for cost in costs.values()):,.0f}")
    console.print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--renew", action="store_true", help="write the baseline of this Python")
    parser.add_argument("--json", action="store_true", help="what is dearer than the baseline; null without one")
    parser.add_argument("--postgres", help="the superuser's address of a server to use")
    options = parser.parse_args()
    counted, before = asyncio.run(measure(options.postgres)), baseline()
    if options.json:
        print(json.dumps({"costs": counted, "dearer": None if before is None else dearer(counted, before)}))
    else:
        show(counted, before)
    if options.renew:
        renew(counted)
