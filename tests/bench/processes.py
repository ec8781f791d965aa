"""CPU seconds and memory of processes with all that they have started, by name."""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

Seconds = dict[str, float]
# The kernel walks all pages for each look: at 2 s that is a twentieth of a core.
WATCH_SECONDS = 5.0
# It has started all others, who stand for themselves.
SUPERVISOR = "sendwhy up"


def cpu_of(process: psutil.Process, *, alone: bool = False) -> float:
    """User and system seconds of the process, its children that live, and those that have ended."""
    total = 0.0
    for one in _family(process, alone=alone):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            total += times.user + times.system
            if not alone:
                total += times.children_user + times.children_system
    return total


def best_loop_ms() -> float:
    """The best of some `loop_ms`: of the machine, and not of what else runs at that moment."""
    return min(loop_ms() for _ in range(7))


def loop_ms() -> float:
    """CPU ms of a fixed piece of Python. Interpreters of one version differ by a third, by how they were built; shared
    machines by a factor of three, from one minute to the next."""
    before = time.process_time()
    total, seen = 0, {}
    for number in range(200_000):
        seen[number % 1_000] = total
        total += len(str(number))
    return (time.process_time() - before) * 1_000


def bytes_of(process: psutil.Process, *, alone: bool = False) -> int:
    """Proportional set size: memory that is shared counts once, by parts, as PostgreSQL's buffers."""
    total = 0
    for one in _family(process, alone=alone):
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            lines = Path(f"/proc/{one.pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def _family(process: psutil.Process, *, alone: bool) -> list[psutil.Process]:
    try:
        return [process, *([] if alone else process.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


class Watch:
    """The CPU that each process took since `start`, and its memory over time: (seconds since then, MB by name)."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self.memory: list[tuple[float, dict[str, float]]] = []
        self._started = 0.0
        self._before: Seconds = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._started, self._before = time.monotonic(), self._cpu()
        self._task = asyncio.create_task(self._look())

    async def _look(self) -> None:
        while True:
            sizes = {name: bytes_of(one, alone=name == SUPERVISOR) / 2**20 for name, one in self._processes.items()}
            self.memory.append((time.monotonic() - self._started, sizes))
            await asyncio.sleep(WATCH_SECONDS)

    def _cpu(self) -> Seconds:
        return {name: cpu_of(one, alone=name == SUPERVISOR) for name, one in self._processes.items()}

    def stop(self) -> Seconds:
        assert self._task is not None
        self._task.cancel()
        return {name: seconds - self._before[name] for name, seconds in self._cpu().items()}
