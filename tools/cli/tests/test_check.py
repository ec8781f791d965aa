"""`sendwhy check`: what is uploaded, told and saved, and with which exit code it ends."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from sendwhy_cli.main import app
from typer.testing import CliRunner, Result

PATH = "/v1/workspaces/acme/audience-checks"
GOES: dict[str, Any] = {
    "group": "goes",
    "outcome": "goes",
    "service": None,
    "title": "Would go now",
    "what_to_do": None,
    "count": 2,
    "until_last": None,
    "example": {"line": 1, "detail": ""},
}
FAILS = GOES | {
    "group": "fails.CUSTOMER_IS_NOT_OPTED_IN",
    "outcome": "fails",
    "service": "consent",
    "title": "Customer is not opted in",
    "what_to_do": "Nothing for this message.",
    "count": 1,
    "example": {"line": 3, "field": "to.phone", "detail": "They said [STOP]"},
}
VIEW: dict[str, Any] = {
    "id": "1",
    "state": "running",
    "told": None,
    "lines": 3,
    "judged": 0,
    "going": 2,
    "groups": [GOES, FAILS],
    "credits": {"going": 2, "needed": 2, "balance": 1, "short": 1},
    "people": [{"portfolio": "p", "limit": 1000, "used": 10, "taken": 2, "left": 988}],
    "faults": {},
    "url": "http://log/w/acme/audience/1",
}
DONE = VIEW | {"state": "judged", "judged": 3}
ALL = DONE | {"lines": 2, "groups": [GOES]}


class FakeLog(ThreadingHTTPServer):
    """Answers with the states it was given, and keeps what it got."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.states: list[dict[str, Any]] = [VIEW, DONE]
        self.refuses: tuple[int, str] | None = None
        self.got = b""


class Handler(BaseHTTPRequestHandler):
    server: FakeLog
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        while size := int(self.rfile.readline(), 16):
            self.server.got += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        if self.server.refuses is not None:
            self._answer(self.server.refuses[0], json.dumps({"detail": self.server.refuses[1]}).encode())
        else:
            self._answer(202, json.dumps(self.server.states.pop(0)).encode())

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        if address.path.endswith(".jsonl"):
            self._answer(200, f"lines of {parse_qs(address.query)['group'][0]}\n".encode())
        else:
            self._answer(200, json.dumps(self.server.states.pop(0)).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def fake() -> Iterator[FakeLog]:
    server = FakeLog()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def folder(fake: FakeLog, tmp_path: Path) -> Path:
    write_stack(tmp_path, f"http://127.0.0.1:{fake.server_port}")
    (tmp_path / "list.jsonl").write_bytes(b'{"message_id": "a"}\n')
    return tmp_path


def write_stack(folder: Path, address: str) -> None:
    stack = {"kafka": "127.0.0.1:1", "services": {"message-log": address}, "admin_token": "the-token"}
    (folder / "stack.json").write_text(json.dumps(stack))


def run(folder: Path, *arguments: str, file: str | None = None, stdin: bytes | None = None) -> Result:
    fixed = ["check", file or str(folder / "list.jsonl"), "--state-dir", str(folder), "--workspace", "acme"]
    return CliRunner().invoke(app, [*fixed, *arguments], input=stdin)


def test_the_groups_are_told_and_some_that_would_not_go_exit_1(folder: Path, fake: FakeLog) -> None:
    result = run(folder)
    assert result.exit_code == 1
    assert fake.got == b'{"message_id": "a"}\n'
    for told in ("Customer is not opted in", "line 3: to.phone: They said [STOP]", "1 short", "2 of 3 would go"):
        assert told in result.stdout
    assert f"page: {VIEW['url']}" in result.stderr


def test_what_would_go_may_go_later_and_no_line_ends_in_blanks(folder: Path) -> None:
    shown = run(folder).stdout.splitlines()
    assert [line for line in shown if line.endswith(" ")] == []
    assert [line.split("  ")[-1] for line in shown if "[goes]" in line] == ["[goes]"]
    assert any("Would go, at once or at its own send_at" in line for line in shown)


def test_all_that_would_go_exit_0_and_name_the_next_command(folder: Path, fake: FakeLog) -> None:
    fake.states = [ALL]
    result = run(folder, file="-", stdin=b"{}\n")
    assert (result.exit_code, fake.got) == (0, b"{}\n")
    assert "sendwhy send -" in result.stderr


def test_json_is_the_api_s_and_groups_are_saved(folder: Path) -> None:
    saves = [f"goes={folder / 'go'}", f"fails={folder / 'bad'}", f"waits={folder / 'none'}"]
    result = run(folder, "--json", *(word for one in saves for word in ("--save", one)))
    assert json.loads(result.stdout) == DONE
    assert (folder / "go").read_text() == "lines of goes\n"
    assert (folder / "bad").read_text() == "lines of fails\n"
    # A group that nothing is in gives an empty file, so that what comes next needs no question.
    assert (folder / "none").read_text() == ""


@pytest.mark.parametrize(
    ("arguments", "status", "code", "told"),
    [
        (["--save", "goes"], 0, 2, "write it as goes=FILE"),
        (["--save", "gos=x"], 0, 2, "the outcomes are goes"),
        ([], 413, 2, "in words"),
        ([], 403, 4, "in words"),
        ([], 503, 5, "in words"),
    ],
)
def test_refusals_say_why_and_exit_by_their_kind(
    folder: Path, fake: FakeLog, arguments: list[str], status: int, code: int, told: str
) -> None:
    fake.refuses = (status, "in words")
    result = run(folder, *arguments)
    assert (result.exit_code, told in result.stderr) == (code, True)


def test_a_run_that_broke_off_and_a_service_that_is_away_exit_5(folder: Path, fake: FakeLog) -> None:
    fake.states = [VIEW | {"state": "failed", "told": "It broke off"}]
    result = run(folder)
    assert (result.exit_code, "It broke off" in result.stderr) == (5, True)
    write_stack(folder, "http://127.0.0.1:1")
    result = run(folder)
    assert (result.exit_code, "nothing was sent" in result.stderr) == (5, True)
    assert run(folder, file=str(folder / "missing")).exit_code == 2


HOSTILE = "\x1b[31mred\x07 [bold red]x[/] \u202egnp \x9b2J\r\n2026 forged line"


def test_hostile_texts_stay_text(folder: Path, fake: FakeLog) -> None:
    group = FAILS | {"title": HOSTILE, "what_to_do": HOSTILE, "example": {"line": 3, "detail": HOSTILE}}
    view = DONE | {"groups": [group], "faults": {HOSTILE: HOSTILE}, "url": HOSTILE}
    fake.states = [view, view]
    shown = run(folder).output
    assert not set(shown) & set("\x1b\x07\x9b\u202e\r")
    assert "[bold red]x[/]" in shown
    assert not [line for line in shown.splitlines() if line.startswith("2026 forged")]
    as_json = run(folder, "--json").stdout
    assert not set(as_json) & set("\x1b\x07\x9b\u202e\r")
    assert json.loads(as_json) == view


def test_an_installation_elsewhere_is_asked_and_nothing_is_published_from_here(folder: Path, fake: FakeLog) -> None:
    fake.states = [ALL]
    there = {"SENDWHY_URL": f"http://127.0.0.1:{fake.server_port}", "SENDWHY_TOKEN": "t", "SENDWHY_WORKSPACE": "acme"}
    result = CliRunner().invoke(app, ["check", str(folder / "list.jsonl")], env=there)
    assert (result.exit_code, "sendwhy send" in result.stderr) == (0, False)
