"""What everything takes while nothing is sent, by how many numbers are registered: `make bench ARGS=idle`.

Each number belongs to the same account of a lean Meta, is synced, and has no message waiting. Flat is good.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from processes import Watch, best_loop_ms
from report import console
from rich.table import Table
from system import Shape, running

COUNTS = (1, 100, 1_000)
# Drivers rest half a minute at a time: one such time passes before, and several are measured.
SETTLE_SECONDS, MEASURED_SECONDS = 35, 90


@dataclass(frozen=True)
class Idle:
    """CPU ms a second by process, with so many numbers; `loop`: ms of `processes.best_loop_ms` then."""

    numbers: int
    cpu: dict[str, float]
    loop: float


async def idle() -> list[Idle]:
    found = []
    for count in COUNTS:
        async with running(Shape(contacts=1, senders=count)) as system:
            await asyncio.sleep(SETTLE_SECONDS)
            watch = Watch(system.pids)
            watch.start()
            await asyncio.sleep(MEASURED_SECONDS)
            cpu = {name: seconds / MEASURED_SECONDS * 1e3 for name, seconds in watch.stop().items()}
        found.append(Idle(count, cpu, best_loop_ms()))
        console.print(f"{count:,} numbers: {sum(cpu.values()):,.0f} ms of CPU a second")
    return found


def show(found: Sequence[Idle]) -> None:
    table = Table("process", *(f"{one.numbers:,}" for one in found), title="CPU ms a second, idle, by numbers")
    for name in found[0].cpu:
        table.add_row(name, *(f"{one.cpu[name]:,.0f}" for one in found))
    table.add_section()
    table.add_row("all", *(f"{sum(one.cpu.values()):,.0f}" for one in found))
    table.add_row("ms a loop", *(f"{one.loop:.0f}" for one in found))
    console.print(table)


def told(found: Sequence[Idle]) -> list[dict[str, Any]]:
    return [asdict(one) for one in found]
