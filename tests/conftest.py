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
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]  # no py.typed

READY_SECONDS = 240
# What a killed dispatcher leaves in flight is told as unknown after this; else after 10 minutes.
SETTINGS = {"SENDWHY_UNKNOWN_OUTCOME_SECONDS": "30"}
STOP_SECONDS = 60
# Begun first: at the end no process waits for another that has minutes to go.
LONGEST = ("tests/faults/test_faults.py", "tests/e2e", "services/message-log/tests", "tests/e2e/test_replicas.py")
# Folders whose files one process runs, since they share what takes long to start: a stack, a message log.
TOGETHER = {"tests/e2e", "services/message-log/tests"}
APART = {f"tests/e2e/test_{name}.py" for name in ("guides", "recovery", "replicas", "upgrade")}
SERVICES = ["consent", "billing", "dispatcher", "webhook-ingest", "message-log"]


class ByWhatTheyShare(LoadFileScheduling):  # type: ignore[misc]
    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)


def unit_of(nodeid: str) -> str:
    """What one process runs as a whole: a file, or a folder's files."""
    file = nodeid.partition("::")[0]
    folder = file.rpartition("/")[0]
    return folder if folder in TOGETHER and file not in APART else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByWhatTheyShare:
    return ByWhatTheyShare(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {unit: place for place, unit in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(unit_of(item.nodeid), len(places)))


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
