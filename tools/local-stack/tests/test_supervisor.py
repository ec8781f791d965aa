"""A whole `sendwhy up` with real Kafka, PostgreSQL and simulator, and stand-ins for the services."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import psutil
import pytest
from local_stack.services import SERVICES, module_of
from local_stack.supervisor import START_DEATHS_MAX

pytestmark = pytest.mark.stack
PATIENCE_SECONDS = 180
UP = """
import asyncio, sys
from pathlib import Path
from local_stack.errors import StackError
from local_stack.progress import Progress
from local_stack.supervisor import Options, up
try:
    sys.exit(asyncio.run(up(Options(Path(sys.argv[1]), {"billing": 2}), Progress())))
except StackError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


class Run:
    """One `up` after the other on one directory."""

    def __init__(self, folder: Path, fakes: Path) -> None:
        self.folder = folder
        self.fakes = fakes
        self.notes = fakes / "notes"
        self._env = os.environ | {
            "PYTHONPATH": str(fakes),
            "FAKE_NOTES": str(self.notes),
            "SENDWHY_UNKNOWN_OUTCOME_SECONDS": "7",
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> dict[str, Any]:
        self.process = subprocess.Popen([sys.executable, "-c", UP, self.folder], env=self._env)
        self.wait_for((self.folder / "stack.json").exists)
        return self.stack()

    def again(self) -> subprocess.CompletedProcess[str]:
        arguments = [sys.executable, "-c", UP, str(self.folder)]
        return subprocess.run(arguments, env=self._env, capture_output=True, text=True, timeout=180, check=False)

    def stack(self) -> dict[str, Any]:
        stack: dict[str, Any] = json.loads((self.folder / "stack.json").read_text())
        return stack

    def wait_for(self, answer: Callable[[], bool]) -> None:
        assert self.process is not None
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not answer():
            assert self.process.poll() is None, "`up` has ended"
            assert time.monotonic() < deadline, "waited too long"
            time.sleep(0.05)

    def end(self, number: signal.Signals) -> int:
        """Sends the signal and waits until `up` and all that it started are gone; returns the exit code."""
        assert self.process is not None
        descendants = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE_SECONDS)
        self.process = None
        assert not psutil.wait_procs(descendants, timeout=15)[1]
        return code

    def note(self, name: str) -> Any:
        return json.loads((self.notes / name).read_text())

    def requests(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.notes / "requests.jsonl").read_text().splitlines()]


@contextmanager
def runs() -> Iterator[Run]:
    folder = Path(tempfile.mkdtemp(prefix="sendwhy-test-"))
    fakes = folder / "fakes"
    for module in map(module_of, SERVICES):
        (fakes / module).mkdir(parents=True)
        (fakes / module / "__init__.py").touch()
        shutil.copyfile(Path(__file__).parent / "fake_service.py", fakes / module / "__main__.py")
    (fakes / "notes").mkdir()
    run = Run(folder / "state", fakes)
    try:
        yield run
    finally:
        if run.process is not None:
            run.end(signal.SIGKILL)
        shutil.rmtree(folder)


@pytest.fixture
def run() -> Iterator[Run]:
    with runs() as run:
        yield run


@pytest.fixture(scope="module")
def running() -> Iterator[Run]:
    """One that has been started, for tests that leave it as they found it."""
    with runs() as run:
        run.start()
        yield run


async def test_up_tells_where_everything_is_and_leaves_nothing(run: Run) -> None:
    stack = run.start()
    assert set(stack) == {
        *("kafka", "postgres", "meta", "services", "replicas", "pids"),
        *("admin_token", "meta_app_id", "meta_app_secret", "meta_verify_token", "shopify_secret"),
    }
    assert set(stack["services"]) == set(SERVICES)
    assert {service: urls[0] for service, urls in stack["replicas"].items()} == stack["services"]
    assert len(set(stack["replicas"]["billing"])) == 2
    assert {name: len(pids) for name, pids in stack["pids"].items()} == {
        **dict.fromkeys(["kafka", "postgres", "meta", *SERVICES], 1),
        "billing": 2,
    }
    assert all(psutil.pid_exists(pid) for pids in stack["pids"].values() for pid in pids)
    assert stat.S_IMODE((run.folder / "stack.json").stat().st_mode) == 0o600
    connection = await asyncpg.connect(stack["postgres"])
    assert await connection.fetchval("select 1") == 1
    await connection.close()
    assert run.end(signal.SIGTERM) == 0
    assert not (run.folder / "stack.json").exists()


def test_services_get_their_settings_and_the_demo_workspace_is_made(running: Run) -> None:
    run, stack = running, running.stack()
    first, second = run.note("billing-serve.json"), run.note("billing-2-serve.json")
    assert first["SENDWHY_KAFKA_BOOTSTRAP_SERVERS"] == stack["kafka"]
    assert first["SENDWHY_META_GRAPH_URL"] == stack["meta"]
    assert first["SENDWHY_UNKNOWN_OUTCOME_SECONDS"] == "7"
    assert stack["services"]["billing"] == f"http://127.0.0.1:{first['SENDWHY_HTTP_PORT']}"
    different = {name for name in first if first[name] != second[name]}
    assert different == {"SENDWHY_HTTP_PORT", "SENDWHY_REPLICA"}
    assert run.note("message-log-serve.json")["SENDWHY_WEBHOOK_INGEST_URL"] == stack["services"]["webhook-ingest"]
    assert {note["path"]: note["key"] for note in run.requests()} == {
        "/v1/workspaces/demo/senders/100000000000001": "demo-sender",
        "/v1/workspaces/demo/top-ups": "demo-credits",
    }
    sender = next(note["body"] for note in run.requests() if "senders" in note["path"])
    number = httpx.get(
        f"{stack['meta']}/v23.0/100000000000001",
        headers={"Authorization": f"Bearer {sender['access_token']}"},
        trust_env=False,
    )
    assert number.json()["id"] == "100000000000001"


@pytest.mark.parametrize("name", ["kafka", "postgres", "meta", "billing"])
def test_what_dies_is_started_again(name: str, running: Run) -> None:
    run, before = running, running.stack()
    os.kill(before["pids"][name][0], signal.SIGKILL)
    run.wait_for(lambda: bool(run.stack()["pids"][name][0] != before["pids"][name][0]))
    after = run.stack()
    assert {**after, "pids": None} == {**before, "pids": None}
    assert {key: pids for key, pids in after["pids"].items() if key != name} == {
        key: pids for key, pids in before["pids"].items() if key != name
    }


def test_a_second_up_on_a_directory_is_refused_and_a_killed_one_can_be_followed(run: Run) -> None:
    first = run.start()
    refused = run.again()
    assert refused.returncode == 2
    assert "in use by process" in refused.stderr
    run.end(signal.SIGKILL)
    assert run.start() == first | {"pids": run.stack()["pids"]}


@pytest.mark.parametrize(
    ("last_words", "code", "told", "tries"),
    [
        ("print('sendwhy: SENDWHY_X is missing'); raise SystemExit(2)", 2, "dispatcher can't start: SENDWHY_X is", 1),
        ("raise SystemExit('SENDWHY_X is missing')", 1, "SENDWHY_X is missing", 1 + START_DEATHS_MAX),
    ],
)
def test_a_service_that_cannot_start_is_told_with_its_last_words(
    run: Run, last_words: str, code: int, told: str, tries: int
) -> None:
    life = run.notes / "lives"
    (run.fakes / "dispatcher" / "__main__.py").write_text(f"open({str(life)!r}, 'a').write('x')\n{last_words}")
    refused = run.again()
    assert refused.returncode == code
    assert told in refused.stderr
    assert not (run.folder / "stack.json").exists()
    assert life.read_text() == "x" * tries


def test_a_service_that_dies_in_its_start_is_started_again(run: Run) -> None:
    program = run.fakes / "consent" / "__main__.py"
    born = run.notes / "born"
    first = f"import os, pathlib\nif not os.path.exists({str(born)!r}):\n"
    first += f"    pathlib.Path({str(born)!r}).touch()\n    raise SystemExit(3)\n"
    program.write_text(first + program.read_text())
    assert "consent" in run.start()["pids"]
    assert born.exists()
