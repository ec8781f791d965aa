"""What the commands print, where, and with which exit code."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from sendwhy.reasons import CATALOGUE, ReasonCode
from sendwhy_cli.explain import find, suggest
from sendwhy_cli.files import opened
from sendwhy_cli.main import app
from sendwhy_cli.send import key_of, publish
from typer.testing import CliRunner, Result

REASON = {
    "code": "INSUFFICIENT_CREDITS",
    "title": "Insufficient credits",
    "detail": "balance 3, price 5",
    "evidence": {"balance": 3},
}
EVENTS = [
    {"at": "2026-11-22T10:00:00Z", "service": "upstream", "kind": "send.requested"},
    {"at": "2026-11-22T10:00:02.400Z", "service": "billing", "kind": "send.rejected", "reason": REASON},
]
MESSAGES: dict[str, dict[str, Any]] = {
    "m-read": {"message_id": "m-read", "status": "read", "reason": None, "events": EVENTS[:1], "url": "/pages/m-read"},
    "m:failed": {"message_id": "m:failed", "status": "failed", "reason": REASON, "events": EVENTS},
    "m-clocks": {
        "message_id": "m-clocks",
        "status": "read",
        "events": [
            {"at": "2026-11-22T10:00:00.500Z", "service": "upstream", "kind": "requested"},
            {"at": "2026-11-22T10:00:01.800Z", "service": "dispatcher", "kind": "accepted"},
            {"at": "2026-11-22T10:00:01Z", "service": "webhook-ingest", "kind": "sent"},
            {"at": "2026-11-22T10:00:01Z", "service": "webhook-ingest", "kind": "delivered"},
            {"at": "2026-11-22T10:00:02Z", "service": "webhook-ingest", "kind": "read"},
            {"at": "2026-11-22T10:00:03Z", "service": "consent", "kind": "dead_letter", "note": "no such field\n" * 40},
        ],
    },
    "m-late": {
        "message_id": "m-late",
        "status": "failed",
        "reason": REASON,
        "events": [
            {"at": "2026-11-22T09:59:59Z", "service": "dispatcher", "kind": "rejected", "reason": REASON},
            {"at": "2026-11-22T10:00:00Z", "service": "upstream", "kind": "requested"},
            {"at": "2026-11-22T10:00:01Z", "service": "dispatcher", "kind": "held", "until": "2026-11-22T11:00:00.5Z"},
            {"at": "2026-11-22T10:00:02Z", "service": "upstream", "kind": "requested"},
        ],
    },
    "m-waiting": {
        "message_id": "m-waiting",
        "status": "waiting",
        "waiting": {"cause": "RATE_LIMIT_EXCEEDED", "since": "2026-11-22T10:00:00Z", "until": "2026-11-22T11:00:00Z"},
        "events": [],
    },
    "m-paused": {
        "message_id": "m-paused",
        "status": "waiting",
        "waiting": {
            "cause": "EXPIRED_BEFORE_SENDING",
            "since": "2026-11-22T10:00:00Z",
            "until": None,
            "scheduled": False,
            "expires_at": "2026-11-23T10:00:00Z",
        },
        "events": [],
    },
    "m-later": {
        "message_id": "m-later",
        "status": "waiting",
        "waiting": {
            "cause": "EXPIRED_BEFORE_SENDING",
            "since": "2026-11-22T10:00:00Z",
            "until": "2026-11-22T11:00:00Z",
            "scheduled": True,
        },
        "events": [],
    },
}


class FakeMessageLog(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        prefix = "/v1/workspaces/demo/messages/"
        message = MESSAGES.get(self.path.removeprefix(prefix).replace("%3A", ":"))
        if self.headers["authorization"] != "Bearer the-token":
            self._answer(403, {})
        elif self.path.startswith(prefix) and message:
            self._answer(200, message)
        else:
            self._answer(404, {})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


def write_stack(folder: Path, *, message_log: str, kafka: str = "127.0.0.1:1", token: str = "the-token") -> Path:
    stack = {"kafka": kafka, "services": {"message-log": message_log}, "admin_token": token}
    (folder / "stack.json").write_text(json.dumps(stack))
    return folder


@pytest.fixture
def message_log() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeMessageLog)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def run(*arguments: str | Path, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("INSUFFICIENT_CREDITS", ReasonCode.INSUFFICIENT_CREDITS),
        ("insufficient credits", ReasonCode.INSUFFICIENT_CREDITS),
        ("131026", ReasonCode.RECIPIENT_NOT_ON_WHATSAPP),
        ("#131026", ReasonCode.RECIPIENT_NOT_ON_WHATSAPP),
        ("(#131026) Message undeliverable", ReasonCode.RECIPIENT_NOT_ON_WHATSAPP),
        ("100/33", ReasonCode.SENDER_NOT_AVAILABLE),
        ("100 with subcode 33", ReasonCode.SENDER_NOT_AVAILABLE),
        ("invalid whatsapp number", ReasonCode.RECIPIENT_NOT_ON_WHATSAPP),
        ("User has blocked this number", ReasonCode.RECIPIENT_PROBABLY_BLOCKED_SENDER),
        ("100", ReasonCode.INVALID_CONTENT),
        ("100", ReasonCode.SENDER_NOT_AVAILABLE),
        ("250", ReasonCode.SENDER_CREDENTIALS_REJECTED),
        ("999999", ReasonCode.META_ERROR),
    ],
)
def test_a_reason_is_found_by_any_of_its_names(name: str, code: ReasonCode) -> None:
    assert code in find(name)
    assert str(code) in run("explain", name).stdout


@pytest.mark.parametrize("code", list(ReasonCode))
def test_every_reason_is_found_by_all_its_names_and_shown_whole(code: ReasonCode) -> None:
    info = CATALOGUE[code]
    for name in (code, info.title, *info.also_known_as, *map(str, info.meta_codes)):
        assert code in find(name)
    shown = json.loads(run("explain", code, "--json").stdout)
    assert shown["meaning"] == info.meaning
    assert shown["causes"] == list(info.causes)
    assert shown["meta_rules"] == list(info.meta_rules)
    told = run("explain", code).stdout
    assert all(rule in " ".join(told.split()) for rule in info.meta_rules)
    assert not re.search(" $", told, re.MULTILINE), "no line ends in blanks"
    assert all(f"  {sentence}\n" in told for sentence in (info.meaning, info.what_to_do)), "to be found by grep"


def test_a_reason_has_a_page_where_an_installation_is_known(message_log: str, tmp_path: Path) -> None:
    write_stack(tmp_path, message_log=message_log)
    known = run("explain", "131026", "--state-dir", tmp_path)
    assert f"page: {message_log}/reasons/RECIPIENT_NOT_ON_WHATSAPP\n" in known.stderr
    assert "page:" not in run("explain", "131026", "--state-dir", tmp_path / "nothing").stderr
    assert f"all are in {message_log}/reasons\n" in run("explain", "foo", "--state-dir", tmp_path).stderr


def test_a_misspelt_reason_is_not_found_and_the_like_are_named() -> None:
    answer = run("explain", "insuficient", "credit")
    assert (answer.exit_code, answer.stdout) == (3, "")
    assert "sendwhy explain INSUFFICIENT_CREDITS" in answer.stderr
    assert suggest("xqzvw") == []
    assert suggest("foo") == []
    unlike = run("explain", "xqzvw")
    assert (unlike.exit_code, "all are in docs/reasons.md" in unlike.stderr) == (3, True)


@pytest.mark.parametrize(
    ("message_id", "exit_code", "words"),
    [
        ("m-read", 0, ["READ", "+0.000 s", "send.requested", "2026-11-22 10:00:00 UTC", "/pages/m-read"]),
        (
            "m:failed",
            1,
            ["FAILED", "Insufficient credits", "balance 3, price 5", "+2.400 s", "/w/demo/messages/m%3Afailed"],
        ),
        ("m-waiting", 0, ["WAITING", "RATE_LIMIT_EXCEEDED", "until 2026-11-22 11:00:00 UTC", "What to do: "]),
        ("m-later", 0, ["WAITING", "waits for its own time", "until 2026-11-22 11:00:00 UTC"]),
        ("m-paused", 0, ["paused since 2026-11-22 10:00:00 UTC", "Don't send it again"]),
    ],
)
def test_why_tells_the_timeline(
    message_id: str, exit_code: int, words: list[str], message_log: str, tmp_path: Path
) -> None:
    answer = run("why", message_id, "--state-dir", write_stack(tmp_path, message_log=message_log))
    assert answer.exit_code == exit_code
    assert not [word for word in words if word not in " ".join(answer.stdout.split())]
    assert answer.stdout.splitlines()[-1].startswith(message_log)
    as_json = run("why", message_id, "--json", "--state-dir", tmp_path)
    assert (as_json.exit_code, json.loads(as_json.stdout)) == (exit_code, MESSAGES[message_id])


def test_what_waits_is_not_told_as_expired(message_log: str, tmp_path: Path) -> None:
    write_stack(tmp_path, message_log=message_log)
    for message_id in ("m-paused", "m-later"):
        told = run("why", message_id, "--state-dir", tmp_path)
        assert "EXPIRED" not in told.stdout + told.stderr
    paused = " ".join(run("why", "m-paused", "--state-dir", tmp_path).stdout.split())
    assert (
        "until somebody resumes its number or campaign; it fails at 2026-11-23 10:00:00 UTC if it still waits" in paused
    )
    held = run("why", "m-waiting", "--state-dir", tmp_path)
    assert held.stderr == f"next: sendwhy explain RATE_LIMIT_EXCEEDED --state-dir {tmp_path}\n"


def test_why_tells_what_it_could_not_find_or_reach(message_log: str, tmp_path: Path) -> None:
    assert run("why", "m", "--state-dir", tmp_path).exit_code == 5
    write_stack(tmp_path, message_log=message_log)
    unknown = run("why", "wamid.1=", "--state-dir", tmp_path)
    assert (unknown.exit_code, f"sendwhy messages -q wamid.1= --state-dir {tmp_path}" in unknown.stderr) == (3, True)
    assert run("why", "m-read", "--workspace", "../demo", "--state-dir", tmp_path).exit_code == 3
    write_stack(tmp_path, message_log=message_log, token="wrong")
    assert run("why", "m-read", "--state-dir", tmp_path).exit_code == 4
    write_stack(tmp_path, message_log="http://127.0.0.1:1")
    unreachable = run("why", "m-read", "--state-dir", tmp_path)
    assert (unreachable.exit_code, unreachable.stdout) == (5, "")
    assert "doesn't answer" in unreachable.stderr
    assert f"(what is wrong: sendwhy doctor --state-dir {tmp_path})" in unreachable.stderr


def test_why_says_which_times_are_by_metas_clock_and_cuts_notes(message_log: str, tmp_path: Path) -> None:
    answer = run("why", "m-clocks", "--state-dir", write_stack(tmp_path, message_log=message_log))
    lines = [line for line in answer.stdout.splitlines() if " s  " in line]
    assert [("(Meta's clock)" in line) for line in lines] == [False, False, True, True, True, False]
    assert len(answer.stdout.splitlines()) == 1 + len(lines) + 1
    # A note is cut at 100 letters; where no terminal shows it, by nothing else.
    assert 100 < max(map(len, lines)) <= 150


def test_why_begins_with_the_request_and_tells_times_in_one_shape(message_log: str, tmp_path: Path) -> None:
    shown = run("why", "m-late", "--state-dir", write_stack(tmp_path, message_log=message_log)).stdout
    rows = [line.split("  ") for line in shown.splitlines() if " s  " in line]
    assert [row[0] for row in rows] == ["+0.000 s", "-1.000 s", "+1.000 s", "+2.000 s"]
    assert "  2026-11-22 10:00:00 UTC\n" in shown
    assert "until 2026-11-22 11:00:00 UTC" in shown


def test_hints_name_the_state_directory_unless_it_is_the_usual_one(
    message_log: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_stack(tmp_path, message_log=message_log)
    (tmp_path / "a b").symlink_to(tmp_path)
    hint = f"next: sendwhy explain INSUFFICIENT_CREDITS --state-dir '{tmp_path}/a b'\n"
    assert run("why", "m:failed", "--state-dir", tmp_path / "a b").stderr == hint
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".state").symlink_to(tmp_path)
    assert run("why", "m:failed").stderr == "next: sendwhy explain INSUFFICIENT_CREDITS\n"


def test_where_only_the_demo_runs_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("why", "m").stderr == "sendwhy: no stack runs in .state; start one with: sendwhy up --state-dir .state\n"
    (tmp_path / ".state" / "demo").mkdir(parents=True)
    write_stack(tmp_path / ".state" / "demo", message_log="http://127.0.0.1:1")
    answer = run("why", "m")
    assert answer.exit_code == 5
    assert answer.stderr == "sendwhy: no stack runs in .state; the demo runs: add --state-dir .state/demo\n"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"kafka": 1}'])
def test_a_spoilt_stack_file_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text(content)
    answer = run("why", "m", "--state-dir", tmp_path)
    assert answer.exit_code == 5
    assert "stack.json can't be read" in answer.stderr


@pytest.mark.parametrize(
    ("line", "key"),
    [
        (b'{"to": {"contact_id": "c1", "phone": "+52"}}', b"c1"),
        (b'{"to": {"phone": "+52"}}', b"+52"),
        (b'{"to": {"contact_id": 7}}', None),
        (b'{"to": "c1"}', None),
        (b'{"to": {}}', None),
        (b"[1]", None),
        (b"null", None),
        (b"{", None),
        (b"\xff\xfe", None),
        (b'{"to": {"phone": "\\ud800"}}', b"?"),
        (b"[" * 100_000, None),
    ],
)
def test_the_key_of_a_line(line: bytes, key: bytes | None) -> None:
    assert key_of(line) == key


@pytest.mark.parametrize("pair", ["billing", "billing=", "billing=x", "kafka=2", "billing=0"])
def test_impossible_replicas_are_a_usage_error(pair: str, tmp_path: Path) -> None:
    assert run("up", "--replicas", pair, "--state-dir", tmp_path).exit_code == 2


@pytest.mark.parametrize("command", ["up", "demo"])
@pytest.mark.parametrize("below", ["file", "file/state"])
def test_a_state_directory_that_cannot_be_is_a_usage_error(command: str, below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    answer = run(command, "--state-dir", tmp_path / below)
    assert answer.exit_code == 2
    assert answer.stderr.startswith(f"sendwhy: --state-dir {tmp_path / below} can't be used: ")
    assert answer.stderr.count("\n") == 1


def test_a_meta_url_that_is_none_is_a_usage_error(tmp_path: Path) -> None:
    answer = run("up", "--meta-url", "nonsense", "--state-dir", tmp_path / "state")
    assert (answer.exit_code, answer.stderr.count("\n")) == (2, 1)
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("report", ["", "none/out.json", "file/out.json"])
def test_a_report_that_cannot_be_written_is_told_before_anything_starts(report: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    answer = run("demo", "--exit", "--report", tmp_path / report, "--state-dir", tmp_path / "state")
    assert answer.exit_code == 2
    assert answer.stderr.startswith("sendwhy: --report ")
    assert not (tmp_path / "state").exists()


def test_where_no_demo_is_it_is_said_how_one_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    answer = run("demo", "--exit")
    where = "run this in the repository's folder, or name the demo's by --data"
    assert (answer.exit_code, answer.stderr) == (2, f"sendwhy: no demo is in demo: {where}\n")


def test_the_version_is_told() -> None:
    answer = run("--version")
    assert (answer.exit_code, answer.stdout) == (0, f"sendwhy {version('sendwhy-cli')}\n")


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    write_stack(tmp_path, message_log="http://127.0.0.1:1")
    answer = run("send", tmp_path / "none.jsonl", "--state-dir", tmp_path)
    assert answer.exit_code == 2
    assert "No such file" in answer.stderr


@pytest.mark.parametrize("begins", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_is_no_part_of_the_first_line(begins: bytes, tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_bytes(begins + b'{"message_id": "m1"}\r\n')
    with opened(file) as (lines, _):
        assert list(lines) == [b'{"message_id": "m1"}\r\n']


@pytest.mark.kafka
async def test_lines_are_published_as_they_are(kafka_bootstrap: str) -> None:
    await create_topic(kafka_bootstrap)
    lines = [
        b'{"to": {"phone": "+52"}, "n": 1}\n',
        b"\n",
        b"not json\r\n",
        b"x" * 5_000_000,
        b'{"to": {"contact_id": "c"}}',
    ]
    told: list[int] = []
    sent = await publish(kafka_bootstrap, lines, told.append)
    assert (sent.acknowledged, sent.unreadable, sent.too_large, sent.failed) == (3, 1, 1, 0)
    assert told == list(map(len, lines))
    assert await records(kafka_bootstrap, 3) == [
        (b"+52", b'{"to": {"phone": "+52"}, "n": 1}'),
        (None, b"not json"),
        (b"c", b'{"to": {"contact_id": "c"}}'),
    ]


async def create_topic(bootstrap: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    if "send.requested" in await admin.list_topics():
        await admin.delete_topics(["send.requested"])
    while "send.requested" in await admin.list_topics():
        pass
    await admin.create_topics([NewTopic("send.requested", num_partitions=1, replication_factor=1)])
    await admin.close()


async def records(bootstrap: str, count: int) -> list[tuple[bytes | None, bytes | None]]:
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap) as consumer:
        consumer.assign([TopicPartition("send.requested", 0)])
        await consumer.seek_to_beginning()
        read = [await consumer.getone() for _ in range(count)]
    return [(record.key, record.value) for record in read]


def test_kafka_that_is_not_there(tmp_path: Path) -> None:
    write_stack(tmp_path, message_log="http://127.0.0.1:1")
    answer = run("send", "-", "--state-dir", tmp_path, stdin="{}\n")
    assert answer.exit_code == 5
    assert "0 requests were acknowledged" in answer.stderr
