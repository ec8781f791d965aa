"""docs/how-to/back-up-and-restore.md, rehearsed: its commands are run as they stand there.

Backup, traffic, a crash of everything, the older databases restored, traffic again; judged by what Meta was asked, the
topics, the log, the ledger.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from held_stack import HeldStack
from local_stack.postgres import binary
from outside import Json, Outside, outside, until
from test_guides import steps

GUIDE = "how-to/back-up-and-restore.md"
BACKUP, RESTORE, MIGRATE, REWIND = range(4)
BY_OPERATOR, BY_STOP, POOR = "told-us-no", "wrote-stop", "poor"


@pytest.fixture
async def stack(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[HeldStack]:
    monkeypatch.setenv("SENDWHY_UNKNOWN_OUTCOME_SECONDS", "20")
    # Not pytest's own folder: PostgreSQL's user must get in.
    folder = Path(tempfile.mkdtemp(prefix="sendwhy-recovery-"))
    held = HeldStack(folder / "state")
    try:
        await held.start()
        yield held
    finally:
        await held.stop()
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Reader:
    """Somebody who follows the guide, step by step."""

    stack: HeldStack
    folder: Path

    def follow(self, step: int) -> str:
        block = list(steps(GUIDE))[step]
        server = urlsplit(self.stack.postgres_url)
        told = {
            "PGHOST": server.hostname or "",
            "PGPORT": str(server.port),
            "PGUSER": server.username or "",
            "PGPASSWORD": server.password or "",
            "DUMPS": str(self.folder),
            "SETTINGS": str(self.folder / "settings"),
            "PATH": f"{binary('psql').parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        command = ["bash", "-e", "-c", block.text]
        done = subprocess.run(command, env=os.environ | told, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, f"{block.text}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr


@pytest.fixture
def reader(stack: HeldStack, tmp_path: Path) -> Reader:
    stack.write_settings(tmp_path / "settings")
    return Reader(stack, tmp_path)


@pytest.mark.stack
@pytest.mark.timeout(900)
async def test_an_older_database_sends_nothing_twice_and_forgets_no_no(stack: HeldStack, reader: Reader) -> None:
    async with outside(stack.file) as user:
        phones = await before_the_backup(user)
        reader.follow(BACKUP)
        await after_the_backup(user, phones)
        before = await Facts.of(user)
        await stack.kill_services()
        # Upstreams go on.
        await user.publish(user.request("while-down", "old-friend"))
        reader.follow(RESTORE)
        await no_service_starts(stack)
        reader.follow(MIGRATE)
        reader.follow(REWIND)
        await stack.serve()
        await judge(user, before)


async def before_the_backup(user: Outside) -> dict[str, str]:
    """Returns people's phones."""
    await user.set_up(credits=10)
    people = ["old-friend", "waits-1", "waits-2", BY_OPERATOR, BY_STOP]
    phones = {name: user.person() for name in people}
    await user.contacts(phones.items())
    await user.publish(user.request("first", "old-friend"))
    assert await user.settled(["first"]) == {"first": ("read", None)}
    # These wait while the backup is made, and are sent after it: the older database takes them for waiting.
    await user.ok("POST", "dispatcher", f"/senders/{user.sender_id}/pause")
    later = (datetime.now(UTC) + timedelta(hours=2)).isoformat()
    await user.publish(
        user.request("waiting-1", "waits-1"),
        user.request("waiting-2", "waits-2"),
        user.request("scheduled", "old-friend", send_at=later),
    )
    for name in ("waiting-1", "waiting-2", "scheduled"):
        await user.settled_as([name], "waiting")
    return phones


async def after_the_backup(user: Outside, phones: dict[str, str]) -> None:
    """All that a service may do between its backup and a crash."""
    await user.ok("POST", "dispatcher", f"/senders/{user.sender_id}/resume")
    fails, refused, new = user.person(), user.person(), user.person()
    await user.sim("PUT", f"/recipients/{fails}", {"scenario": "failed_131026"})
    no = {"message": "Message undeliverable", "type": "OAuthException", "code": 131026, "fbtrace_id": "A"}
    answer = {"scenario": "answer", "http_status": 400, "body": {"error": no}}
    await user.sim("PUT", f"/recipients/{refused}", answer)
    await user.contacts([("fails", fails), ("refused", refused)])
    await user.contact("new", new)
    names = ["new", "fails", "refused", "old-friend", BY_OPERATOR, BY_STOP]
    await user.publish(*(user.request(f"to-{name}", name) for name in names))
    await user.settled(["waiting-1", "waiting-2", *(f"to-{name}" for name in names)])
    await user.ok(
        "POST", "consent", f"/contacts/{BY_OPERATOR}/unsubscribe", {"source": "phone call", "proof": "call 3"}
    )
    stop = {"phone_number_id": user.sender_id, "from": phones[BY_STOP].removeprefix("+")}
    await user.sim("POST", "/inbound", stop | {"message": {"type": "text", "text": {"body": "STOP"}}})

    async def stopped() -> bool:
        contact = await user.ok("GET", "consent", f"/contacts/{BY_STOP}")
        return bool(contact["marketing_state"] == "UNSUBSCRIBED")

    await until(stopped, "the STOP is heard")
    # Until nothing is left; then more is bought.
    balance = await user.balance()
    await user.publish(*(user.request(f"{POOR}-{number}", "old-friend") for number in range(balance + 2)))
    await user.settled([f"{POOR}-{number}" for number in range(balance + 2)])
    await user.ok("POST", "billing", "/top-ups", {"credits": 50, "reference": "invoice 8"}, **{"idempotency-key": "8"})
    await user.publish(user.request("rich", "old-friend"))
    await user.settled(["rich"])


@dataclass
class Facts:
    """What has been, before the crash: by message its outcome and how often Meta was called, and the money."""

    outcomes: Json
    calls: Counter[str]
    rejections: dict[str, set[str]]
    balance: int
    kinds: Counter[tuple[str, str]]

    @classmethod
    async def of(cls, user: Outside) -> "Facts":
        requested = {event["message_id"] for event in await user.events("send.requested")}
        outcomes = await user.settled(requested - {"scheduled"})
        await until(lambda: nothing_is_reserved(user), "all that was sent is paid")
        rejections: dict[str, set[str]] = {}
        for event in await user.events("send.rejected"):
            rejections.setdefault(event["message_id"], set()).add(event["reason"]["code"])
        entries = await user.ledger()
        assert sum(entry["amount"] for entry in entries) == await user.balance()
        kinds = Counter((entry["message_id"], entry["kind"]) for entry in entries if entry["message_id"])
        calls = Counter(row["biz_opaque_callback_data"].split(":", 2)[2] for row in await user.calls())
        return cls(outcomes, calls, rejections, await user.balance(), kinds)


async def nothing_is_reserved(user: Outside) -> bool:
    """But for what is scheduled."""
    account: Json = await user.ok("GET", "billing", "/account")
    return bool(account["reserved"] == 1)


async def no_service_starts(stack: HeldStack) -> None:
    names = ("dispatcher", "billing", "consent", "webhook-ingest", "message-log")
    for name in names:
        stack.start_service(name)
    for name in names:
        assert await stack.exit_code(name) == 2
        said = (stack.logs / f"{name}.log").read_text()
        assert "the database is older than the group's offsets" in said
        assert f"python -m {name.replace('-', '_')} rewind" in said


async def judge(user: Outside, before: Facts) -> None:
    await user.settled(["while-down"])
    # Whoever said no after the backup isn't written to; who became known after it is.
    await user.publish(*(user.request(f"again-{name}", name) for name in (BY_OPERATOR, BY_STOP, "new")))
    again = await user.settled([f"again-{name}" for name in (BY_OPERATOR, BY_STOP, "new")])
    no = ("failed", "CUSTOMER_IS_NOT_OPTED_IN")
    assert again == {f"again-{BY_OPERATOR}": no, f"again-{BY_STOP}": no, "again-new": ("read", None)}
    # Longer than what nobody knows is waited for.
    await until(lambda: no_fate_is_open(user), "no message's fate is open")
    after = await Facts.of(user)
    assert {one: after.outcomes[one] for one in before.outcomes} == before.outcomes
    assert after.outcomes["while-down"] == ("read", None)
    assert {one: after.calls[one] for one in before.calls} == before.calls
    assert max(after.calls.values()) == 1
    assert {one: codes for one, codes in after.rejections.items() if not one.startswith("again-")} == before.rejections
    assert max(after.kinds.values()) == 1
    assert {one: after.kinds[one] for one in before.kinds} == before.kinds
    # while-down and again-new are paid for.
    assert after.balance == before.balance - 2
    scheduled = await user.message("scheduled")
    assert scheduled is not None
    assert (scheduled["status"], scheduled["waiting"]["scheduled"]) == ("waiting", True)


async def no_fate_is_open(user: Outside) -> bool:
    answer = await user.ok("GET", "dispatcher", "/queue")
    return all(row["waiting_for"] not in ("unknown", "in_flight") for row in answer["items"])
