"""`sendwhy test-message`: sends one message and follows it, stage by stage, to its tick or its reason."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sendwhy_cli import terminal
from sendwhy_cli.client import Client
from sendwhy_cli.errors import CommandError, Exit
from sendwhy_cli.services import DISPATCHER, MESSAGE_LOG

if TYPE_CHECKING:
    from sendwhy_cli.commands.following import Content

LOOK_SECONDS = 0.25
# After the tick: whether it is read at once, as in a test it often is.
READ_WITHIN_SECONDS = 1.5
MARKS = {"done": "✓", "passed": "✓", "here": "…", "waiting": "⏸", "failed": "✗", "ahead": " ", "skipped": " "}
TEMPLATE = "hello_world"
TEMPLATES_MAX = 100_000


Journey = Mapping[str, Any]
Tell = Callable[[Journey], None]


def send(client: Client, to: str, content: Content) -> str:
    """Returns the message's id. Raises CommandError."""
    message_id = f"test-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
    body: dict[str, Any] = {
        "message_id": message_id,
        "to": {"phone": to},
        "origin": {"kind": "test"},
        "content": _content(client, content),
    }
    if content.sender is not None:
        body["sender_id"] = content.sender
    answer = client.ask("POST", MESSAGE_LOG, "messages", json=body)
    if not isinstance(answer, dict) or answer.get("message_id") != message_id:
        raise terminal.unknown_shape(ValueError("it doesn't name the message"))
    return message_id


def follow(client: Client, message_id: str, seconds: float, tell: Tell) -> Journey:
    """Each state of its journey goes to `tell`; returns the last one: it has ended, or the time is over. Raises
    CommandError."""
    deadline = time.monotonic() + seconds
    while True:
        journey: Journey = client.get(MESSAGE_LOG, "messages", message_id, "stages")
        try:
            tell(journey)
            has_ended, status = journey["ended"], journey["status"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise terminal.unknown_shape(error) from error
        if has_ended:
            deadline = min(deadline, time.monotonic() + READ_WITHIN_SECONDS)
        if (has_ended and status != "delivered") or time.monotonic() >= deadline:
            return journey
        time.sleep(LOOK_SECONDS)


def _content(client: Client, content: Content) -> dict[str, Any]:
    if content.text is not None:
        return {"type": "text", "text": {"body": content.text}}
    name, _, language = (content.template or TEMPLATE).partition("/")
    template: dict[str, Any] = {"name": name, "language": {"code": language or _language_of(client, name)}}
    if content.params:
        parameters = [{"type": "text", "text": each} for each in content.params]
        template["components"] = [{"type": "body", "parameters": parameters}]
    return {"type": "template", "template": template}


def _language_of(client: Client, name: str) -> str:
    """The only language in which the template can be sent; the dispatcher knows. Raises CommandError."""
    if DISPATCHER not in client.stack.services:
        sentence = f"in which language? write --template {name}/en_US; or set SENDWHY_DISPATCHER_URL, and it is found"
        raise CommandError(Exit.USAGE, sentence)
    listed = client.listed(DISPATCHER, "templates", params={"status": "APPROVED"}, limit=TEMPLATES_MAX)
    try:
        languages = sorted({str(each["language"]) for each in listed["items"] if each["name"] == name})
    except (KeyError, TypeError) as error:
        raise terminal.unknown_shape(error) from error
    if not languages:
        sentence = f"workspace {client.place.workspace} has no approved template {name}"
        raise CommandError(Exit.NOT_FOUND, f"{sentence}; it has: {client.place.command('templates --status approved')}")
    if len(languages) > 1:
        sentence = f"{name} is there in {', '.join(languages)}: write --template {name}/{languages[0]}"
        raise CommandError(Exit.USAGE, sentence)
    return languages[0]


def lines_of(journey: Journey) -> list[str]:
    """A line for each stage that it has reached."""
    return [_line(stage) for stage in journey["stages"] if stage["state"] not in ("ahead", "skipped", "here")]


def _line(stage: Mapping[str, Any]) -> str:
    at = stage.get("at")
    clock = terminal.moment(at, "%H:%M:%S UTC") if at else " " * 12
    seconds = stage.get("seconds")
    gap = "" if seconds is None else "Meta's clock" if seconds < 0 or stage["by_meta"] else f"+{seconds:.3f} s"
    note = f"  {stage['note']}" if stage.get("note") and stage["state"] in ("failed", "waiting") else ""
    return f"{MARKS.get(stage['state'], '?')} {clock}  {gap:>12}  {stage['title']}{note}"


def exit_of(journey: Journey) -> Exit:
    return Exit.DONE if journey["status"] in ("delivered", "read") else Exit.BAD_ANSWER


def ending_of(journey: Journey, seconds: float) -> list[str]:
    """What became of it, in words, and the next step."""
    if journey["status"] == "failed":
        told = [f"❌ FAILED  {journey['reason']}", journey.get("detail") or ""]
    elif journey["ended"]:
        return ["✓✓ READ" if journey["status"] == "read" else "✓✓ DELIVERED"]
    elif journey["status"] == "waiting":
        told = [f"⏸ WAITING  {journey['reason']}"]
    else:
        hang = journey.get("hang")
        told = [f"⏳ not there after {seconds:.0f} s", *([hang["detail"], hang["remedy"]] if hang else [])]
    if journey.get("next_step"):
        told.append(f"What to do: {journey['next_step']}")
    return [line for line in told if line]
