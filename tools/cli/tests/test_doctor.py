"""`sendwhy doctor` and `sendwhy test-message` against a message-log that is told what to answer."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from sendwhy_cli.main import app
from typer.testing import CliRunner, Result

FINE: dict[str, Any] = {
    "id": "kafka",
    "area": "installation",
    "title": "Kafka answers",
    "about": None,
    "result": "ok",
    "seen": "1 broker",
    "remedy": None,
    "command": None,
}
LATE = FINE | {"id": "lag:consent", "about": "consent", "result": "warning", "seen": "9,000 wait", "remedy": "Wait."}
BROKEN = FINE | {
    "id": "t:1",
    "result": "failed",
    "seen": "code 190",
    "remedy": "PUT it again.",
    "command": "curl x",
}


def stage(place: str, state: str, **more: Any) -> dict[str, Any]:
    none: dict[str, Any] = {"at": None, "seconds": None, "by_meta": False, "note": None}
    return {"place": place, "title": place.capitalize(), "state": state} | none | more


STARTED = stage("requested", "done", at="2026-11-26T12:00:00Z")
CONSENTED = stage("consent", "done", at="2026-11-26T12:00:00.250Z", seconds=0.25)


def journey(status: str, *stages: dict[str, Any], ended: bool = True, **more: Any) -> dict[str, Any]:
    none = dict.fromkeys(("reason", "detail", "next_step", "hang"))
    return {"status": status, "ended": ended, "stages": list(stages), "url": "http://log/m"} | none | more


HANG = {"place": "consent", "seconds": 11.0, "detail": "No progress for 11 s.", "remedy": "Look at consent."}
READ = journey("read", STARTED, CONSENTED, stage("read", "done", at="2026-11-26T12:00:01Z", seconds=-1, by_meta=True))
FAILED = journey(
    "failed",
    STARTED,
    stage("consent", "failed", note="Not opted in"),
    stage("billing", "skipped"),
    reason="Not opted in",
    detail="since Tuesday",
    next_step="Nothing.",
)
GOING = journey("sending", STARTED, stage("consent", "here"), ended=False, hang=HANG)
TEMPLATES = [("hello_world", "en_US"), ("sale", "en_US"), ("sale", "es_MX")]


class Told:
    """What the services answer: the journeys one after the other, the last one for ever."""

    checks: tuple[dict[str, Any], ...] = (FINE,)
    journeys: tuple[dict[str, Any], ...] = (READ,)
    refusal: tuple[int, dict[str, Any]] | None = None

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.looked = 0

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        if self.refusal is not None and (body or path.endswith("/diagnostics")):
            return self.refusal
        if body:
            self.sent.append(json.loads(body))
            return 202, {"message_id": self.sent[-1]["message_id"], "url": "http://log/m"}
        if path == "/livez":
            return 200, {}
        if path.endswith("/diagnostics"):
            return 200, {"checks": list(self.checks)}
        if "/templates" in path:
            listed = [{"name": name, "language": language} for name, language in TEMPLATES]
            return 200, {"items": listed, "next_cursor": None}
        self.looked += 1
        return 200, self.journeys[min(self.looked, len(self.journeys)) - 1]


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def stack(told: Told, tmp_path: Path) -> Iterator[Path]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            status, answer = told.answer(self.path, body)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    write(tmp_path, url)
    yield tmp_path
    server.shutdown()
    thread.join()
    server.server_close()


def write(folder: Path, url: str, *, kafka: str = "127.0.0.1:1", **more: Any) -> None:
    services = {"message-log": url, "dispatcher": url}
    stack = {"kafka": kafka, "services": services, "admin_token": "the-token", "pids": {"consent": [os.getpid()]}}
    (folder / "stack.json").write_text(json.dumps(stack | more))


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def checks_of(result: Result) -> dict[str, str]:
    return {one["id"]: one["result"] for one in json.loads(result.stdout)["checks"]}


def test_doctor_shows_its_own_checks_and_message_logs_with_their_fixes(told: Told, stack: Path) -> None:
    told.checks = (FINE, LATE, BROKEN)
    answer = run("doctor", "--state-dir", stack)
    assert answer.exit_code == 1
    for words in ("✓ Process runs: consent", "✓ Service is alive: dispatcher", "! Kafka answers: consent"):
        assert words in answer.stdout
    assert "✗ Kafka answers  code 190\n      → PUT it again.\n        $ curl x" in answer.stdout
    # Nothing listens where this stack says that Kafka is.
    assert "✗ Port is open: kafka" in answer.stdout
    found = checks_of(run("doctor", "--state-dir", stack, "--json"))
    assert (found["lag:consent"], found["t:1"], found["state-dir"]) == ("warning", "failed", "ok")


def test_doctor_tells_what_it_can_without_message_log(tmp_path: Path) -> None:
    write(tmp_path, "http://127.0.0.1:1", postgres="postgresql://x@127.0.0.1:1/y", pids={"consent": [2**22 - 1]})
    answer = run("doctor", "--state-dir", tmp_path, "--json")
    found = checks_of(answer)
    assert answer.exit_code == 5
    for name in ("process:consent", "port:kafka", "port:postgres", "kafka", "livez:message-log", "message-log"):
        assert found[name] == "failed", name
    assert "what is wrong: sendwhy doctor" not in answer.stdout


@pytest.mark.parametrize(("status", "code"), [(401, 4), (403, 4), (404, 3), (503, 5)])
def test_doctor_ends_as_message_logs_refusal_does_and_still_tells_the_rest(
    status: int, code: int, told: Told, stack: Path
) -> None:
    told.refusal = (status, {"detail": "in words"})
    answer = run("doctor", "--state-dir", stack)
    assert answer.exit_code == code
    assert "✓ Service is alive: dispatcher" in answer.stdout
    assert "✗ message-log tells its checks  message-log: in words" in answer.stdout


def elsewhere(stack: Path) -> dict[str, str]:
    url = json.loads((stack / "stack.json").read_text())["services"]["message-log"]
    return {"SENDWHY_URL": url, "SENDWHY_TOKEN": "t", "SENDWHY_BILLING_URL": "http://127.0.0.1:1"}


def test_doctor_of_an_installation_elsewhere_asks_the_services_it_knows(told: Told, stack: Path) -> None:
    answer = CliRunner().invoke(app, ["doctor", "--json"], env=elsewhere(stack))
    assert answer.exit_code == 1
    assert checks_of(answer) == {"livez:message-log": "ok", "livez:billing": "failed", "kafka": "ok"}
    assert json.loads(answer.stdout)["checks"][-1] == FINE
    assert CliRunner().invoke(app, ["doctor"], env={"SENDWHY_URL": "http://x"}).exit_code == 2


def test_a_test_message_elsewhere_needs_the_language_or_the_dispatcher(told: Told, stack: Path) -> None:
    asked = ["test-message", "--to", "+525512345678"]
    vague = CliRunner().invoke(app, asked, env=elsewhere(stack))
    assert (vague.exit_code, told.sent, "--template hello_world/" in vague.stderr) == (2, [], True)
    exact = CliRunner().invoke(app, [*asked, "--template", "hello_world/en_US"], env=elsewhere(stack))
    assert (exact.exit_code, len(told.sent)) == (0, 1)


HOSTILE = "\x1b[31mred\x07 [bold red]x[/] \u202egnp \x9b2J\r\n2026 forged line"


def test_hostile_texts_stay_text(told: Told, stack: Path) -> None:
    told.checks = (BROKEN | dict.fromkeys(("title", "about", "seen", "remedy", "command"), HOSTILE),)
    failed = stage("consent", "failed", note=HOSTILE) | {"title": HOSTILE}
    told.journeys = (FAILED | {"stages": [failed], "reason": HOSTILE, "detail": HOSTILE, "url": HOSTILE},)
    for command in (["doctor"], ["test-message", "--to", "+52", "--text", "x"]):
        for more in ([], ["--json"]):
            shown = run(*command, *more, "--state-dir", stack).output
            assert not set(shown) & set("\x1b\x07\x9b\u202e\r"), command
            assert "[bold red]x[/]" in shown
            assert not [line for line in shown.splitlines() if line.startswith("2026 forged")], command


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_doctor_without_a_stack_says_how_to_start_one(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "stack.json").write_text(content)
    answer = run("doctor", "--state-dir", tmp_path)
    assert answer.exit_code == 5
    assert f"$ sendwhy up --state-dir {tmp_path}" in answer.stdout


def test_a_test_message_is_followed_to_its_tick(told: Told, stack: Path) -> None:
    told.journeys = (GOING, READ)
    answer = run("test-message", "--to", "+525512345678", "--state-dir", stack)
    assert answer.exit_code == 0
    (sent,) = told.sent
    assert re.fullmatch(r"test-\d{8}T\d{6}Z-[0-9a-f]{8}", sent["message_id"])
    assert (sent["to"], sent["origin"]) == ({"phone": "+525512345678"}, {"kind": "test"})
    assert sent["content"]["template"] == {"name": "hello_world", "language": {"code": "en_US"}}
    lines = answer.stdout.splitlines()
    assert [line.split()[-1] for line in lines] == ["Requested", "Consent", "Read", "READ"]
    assert "page: http://log/m" in answer.stderr
    assert "+0.250 s" in lines[1]
    assert "Meta's clock" in lines[2]


def test_a_failed_one_tells_its_reason_and_the_next_step(told: Told, stack: Path) -> None:
    told.journeys = (FAILED,)
    answer = run("test-message", "--to", "+525512345678", "--sender", "15550100", "--text", "Hi", "--state-dir", stack)
    assert answer.exit_code == 1
    assert told.sent[0]["content"] == {"type": "text", "text": {"body": "Hi"}}
    assert told.sent[0]["sender_id"] == "15550100"
    assert "✗" in answer.stdout
    assert "Billing" not in answer.stdout
    assert "❌ FAILED  Not opted in\nsince Tuesday\nWhat to do: Nothing." in answer.stdout
    as_json = run("test-message", "--to", "+52", "--text", "Hi", "--json", "--state-dir", stack)
    assert (as_json.exit_code, json.loads(as_json.stdout)) == (1, FAILED)


def test_one_that_is_not_there_in_time_says_where_it_hangs(told: Told, stack: Path) -> None:
    told.journeys = (GOING,)
    answer = run("test-message", "--to", "+525512345678", "--timeout", "1", "--state-dir", stack)
    assert answer.exit_code == 1
    assert "not there after 1 s\nNo progress for 11 s.\nLook at consent." in answer.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--template", "sale"], 2, "--template sale/en_US"),
        (["--template", "none"], 3, "no approved template none"),
        (["--text", "x", "--template", "sale/en_US"], 2, "--text goes without"),
        (["--text", "x", "--timeout", "0"], 2, ""),
    ],
)
def test_what_cannot_be_asked_for_sends_nothing(
    arguments: list[str], code: int, words: str, told: Told, stack: Path
) -> None:
    answer = run("test-message", "--to", "+525512345678", *arguments, "--state-dir", stack)
    assert answer.exit_code == code
    assert words in answer.stderr
    assert told.sent == []


def test_a_refusal_names_the_field(told: Told, stack: Path) -> None:
    told.refusal = (422, {"detail": "Wrong.", "errors": [{"field": "to.phone", "detail": "is no phone"}]})
    answer = run("test-message", "--to", "x", "--text", "Hi", "--state-dir", stack)
    assert (answer.exit_code, answer.stdout) == (2, "")
    assert "Wrong.\n  to.phone: is no phone" in answer.stderr


def test_variables_go_into_the_template(told: Told, stack: Path) -> None:
    arguments = ["--template", "sale/es_MX", "--param", "Inés", "--param", "7"]
    assert run("test-message", "--to", "+52", *arguments, "--state-dir", stack).exit_code == 0
    (body,) = told.sent[0]["content"]["template"]["components"]
    assert [each["text"] for each in body["parameters"]] == ["Inés", "7"]
