"""`sendwhy import`: what is uploaded, told, saved, and with which exit code it ends."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from sendwhy_cli.main import app
from typer.testing import CliRunner, Result

PATH = "/v1/workspaces/acme/contacts/import"
REFUSED = b"row,field,why,contact_id\r\n3,phone,too long,c-2\r\n"
VIEW: dict[str, Any] = {
    "import_id": "11111111-1111-1111-1111-111111111111",
    "state": "running",
    "waiting": False,
    "dry_run": False,
    "read": 0,
    "imported": 0,
    "unchanged": 0,
    "refused": [],
    "refused_count": 0,
    "repeated": [],
    "repeated_count": 0,
    "encoding": "utf-8",
    "separator": ";",
    "mapping": {"contact_id": "id", "phone": "Handy"},
    "ignored": ["E-Mail"],
    "bytes_read": 0,
    "bytes_total": 100,
    "rows_total": 3,
    "fault": None,
    "result_file": f"{PATH}s/1/refused.csv",
}
DONE = VIEW | {"state": "done", "read": 3, "imported": 3, "unchanged": 1, "bytes_read": 100}
SOME = DONE | {
    "imported": 2,
    "refused_count": 1,
    "refused": [{"row": 3, "field": "phone", "detail": "too long"}],
    "repeated_count": 1,
    "repeated": [{"row": 4, "earlier_row": 2}],
}


class FakeConsent(ThreadingHTTPServer):
    """Answers with what it was given, and keeps what it got."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.states: list[dict[str, Any]] = []
        self.refuses: tuple[int, dict[str, Any]] | None = None
        self.got: list[tuple[str, dict[str, str], str | None, bytes]] = []


class Handler(BaseHTTPRequestHandler):
    server: FakeConsent

    def do_POST(self) -> None:
        address = urlsplit(self.path)
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append(
            (address.path, dict(parse_qsl(address.query, keep_blank_values=True)), self.headers["prefer"], body)
        )
        if self.headers["authorization"] != "Bearer the-token":
            self._answer(403, b'{"detail": "This needs the role operator."}')
        elif self.server.refuses is not None:
            self._answer(self.server.refuses[0], json.dumps(self.server.refuses[1]).encode())
        elif "dry_run" in address.query:
            self._answer(200, json.dumps(SOME | {"dry_run": True}).encode())
        else:
            self._answer(202, json.dumps(VIEW).encode())

    def do_GET(self) -> None:
        body = REFUSED if self.path.endswith(".csv") else json.dumps(self.server.states.pop(0)).encode()
        self._answer(200, body)

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("location", f"{PATH}s/1")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def fake() -> Iterator[FakeConsent]:
    server = FakeConsent()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def folder(fake: FakeConsent, tmp_path: Path) -> Path:
    write_stack(tmp_path, f"http://127.0.0.1:{fake.server_port}")
    (tmp_path / "list.csv").write_text("id;Handy\nc-1;+52\n")
    return tmp_path


def write_stack(folder: Path, consent: str, token: str = "the-token") -> None:
    stack = {"kafka": "127.0.0.1:1", "services": {"consent": consent}, "admin_token": token}
    (folder / "stack.json").write_text(json.dumps(stack))


def run(folder: Path, *arguments: str) -> Result:
    fixed = ["import", str(folder / "list.csv"), "--state-dir", str(folder), "--workspace", "acme"]
    return CliRunner().invoke(app, [*fixed, *arguments])


def test_a_whole_list(fake: FakeConsent, folder: Path) -> None:
    fake.states = [VIEW | {"waiting": True}, VIEW | {"read": 2}, DONE]
    answer = run(folder, "--map", "phone=Mobile = private", "--map", "name=")
    assert answer.exit_code == 0, answer.output
    columns = {"map.phone": "Mobile = private", "map.name": ""}
    assert fake.got == [(PATH, columns, "respond-async", b"id;Handy\nc-1;+52\n")]
    lines = answer.stdout.splitlines()
    assert lines[0] == "3 of 3 rows imported (1 say what already stood), 0 refused"
    assert lines[1] == "read as utf-8, separated by semicolons: contact_id = 'id', phone = 'Handy'"
    assert lines[2] == "ignored columns: 'E-Mail'"


def test_refused_rows_are_shown_saved_and_a_bad_answer(fake: FakeConsent, folder: Path) -> None:
    fake.states = [SOME]
    answer = run(folder, "--refused", str(folder / "refused.csv"))
    assert answer.exit_code == 1
    assert "row 3: phone: too long" in answer.stdout
    assert "row 4 repeats row 2" in answer.stdout
    assert (folder / "refused.csv").read_bytes() == REFUSED
    fake.states = [SOME]
    as_json = run(folder, "--json")
    assert (as_json.exit_code, json.loads(as_json.stdout)) == (1, SOME)


def test_a_preview(fake: FakeConsent, folder: Path) -> None:
    answer = run(folder, "--dry-run")
    assert answer.exit_code == 1
    assert fake.got[0][1] == {"dry_run": "true"}
    assert answer.stdout.startswith("2 of 3 rows would be imported")
    assert run(folder, "--dry-run", "--refused", "x.csv").exit_code == 2


def test_an_import_that_failed(fake: FakeConsent, folder: Path) -> None:
    fake.states = [DONE | {"state": "failed", "fault": "interrupted: send the file again"}]
    answer = run(folder)
    assert answer.exit_code == 1
    assert "failed: interrupted" in answer.stdout


@pytest.mark.parametrize(
    ("status", "problem", "code", "word"),
    [
        (422, {"detail": "Several columns.", "errors": [{"field": "map.phone", "detail": "name it"}]}, 2, "map.phone"),
        (413, {"detail": "The body is longer than 9 bytes."}, 2, "longer than 9"),
        (503, {"detail": "32 imports are under way here"}, 5, "32 imports"),
        (500, [], 5, "consent answered 500"),
    ],
)
def test_what_consent_refuses_is_told(
    fake: FakeConsent, folder: Path, status: int, problem: Any, code: int, word: str
) -> None:
    fake.refuses = (status, problem)
    answer = run(folder)
    assert (answer.exit_code, answer.stdout) == (code, "")
    assert word in answer.stderr


def test_what_cannot_be_done_at_all(folder: Path) -> None:
    assert run(folder, "--map", "phone").exit_code == 2
    write_stack(folder, "http://127.0.0.1:1")
    unreachable = run(folder)
    assert unreachable.exit_code == 5
    assert "doesn't answer" in unreachable.stderr
    (folder / "list.csv").unlink()
    missing = run(folder)
    assert missing.exit_code == 2
    assert "No such file" in missing.stderr


def test_a_wrong_token_is_not_allowed(fake: FakeConsent, folder: Path) -> None:
    write_stack(folder, f"http://127.0.0.1:{fake.server_port}", token="wrong")
    assert run(folder).exit_code == 4
