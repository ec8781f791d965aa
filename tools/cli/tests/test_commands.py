"""What every command does with what a service answers: exit codes, JSON as it came, tables, hostile texts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from sendwhy_cli.commands.completing import LEDGER_KINDS, ORIGINS, OUTCOMES, STATUSES
from sendwhy_cli.commands.filters import time_of
from sendwhy_cli.errors import CommandError
from sendwhy_cli.main import app
from sendwhy_cli.services import SERVICES
from sendwhy_cli.terminal import json_text, plain
from typer.testing import CliRunner, Result

TOKEN = "the-secret-token"
W = "/v1/workspaces/demo"
HOSTILE = "\x1b[31mred\x1b]0;title\x07 [bold red]x[/] :tada: \u202egnp \x9b2J \ud800\r\n2026 forged line"


@dataclass
class Asked:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


@dataclass
class Answer:
    """`cut`: promises more bytes than it sends."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False

    @property
    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


class FakeServices(ThreadingHTTPServer):
    """All services at one address: the answers that each path was given, in turn; the last one stays."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[tuple[str, str], list[Answer]] = {}
        self.asked: list[Asked] = []

    def on(self, method: str, path: str, *answers: Answer) -> None:
        self.answers[(method, path)] = list(answers)


class Handler(BaseHTTPRequestHandler):
    server: FakeServices

    def _any(self) -> None:
        address = urlsplit(self.path)
        length = int(self.headers.get("content-length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.asked.append(Asked(self.command, address.path, dict(parse_qsl(address.query)), headers, body))
        answers = self.server.answers.get((self.command, address.path), [Answer(404, {"detail": "nothing here"})])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(answer.content) + 10 * answer.cut))
        self.end_headers()
        self.wfile.write(answer.content)

    do_GET = do_POST = do_PUT = _any

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def services() -> Iterator[FakeServices]:
    server = FakeServices()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def state(services: FakeServices, tmp_path: Path) -> Path:
    return write_stack(tmp_path, f"http://127.0.0.1:{services.server_port}")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SENDWHY_")]:
        monkeypatch.delenv(name)


def write_stack(folder: Path, address: str) -> Path:
    stack = {"kafka": "127.0.0.1:1", "services": dict.fromkeys(SERVICES, address), "admin_token": TOKEN}
    (folder / "stack.json").write_text(json.dumps(stack))
    return folder


def run(*arguments: str | Path, env: Mapping[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=env)


def reason(**more: Any) -> dict[str, Any]:
    told = {"code": "INSUFFICIENT_CREDITS", "title": "Insufficient credits", "detail": "balance 0", "evidence": {}}
    return told | {"recoverable": "after_topup", "meta": None} | more


def message(message_id: str = "m-1", **more: Any) -> dict[str, Any]:
    told: dict[str, Any] = {
        "message_id": message_id,
        "workspace_id": "demo",
        "status": "failed",
        "service": "billing",
        "reason": reason(),
        "waiting": None,
        "to": {"contact_id": "shopify:7", "phone": "+525512345678"},
        "origin": {"kind": "campaign", "id": "black-friday"},
        "purpose": "marketing",
        "template": "autumn_sale",
        "language": "es_MX",
        "sender_id": "100000000000001",
        "provider_message_id": None,
        "requested_at": "2026-11-22T10:00:00+02:00",
        "updated_at": "2026-11-22T08:00:01Z",
        "times": {},
        "metadata": {},
        "url": f"https://log.example/w/demo/messages/{message_id}",
    }
    return told | more


SENDER = {
    "sender_id": "100000000000001",
    "workspace_id": "demo",
    "waba_id": "2",
    "portfolio_id": "3",
    "app_id": None,
    "default": True,
    "display_phone_number": "15550100001",
    "quality_rating": "GREEN",
    "messages_per_second": 80,
    "messaging_limit": None,
    "paused_at": None,
    "hold": None,
    "hold_since": None,
    "hold_until": None,
    "synced_at": "2026-11-22T10:00:00Z",
}
HEALTH = {
    "sender_id": "100000000000001",
    "at": "2026-11-22T10:00:00Z",
    "stopped_by": [{"gate": "hold", "stops": "all", "detail": "Meta refused the token"}],
    "quality": {"rating": "GREEN", "policy": "block"},
    "tier": {"portfolio_id": "3", "limit": 1000, "used": 1, "left": 999, "room_at": None},
    "throughput": {"allowed_per_second": 80, "sent_last_minute": None, "measured_at": None, "replica": None},
    "paused_at": None,
    "hold": {"cause": reason(), "since": "2026-11-22T10:00:00Z", "until": None},
    "sync": {"synced_at": None, "last": None, "failed": None},
    "reports": [],
}
TEMPLATE = {
    "waba_id": "2",
    "name": "autumn_sale",
    "language": "es_MX",
    "status": "PAUSED",
    "category": "MARKETING",
    "parameter_format": "POSITIONAL",
    "components": [{"type": "BODY", "text": "Hola {{1}}"}, {"type": "BUTTONS", "buttons": [{"text": "Ver"}]}],
    "quality": "RED",
    "rejected_reason": "low quality",
    "said_by": "sync",
    "said_at": None,
    "synced_at": "2026-11-22T10:00:00Z",
}
ENTRY = {
    "kind": "top_up",
    "amount": 1000,
    "balance_after": 1276,
    "cause": "invoice 7",
    "cause_kind": "top_up",
    "cause_reason": None,
    "message_id": None,
    "at": "2026-11-22T10:00:00Z",
}
ACCOUNT = {
    "workspace_id": "demo",
    "balance": 1276,
    "reserved": 3,
    "version": 9,
    "last_top_up": 1000,
    "low_balance_percent": 20,
}
FIGURES = {
    "messages": 4,
    "reserved": 4,
    "captured": 3,
    "released": 1,
    "refunded": 0,
    "recaptured": 0,
    "waived": 0,
    "top_ups": 1000,
    "adjustments": 0,
    "net": 997,
}
STATEMENT = {
    "workspace_id": "demo",
    "zone": "UTC",
    "from_day": "2026-11-01",
    "to_day": "2026-11-23",
    "by": ["campaign"],
    "opening_balance": 279,
    "closing_balance": 1276,
    "rows": [FIGURES | {"origin_kind": "campaign", "origin_id": "black-friday"}],
    "totals": FIGURES,
}
GROUP = {
    "id": "black-friday",
    "name": "Black Friday",
    "total": 1204,
    "by_status": {"read": 1200, "failed": 4},
    "first_at": "2026-11-22T10:00:00Z",
    "last_at": "2026-11-22T11:00:00Z",
    "url": "https://log.example/w/demo/campaigns/black-friday",
}
CAMPAIGN = GROUP | {
    "progress": {"done": 1204, "total": 1204, "per_minute": None, "ends_at": None},
    "waiting": [{"cause": "RATE_LIMIT_EXCEEDED", "count": 2, "since": "2026-11-22T10:00:00Z", "until": None}],
    "by_reason": [{"reason": "INSUFFICIENT_CREDITS", "count": 4, "what_to_do": "Top up.", "example": "m-1"}],
}
REPLAY = {
    "dry_run": True,
    "deliveries": 1354,
    "emitted": {"status.updated": 1},
    "changes_count": 1,
    "changes": [
        {
            "message_id": "m-1",
            "sender_id": "1",
            "provider_message_id": "wamid.1",
            "from": {"status": None, "reason": None},
            "to": {"status": "failed", "reason": "META_ERROR"},
        }
    ],
    "complete": True,
    "next_from": None,
}
SINCE = "2026-11-22T10:00:00Z"


def page(*items: Any, cursor: str | None = None) -> dict[str, Any]:
    return {"items": list(items), "next_cursor": cursor}


# What is asked, by whom it is answered, with what; words that people must see; the exit code.
READS: list[tuple[str, str, str, Any, list[str], int]] = [
    (
        "messages",
        "GET",
        f"{W}/messages",
        page(message()),
        ["❌ failed", "2026-11-22 08:00:00", "m-1", "shopify:7", "campaign black-friday", "Insufficient credits"],
        0,
    ),
    ("messages", "GET", f"{W}/messages", page(), [], 0),
    (
        "messages",
        "GET",
        f"{W}/messages",
        page(
            message(
                status="waiting",
                reason=None,
                origin=None,
                waiting={"cause": "RATE_LIMIT_EXCEEDED", "since": SINCE, "until": "2026-11-22T11:30:00Z"},
            )
        ),
        ["⏸  waiting", "waits for RATE_LIMIT_EXCEEDED until 2026-11-22 11:30 UTC"],
        0,
    ),
    (
        "messages",
        "GET",
        f"{W}/messages",
        page(
            message(
                status="waiting",
                reason=None,
                waiting={"cause": "EXPIRED_BEFORE_SENDING", "since": SINCE, "until": None, "scheduled": False},
            )
        ),
        ["⏸  waiting", "paused until somebody resumes its number or campaign"],
        0,
    ),
    ("why m-1", "GET", f"{W}/messages/m-1", message(events=[]), ["FAILED", "Insufficient credits", "log.example"], 1),
    ("credits balance", "GET", f"{W}/account", ACCOUNT, ["1,276 credits", "20 % of it or less was left"], 0),
    ("credits ledger", "GET", f"{W}/ledger", page(ENTRY), ["+1,000", "1,276", "invoice 7", "AT (UTC)"], 0),
    ("credits ledger", "GET", f"{W}/ledger", page(), [], 0),
    ("credits statement", "GET", f"{W}/statements", STATEMENT, ["279 → 1,276", "campaign black-friday", "997"], 0),
    (
        "credits top-up 1000 --reference invoice",
        "POST",
        f"{W}/top-ups",
        ACCOUNT | {"entry": ENTRY},
        ["+1,000 credits", "balance 1,276", "2026-11-22 10:00:00 UTC"],
        0,
    ),
    ("templates", "GET", f"{W}/templates", page(TEMPLATE), ["autumn_sale", "PAUSED", "RED", "2026-11-22 10:00"], 0),
    ("templates autumn_sale", "GET", f"{W}/templates", page(TEMPLATE), ["Hola {{1}}", "Ver", "low quality"], 0),
    ("senders list", "GET", f"{W}/senders", [SENDER], ["100000000000001", "GREEN", "default", "no limit"], 0),
    (
        "senders show 100000000000001",
        "GET",
        f"{W}/senders/100000000000001/health",
        HEALTH,
        ["stopped", "❌ Meta refused the token", "held until it is repaired", "999 left"],
        1,
    ),
    (
        "senders pause 100000000000001",
        "POST",
        f"{W}/senders/100000000000001/pause",
        SENDER | {"paused_at": SINCE},
        ["paused since 2026-11-22 10:00 UTC"],
        0,
    ),
    ("senders resume 100000000000001", "POST", f"{W}/senders/100000000000001/resume", SENDER, ["sends"], 0),
    (
        "senders sync 100000000000001",
        "POST",
        f"{W}/senders/100000000000001/sync",
        {"synced_at": SINCE, "templates": 16},
        ["16 templates"],
        0,
    ),
    ("campaigns list", "GET", f"{W}/campaigns", page(GROUP), ["black-friday", "1,204", "READ", "FAILED"], 0),
    (
        "campaigns show black-friday",
        "GET",
        f"{W}/campaigns/black-friday",
        CAMPAIGN,
        ["1,204 of 1,204 have left", "RATE_LIMIT_EXCEEDED", "Top up."],
        0,
    ),
    (
        "campaigns cancel black-friday --yes",
        "POST",
        f"{W}/campaigns/black-friday/cancel",
        {"cancelled": 1200, "cancelling": 3, "in_flight": 1},
        ["1,200 taken out", "1 were called already"],
        0,
    ),
    (
        "campaigns throttle black-friday --per-minute 600",
        "PUT",
        f"{W}/throttles/black-friday",
        {"campaign_id": "black-friday", "per_minute": 600, "per_day": None},
        ["600 per minute"],
        0,
    ),
    (
        f"replay --since {SINCE}",
        "POST",
        f"{W}/webhooks/replay",
        REPLAY,
        ["1,354 deliveries", "1 status.updated would be published", "not known to be ours", "failed META_ERROR"],
        0,
    ),
]
COMMANDS = [
    *{command: (command, method, path) for command, method, path, *_ in READS}.values(),
    ("test-message --to +525512345678 --text Hi", "POST", f"{W}/messages"),
    ("test-message --to +525512345678", "GET", f"{W}/templates"),
    ("check /dev/null", "POST", f"{W}/audience-checks"),
]


@pytest.mark.parametrize(("command", "method", "path", "body", "words", "code"), READS)
def test_people_get_words_and_programs_the_apis_own_json(
    command: str,
    method: str,
    path: str,
    body: Any,
    words: list[str],
    code: int,
    services: FakeServices,
    state: Path,
) -> None:
    services.on(method, path, Answer(body=body))
    shown = run(*command.split(), "--state-dir", state)
    assert (shown.exit_code, [word for word in words if word not in shown.stdout]) == (code, [])
    assert "\x1b" not in shown.output, "colours are for terminals"
    assert "next: sendwhy" in shown.stderr or "page: http" in shown.stderr
    as_json = run(*command.split(), "--json", "--state-dir", state)
    assert (as_json.exit_code, json.loads(as_json.stdout)) == (code, body)
    assert {one.headers["authorization"] for one in services.asked} == {f"Bearer {TOKEN}"}
    assert TOKEN not in shown.output + as_json.output


PROBLEM = {
    "type": "about:blank",
    "title": "x",
    "status": 0,
    "detail": "This needs the role operator.",
    "errors": [{"field": "limit", "detail": "must be less"}],
}
FAULTS: list[tuple[str, Answer, int, str]] = [
    ("400", Answer(400, PROBLEM), 2, "limit: must be less"),
    ("401", Answer(401, PROBLEM), 4, "SENDWHY_TOKEN"),
    ("403", Answer(403, PROBLEM), 4, "This needs the role operator."),
    ("404", Answer(404, PROBLEM), 3, ""),
    ("409", Answer(409, PROBLEM), 1, "role operator"),
    ("413", Answer(413, b"<html>"), 2, "answered 413"),
    ("422", Answer(422, PROBLEM), 2, "limit: must be less"),
    ("429", Answer(429, PROBLEM), 5, "wait"),
    ("500", Answer(500, PROBLEM), 5, ""),
    ("502 of a proxy", Answer(502, b"<html>Bad gateway</html>"), 5, "answered 502"),
    ("503", Answer(503, PROBLEM), 5, "try again"),
    ("a redirect", Answer(302, b"", {"location": "https://login.example/"}), 5, "https://login.example/"),
    ("a page", Answer(200, b"<html>Log in</html>", {"content-type": "text/html"}), 5, "text/html"),
    ("no JSON", Answer(200, b"\xff\x00{"), 5, "not JSON"),
    ("endless nesting", Answer(200, b"[" * 100_000), 5, "not JSON"),
    ("cut off", Answer(200, {"items": []}, cut=True), 5, "doesn't answer"),
    ("another shape", Answer(200, {"what": "else"}), 5, ""),
    ("a number", Answer(200, 7), 5, ""),
]


@pytest.mark.parametrize(("name", "answer", "code", "words"), FAULTS, ids=[name for name, *_ in FAULTS])
def test_every_fault_ends_with_its_exit_code_and_one_sentence(
    name: str, answer: Answer, code: int, words: str, services: FakeServices, state: Path
) -> None:
    services.on("GET", f"{W}/messages", answer)
    faulty(["messages", "--state-dir", str(state)], code, words)


@pytest.mark.parametrize(("command", "method", "path"), COMMANDS, ids=[command for command, *_ in COMMANDS])
def test_every_command_knows_the_faults(
    command: str, method: str, path: str, services: FakeServices, state: Path
) -> None:
    for answer, code in ((Answer(403, PROBLEM), 4), (Answer(200, {"what": "else"}), 5), (Answer(200, 7), 5)):
        services.on(method, path, answer)
        faulty([*command.split(), "--state-dir", str(state)], code, "")


def faulty(arguments: list[str], code: int, words: str) -> None:
    ended = run(*arguments)
    assert (ended.exit_code, ended.stdout) == (code, ""), ended.output
    assert words in ended.stderr
    assert ended.stderr.startswith("sendwhy: ")
    assert TOKEN not in ended.output


def test_a_campaign_that_no_message_names_is_looked_for_by_name(services: FakeServices, state: Path) -> None:
    services.on("GET", f"{W}/messages", Answer(200, page()))
    ended = run("messages", "--campaign", "Autumn sale", "--state-dir", state)
    assert f"next: sendwhy campaigns list --search 'Autumn sale' --state-dir {state}\n" in ended.stderr


def test_with_json_a_problem_is_json_on_stderr(services: FakeServices, state: Path) -> None:
    services.on("GET", f"{W}/messages", Answer(422, PROBLEM))
    ended = run("messages", "--json", "--state-dir", state)
    assert (ended.exit_code, ended.stdout, json.loads(ended.stderr)) == (2, "", PROBLEM)
    nowhere = run("messages", "--json", "--state-dir", state / "none")
    assert nowhere.exit_code == 5
    assert "no stack runs in" in json.loads(nowhere.stderr)["detail"]


@pytest.mark.parametrize(
    ("top_up", "percent", "words"),
    [(None, None, ""), (9, None, "more than 20 %"), (9, 10, "10 % of it or less"), (9, 0, "nothing left")],
)
def test_how_low_the_credits_were_is_said_in_words(
    top_up: int | None, percent: int | None, words: str, services: FakeServices, state: Path
) -> None:
    services.on("GET", f"{W}/account", Answer(body=ACCOUNT | {"last_top_up": top_up, "low_balance_percent": percent}))
    shown = run("credits", "balance", "--state-dir", state).stdout
    assert (words in shown, "since then" in shown) == (True, top_up is not None)


SCHEDULED = {"cause": "EXPIRED_BEFORE_SENDING", "count": 1, "since": SINCE, "scheduled": True}


@pytest.mark.parametrize(
    ("waiting", "words"),
    [
        ([], "28 a minute, done at 2026-11-22 10:01:00 UTC"),
        ([SCHEDULED | {"until": "2026-11-22T10:00:30Z"}], "28 a minute, done at 2026-11-22 10:01:00 UTC"),
        ([SCHEDULED | {"until": "2026-11-22T20:00:00Z"}], "28 a minute, the last from 2026-11-22 20:00:00 UTC on"),
        (
            [SCHEDULED | {"until": "2026-11-22T20:00:00Z"}, SCHEDULED | {"scheduled": False, "until": None}],
            "28 a minute; some wait, so nobody can say when the rest goes",
        ),
    ],
)
def test_a_campaign_ends_with_what_waits(
    waiting: list[dict[str, Any]], words: str, services: FakeServices, state: Path
) -> None:
    progress = {"done": 9, "total": 10, "per_minute": 28, "ends_at": "2026-11-22T10:01:00Z"}
    services.on("GET", f"{W}/campaigns/c", Answer(body=CAMPAIGN | {"progress": progress, "waiting": waiting}))
    shown = " ".join(run("campaigns", "show", "c", "--state-dir", state).stdout.split())
    assert f"9 of 10 have left, {words}" in shown


def test_templates_tell_when_they_changed_and_senders_when_they_were_read(services: FakeServices, state: Path) -> None:
    services.on("GET", f"{W}/templates", Answer(body=page(TEMPLATE | {"said_at": "2026-11-22T09:06:00Z"})))
    services.on("GET", f"{W}/senders", Answer(body=[SENDER]))
    shown = run("templates", "--state-dir", state).stdout
    assert ("CHANGED (UTC)" in shown, "2026-11-22 09:06" in shown) == (True, True)
    assert "TEMPLATES READ (UTC)" in run("senders", "list", "--state-dir", state).stdout


def test_nobody_listening_is_unreachable(tmp_path: Path) -> None:
    write_stack(tmp_path, "http://127.0.0.1:1")
    faulty(["messages", "--state-dir", str(tmp_path)], 5, "doesn't answer")


def test_all_filters_go_to_the_api_under_its_names(services: FakeServices, state: Path) -> None:
    services.on("GET", f"{W}/messages", Answer(body=page(message(), cursor="c-2")))
    given = (
        "--status failed --reason 131026 --not-reason META_ERROR --service dispatcher --sender 1 --origin campaign"
        " --campaign black-friday --automation a --template t --country MX --contact c --phone +52 --since 2026-11-22"
        " --until 2026-11-23T10:00:00+02:00 -q Inés --cursor c-1 --limit 1"
    )
    shown = run("messages", *given.split(), "--state-dir", state)
    assert services.asked[0].query == {
        "status": "failed",
        "reason": "RECIPIENT_NOT_ON_WHATSAPP",
        "reason!": "META_ERROR",
        "service": "dispatcher",
        "sender": "1",
        "origin": "campaign",
        "campaign": "black-friday",
        "automation": "a",
        "template": "t",
        "country": "MX",
        "contact": "c",
        "phone": "+52",
        "from": "2026-11-22T00:00:00+00:00",
        "to": "2026-11-23T10:00:00+02:00",
        "q": "Inés",
        "cursor": "c-1",
        "limit": "1",
    }
    [more] = [line for line in shown.stderr.splitlines() if line.startswith("more: ")]
    assert "--status failed --reason 131026" in more
    assert "--search 'Inés' --cursor c-2" in more


def test_a_long_list_is_asked_page_by_page_and_answered_as_one(services: FakeServices, state: Path) -> None:
    first = page(*(message(f"m-{number}") for number in range(500)), cursor="c-1")
    second = page(*(message(f"m-{number}") for number in range(500, 700)), cursor="c-2")
    services.on("GET", f"{W}/messages", Answer(body=first), Answer(body=second))
    shown = json.loads(run("messages", "--json", "--limit", "700", "--state-dir", state).stdout)
    assert [one["message_id"] for one in shown["items"]] == [f"m-{number}" for number in range(700)]
    assert shown["next_cursor"] == "c-2"
    assert [(one.query["limit"], one.query.get("cursor")) for one in services.asked] == [("500", None), ("200", "c-1")]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("24h", "2026-11-21T12:00:00+00:00"),
        ("90s", "2026-11-22T11:58:30+00:00"),
        ("2w", "2026-11-08T12:00:00+00:00"),
        ("2026-11-20", "2026-11-20T00:00:00+00:00"),
        ("2026-11-20T08:00", "2026-11-20T08:00:00+00:00"),
        ("2026-11-20T08:00:00-06:00", "2026-11-20T08:00:00-06:00"),
        ("yesterday", None),
        ("24", None),
        ("999999w", None),
        ("2026-13-01", None),
        ("", None),
    ],
)
def test_times_are_ago_a_day_or_a_moment(told: str, expected: str | None) -> None:
    from datetime import UTC, datetime

    now = datetime(2026, 11, 22, 12, tzinfo=UTC)
    if expected is None:
        with pytest.raises(CommandError, match="--since"):
            time_of("--since", told, now)
    else:
        assert time_of("--since", told, now) == expected


def test_an_unknown_reason_names_the_like(state: Path) -> None:
    ended = run("messages", "--reason", "insuficient credit", "--state-dir", state)
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert "INSUFFICIENT_CREDITS" in ended.stderr


def test_csv_is_written_whole_or_not_at_all(services: FakeServices, state: Path) -> None:
    csv = b"message_id,status\r\nm-1,failed\r\n"
    out = state / "out.csv"
    services.on("GET", f"{W}/messages.csv", Answer(body=csv))
    assert run("messages", "--status", "failed", "--csv", out, "--state-dir", state).exit_code == 0
    assert out.read_bytes() == csv
    assert services.asked[0].query == {"status": "failed"}
    assert run("messages", "--csv", "-", "--state-dir", state).stdout_bytes == csv
    services.on("GET", f"{W}/messages.csv", Answer(body=csv[:10], cut=True))
    assert run("messages", "--csv", out, "--state-dir", state).exit_code == 5
    assert out.read_bytes() == csv
    assert sorted(path.name for path in state.iterdir()) == ["out.csv", "stack.json"]
    assert run("messages", "--csv", state / "none" / "out.csv", "--state-dir", state).exit_code == 2


def test_hostile_texts_stay_text(services: FakeServices, state: Path) -> None:
    hostile = message(HOSTILE, reason=reason(title=HOSTILE, detail=HOSTILE), to={"contact_id": HOSTILE, "phone": None})
    services.on("GET", f"{W}/messages", Answer(body=page(hostile, cursor=HOSTILE)))
    services.on("GET", f"{W}/messages/m-1", Answer(body=hostile | {"events": [], "url": f"/{HOSTILE}"}))
    services.on("GET", f"{W}/account", Answer(422, PROBLEM | {"detail": HOSTILE}))
    for command in (["messages", "-n1"], ["why", "m-1"], ["credits", "balance"], ["messages", "-n1", "--json"]):
        shown = run(*command, "--state-dir", state)
        assert isinstance(shown.exception, SystemExit | None), command
        assert not set(shown.output) & set("\x1b\x07\x9b\u202e\ud800\r"), command
        assert not [line for line in shown.output.splitlines() if line.startswith("2026 forged")], command
    endless = run("messages", "--state-dir", state)
    assert (endless.exit_code, endless.stdout) == (2, ""), "its cursor can't be sent back"
    assert "[bold red]x[/] :tada:" in run("messages", "-n1", "--state-dir", state).stdout
    assert json.loads(run("messages", "-n1", "--json", "--state-dir", state).stdout)["items"] == [hostile]


def test_plain_text_shows_what_a_terminal_would_act_on() -> None:
    assert plain("a\tb\r\nc\x1b[0m\x7f") == "a b c␛[0m\N{REPLACEMENT CHARACTER}"
    assert json_text({"x": "\u202e\x9b"}) == '{"x": "\\u202e\\u009b"}'


def test_a_top_up_is_the_same_request_again(services: FakeServices, state: Path) -> None:
    services.on("POST", f"{W}/top-ups", Answer(body=ACCOUNT | {"entry": ENTRY}))
    for reference in ("invoice 7", "invoice 7", "Rechnung Nº 8\n"):
        run("credits", "top-up", "1000", "--reference", reference, "--state-dir", state)
    run("credits", "top-up", "1000", "--reference", "invoice 7", "--key", "k-1", "--state-dir", state)
    first, again, other, own = [one.headers["idempotency-key"] for one in services.asked]
    assert first == again != other
    assert own == "k-1"
    assert services.asked[0].body == {"credits": 1000, "reference": "invoice 7"}
    assert run("credits", "top-up", "0", "--reference", "x", "--state-dir", state).exit_code == 2
    assert run("credits", "top-up", "5", "--state-dir", state).exit_code == 2


def test_replay_changes_nothing_until_it_is_told_to_and_reads_all_of_the_span(
    services: FakeServices, state: Path
) -> None:
    part = REPLAY | {"complete": False, "next_from": "2026-11-22T10:30:00Z"}
    services.on("POST", f"{W}/webhooks/replay", Answer(body=part), Answer(body=REPLAY))
    dry = run("replay", "--since", SINCE, "--state-dir", state)
    assert "2,708 deliveries" in dry.stdout
    assert [one.query for one in services.asked] == [{"dry_run": "true"}] * 2
    assert [one.body["from"] for one in services.asked] == ["2026-11-22T10:00:00+00:00", "2026-11-22T10:30:00Z"]
    assert {one.body["to"] for one in services.asked} == {"2026-11-22T11:00:00+00:00"}
    [hint] = [line for line in dry.stderr.splitlines() if line.startswith("next: ")]
    run(*hint.removeprefix("next: sendwhy ").split())
    assert services.asked[-1].query == {"dry_run": "false"}
    assert services.asked[-1].body == {"from": "2026-11-22T10:00:00+00:00", "to": "2026-11-22T11:00:00+00:00"}
    run("replay", "ab" * 32, "--state-dir", state)
    assert services.asked[-1].body == {"delivery_id": "ab" * 32}
    for wrong in ([], ["nonsense"], ["--until", "1h"]):
        assert run("replay", *wrong, "--state-dir", state).exit_code == 2


def test_cancelling_asks_a_person_and_refuses_where_none_is(services: FakeServices, state: Path) -> None:
    ended = run("campaigns", "cancel", "black-friday", "--state-dir", state)
    assert (ended.exit_code, services.asked) == (2, [])
    assert "--yes" in ended.stderr
    assert run("campaigns", "throttle", "black-friday", "--state-dir", state).exit_code == 2


def test_watching_waits_for_the_end_and_tells_each_step_once(services: FakeServices, state: Path) -> None:
    events = [{"at": SINCE, "service": "upstream", "kind": "requested", "note": None}]
    events += [{"at": SINCE, "service": "consent", "kind": "consented", "note": None}]
    services.on(
        "GET",
        f"{W}/messages/m-1",
        Answer(404, PROBLEM),
        Answer(body=message(status="sending", reason=None, events=events[:1])),
        Answer(body=message(status="sending", reason=None, events=events)),
        Answer(body=message(status="read", reason=None, events=events)),
    )
    shown = run("why", "m-1", "--watch", "--state-dir", state)
    assert shown.exit_code == 0
    assert "READ" in shown.stdout
    assert [shown.stderr.count(word) for word in ("requested", "consented")] == [1, 1]


def test_the_bundle_is_the_services_own_bytes(services: FakeServices, state: Path) -> None:
    bundle = b'{\n  "message": "as it came"\n}'
    services.on("GET", f"{W}/messages/m-1", Answer(body=message(events=[])))
    services.on("GET", f"{W}/messages/m-1/bundle", Answer(body=bundle))
    run("why", "m-1", "--bundle", state / "case.json", "--state-dir", state)
    assert (state / "case.json").read_bytes() == bundle


def test_an_installation_elsewhere_is_named_by_the_environment(services: FakeServices, tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{services.server_port}"
    services.on("GET", "/v1/workspaces/acme/messages", Answer(body=page()))
    there = {"SENDWHY_URL": address, "SENDWHY_TOKEN": "t-1", "SENDWHY_WORKSPACE": "acme"}
    assert run("messages", "--json", env=there).exit_code == 0
    assert services.asked[-1].headers["authorization"] == "Bearer t-1"
    (tmp_path / "token").write_text("t-2\n")
    from_file = {"SENDWHY_TOKEN_FILE": str(tmp_path / "token")}
    assert run("messages", "--url", f"{address}/", "-w", "acme", env=from_file).exit_code == 0
    assert services.asked[-1].headers["authorization"] == "Bearer t-2"
    others = run("credits", "balance", env=there)
    assert (others.exit_code, "SENDWHY_BILLING_URL" in others.stderr) == (2, True)
    write_stack(tmp_path, "http://127.0.0.1:1")
    assert "127.0.0.1:1" in run("messages", "--state-dir", tmp_path, env=there).stderr, "said beats set"


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["--url", "http://x", "--state-dir", "."], {}, "two installations"),
        (["--url", "log.example"], {"SENDWHY_TOKEN": "t"}, "http://"),
        (["--url", "http://x"], {}, "SENDWHY_TOKEN"),
        (["--url", "http://x"], {"SENDWHY_TOKEN": "t\nx"}, "characters"),
        (["--url", "http://x"], {"SENDWHY_TOKEN_FILE": "/none"}, "/none"),
    ],
)
def test_a_place_that_cannot_be_is_a_usage_error(arguments: list[str], environment: dict[str, str], words: str) -> None:
    ended = run("messages", *arguments, env=environment)
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert words in ended.stderr


def events(*messages: dict[str, Any]) -> Answer:
    text = "".join(f"id: 7:{one['message_id']}\ndata: {json.dumps(one)}\n\n" for one in messages)
    return Answer(body=text.encode(), headers={"content-type": "text/event-stream; charset=utf-8"})


def test_tail_goes_on_where_a_stream_broke_off(services: FakeServices, state: Path) -> None:
    lost = events(message("m-2"))
    services.on(
        "GET",
        f"{W}/events",
        events(message("m-1", status="sending"), message("m-1")),
        Answer(lost.status, lost.body, lost.headers, cut=True),
        Answer(401, PROBLEM),
    )
    ended = run("tail", "--json", "--status", "failed", "--state-dir", state)
    assert [json.loads(line)["message_id"] for line in ended.stdout.splitlines()] == ["m-1", "m-1", "m-2"]
    assert ended.exit_code == 4
    assert [one.headers.get("last-event-id") for one in services.asked] == [None, "7:m-1", "7:m-2"]
    assert {one.query["status"] for one in services.asked} == {"failed"}
    services.on("GET", f"{W}/events", events(message("m-3")), Answer(403, PROBLEM))
    assert "❌ failed" in run("tail", "--state-dir", state).stdout


def test_tail_cut_off_before_the_first_message_goes_on_from_where_it_began(services: FakeServices, state: Path) -> None:
    began = events()
    services.on("GET", f"{W}/events", Answer(200, b"", {**began.headers, "last-event-id": "7:"}), Answer(401, PROBLEM))
    assert run("tail", "--state-dir", state).exit_code == 4
    assert [one.headers.get("last-event-id") for one in services.asked] == [None, "7:"]


def test_tail_says_at_once_that_there_is_no_stream(services: FakeServices, state: Path, tmp_path: Path) -> None:
    for answer in (Answer(503, PROBLEM), Answer(200, b"<html>", {"content-type": "text/html"})):
        services.on("GET", f"{W}/events", answer)
        assert run("tail", "--state-dir", state).exit_code == 5
    assert run("tail", "--url", "http://127.0.0.1:1", env={"SENDWHY_TOKEN": "t"}).exit_code == 5


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-c", "from sendwhy_cli.main import app; app()", *map(str, arguments)]


def test_ctrl_c_ends_with_130_and_no_traceback(services: FakeServices, state: Path) -> None:
    services.on("GET", f"{W}/messages/m-1", Answer(body=message(status="sending", reason=None, events=[])))
    watching = subprocess.Popen(
        command("why", "m-1", "--watch", "--state-dir", state),
        stderr=subprocess.PIPE,
        # Where a shell has put the tests into the background they ignore it, and who they start would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not services.asked:
        assert watching.poll() is None
        time.sleep(0.05)
    watching.send_signal(signal.SIGINT)
    _, told = watching.communicate(timeout=60)
    assert (watching.returncode, told) == (130, b"")


def test_whoever_reads_may_stop_reading(services: FakeServices, state: Path) -> None:
    many = page(*(message(f"m-{number}") for number in range(500)))
    services.on("GET", f"{W}/messages", Answer(body=many))
    for more in ([], ["--json"]):
        reading, writing = os.pipe()
        os.close(reading)
        ended = subprocess.run(
            command("messages", "--state-dir", state, *more), stdout=writing, stderr=subprocess.PIPE, check=False
        )
        os.close(writing)
        assert (ended.returncode, b"Traceback" in ended.stderr) == (141, False), ended.stderr


@pytest.mark.parametrize(
    ("typed", "meant"), [("mesages", "messages"), ("wy", "why"), ("credits topup", "top-up"), ("sender", "senders")]
)
def test_a_mistyped_command_names_the_like(typed: str, meant: str) -> None:
    ended = run(*typed.split())
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert f"'{meant}'" in ended.stderr


def test_completion_scripts_and_what_they_offer() -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_SENDWHY_COMPLETE" in run("completion", shell).stdout
    assert run("completion", "tcsh").exit_code == 2
    asked = {"COMP_WORDS": "sendwhy messages --reason INSUF", "COMP_CWORD": "3", "_SENDWHY_COMPLETE": "complete_bash"}
    program = Path(sys.executable).with_name("sendwhy")
    offered = subprocess.run([program], env=os.environ | asked, capture_output=True, text=True, check=False)
    assert offered.stdout.split() == ["INSUFFICIENT_CREDITS"]


def test_what_is_offered_is_what_the_services_know() -> None:
    from sendwhy.events import OriginKind
    from sendwhy.reasons import Service

    assert set(SERVICES) == set(Service)
    assert set(ORIGINS) == set(OriginKind)
    contracts = Path(__file__).parents[3] / "docs" / "contracts"
    kinds = json.loads((contracts / "openapi-billing.json").read_text())["components"]["schemas"]["Kind"]["enum"]
    assert set(LEDGER_KINDS) == set(kinds)
    paths = json.loads((contracts / "openapi-message-log.json").read_text())["paths"]
    for path in ("messages", "events"):
        asked = {one["name"]: one["schema"] for one in paths[f"/v1/workspaces/{{w}}/{path}"]["get"]["parameters"]}
        assert asked["status"]["anyOf"][0]["enum"] == list(STATUSES)
        assert {"reason", "reason!", "service", "sender", "origin", "campaign", "q", "from", "to"} <= set(asked)


def test_help_is_whole_and_needs_nothing_slow() -> None:
    shown = run("--help")
    assert (shown.exit_code, "..." in shown.stdout.partition("Commands:")[2]) == (0, False)
    slow = {"httpx", "pydantic", "rich", "aiokafka", "asyncio", "sendwhy.reasons"}
    code = f"import sys; import sendwhy_cli.main; print(sorted({slow} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout == "[]\n"


def test_the_outcomes_that_can_be_saved_are_message_logs() -> None:
    contracts = Path(__file__).parents[3] / "docs" / "contracts"
    outcomes = json.loads((contracts / "openapi-message-log.json").read_text())["components"]["schemas"]["Outcome"]
    # A file excludes nothing; only a plan to send again does.
    assert set(OUTCOMES) == set(outcomes["enum"]) - {"excluded"}
