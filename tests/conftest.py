"""The whole stack, once a session: `sendwhy up` as a person would start it, or a running one (SENDWHY_TEST_STACK)."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

READY_SECONDS = 240
# What a killed dispatcher leaves in flight is told as unknown after this; else after 10 minutes.
SETTINGS = {"SENDWHY_UNKNOWN_OUTCOME_SECONDS": "30"}
STOP_SECONDS = 60
# Begun first: at the end no process waits for another that has minutes to go.
LONGEST = "test_faults.py"
SERVICES = ["consent", "billing", "dispatcher", "webhook-ingest", "message-log"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name != LONGEST)


@pytest.fixture(scope="session")
def stack_file() -> Iterator[Path]:
    """The stack.json of a running stack."""
    if running := os.environ.get("SENDWHY_TEST_STACK"):
        yield Path(running)
        return
    with _running(SETTINGS) as stack_file:
        yield stack_file


@pytest.fixture
def doubled_stack_file() -> Iterator[Path]:
    """The stack.json of a stack of its own with two of every service, before which balancers may stand; `up.log`
    beside its folder."""
    two_of_each = [part for service in SERVICES for part in ("--replicas", f"{service}=2")]
    # Longer than in production: on a machine that is busy with other tests a balancer learns late of an end.
    with _running({"SENDWHY_DRAIN_SECONDS": "6"}, "--empty", *two_of_each) as stack_file:
        yield stack_file


@contextmanager
def _running(settings: dict[str, str], *options: str) -> Iterator[Path]:
    # Not pytest's own folder: PostgreSQL's user must get in, and keep its socket's path short.
    folder = Path(tempfile.mkdtemp(prefix="sendwhy-stack-"))
    log = folder / "up.log"
    command = [str(Path(sys.executable).parent / "sendwhy"), "up", "--state-dir", str(folder / "state"), *options]
    with log.open("wb") as output:
        up = subprocess.Popen(command, stdout=output, stderr=output, env=settings | os.environ, start_new_session=True)
    try:
        yield _ready(folder / "state" / "stack.json", up, log)
    finally:
        up.send_signal(signal.SIGTERM)
        up.wait(STOP_SECONDS)
        shutil.rmtree(folder, ignore_errors=True)


def _ready(stack_file: Path, up: "subprocess.Popen[bytes]", log: Path) -> Path:
    deadline = time.monotonic() + READY_SECONDS
    while not stack_file.exists():
        assert up.poll() is None, f"sendwhy up ended:\n{log.read_text()}"
        assert time.monotonic() < deadline, f"the stack is not ready:\n{log.read_text()}"
        time.sleep(0.2)
    return stack_file


@pytest.fixture(scope="session")
def stack(stack_file: Path) -> Any:
    """The parsed stack.json; after a kill, read `stack_file` again."""
    return json.loads(stack_file.read_text())


def _tool(name: str) -> Path:
    found = shutil.which(name)
    if found is not None:
        return Path(found)
    message = f"{name} is not installed: apt-get install prometheus"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def prometheus() -> Path:
    return _tool("prometheus")


@pytest.fixture(scope="session")
def promtool() -> Path:
    return _tool("promtool")
