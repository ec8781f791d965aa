"""Nothing outlives a starter that was killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

GONE_SECONDS = 15

# One ends when asked, one ignores all that can be ignored, one has a child of its own.
DUMMIES = """
import os, sys, time
from pathlib import Path
from local_stack.janitor import Janitor
from local_stack.process import Command, Process

ignoring = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 3, 15)]; print('set', flush=True)"
parent = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'])"
sources = ["", ignoring, parent]
logs, janitor = Path(sys.argv[1]), Janitor()
for number, source in enumerate(sources):
    Process(Command(f"dummy{number}", [sys.executable, "-c", source + "\\nimport time; time.sleep(99)"]), logs, janitor)
while not (logs / "dummy1.log").read_text():
    time.sleep(0.01)
print("started", flush=True)
time.sleep(99)
"""

SERVERS = """
import asyncio, sys
from pathlib import Path
from local_stack.kafka import Kafka
from local_stack.postgres import Postgres

async def main():
    async with Kafka(Path(sys.argv[1])), Postgres(Path(sys.argv[1])):
        print("started", flush=True)
        await asyncio.sleep(99)

asyncio.run(main())
"""


def kill_and_wait_for_descendants(script: str, folder: Path, at_least: int) -> None:
    with subprocess.Popen([sys.executable, "-c", script, folder], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == "started\n"
        descendants = psutil.Process(starter.pid).children(recursive=True)
        assert len(descendants) >= at_least
        starter.kill()
    gone, alive = psutil.wait_procs(descendants, timeout=GONE_SECONDS)
    assert not alive, f"{len(gone)} are gone"


def test_dummies_end_with_a_killed_starter(tmp_path: Path) -> None:
    kill_and_wait_for_descendants(DUMMIES, tmp_path, at_least=4)


@pytest.mark.kafka
@pytest.mark.postgres
def test_kafka_and_postgres_end_with_a_killed_starter(state_dir: Path) -> None:
    kill_and_wait_for_descendants(SERVERS, state_dir, at_least=8)
