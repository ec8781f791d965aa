"""`sendwhy test-message`: sends one message and follows it, stage by stage, to its tick or its reason."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import httpx

from sendwhy_cli.errors import CommandError, Exit
from sendwhy_cli.stack import RunningStack

LOOK_SECONDS = 0.25
# After the tick: whether it is read at once, as in a test it often is.
READ_WITHIN_SECONDS = 1.5
MARKS = {"done": "✓", "passed": "✓", "here": "…", "waiting": "⏸", "failed": "✗", "ahead": " ", "skipped": " "}
TEMPLATE = "hello_world"


@dataclass(frozen=True)
class Wanted:
    """`template`: NAME or NAME/LANGUAGE; `params`: the body's variables, in order."""

    to: str
    sender: str | None = None
    template: str | None = None
    text: str | None = None
    params: Sequence[str] = field(default_factory=tuple)


Journey = dict[str, Any]
Tell = Callable[[Journey], None]


class Follower:
    def __init__(self, stack: RunningStack, workspace: str) -> None:
        self._workspace = workspace
        self._stack = stack
        self._http = httpx.Client(headers={"Authorization": f"Bearer {stack.admin_token}"}, timeout=15, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def send(self, wanted: Wanted) -> str:
        """Returns the message's id. Raises CommandError."""
        body: dict[str, Any] = {
            "message_id": f"test-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}",
            "to": {"phone": wanted.to},
            "origin": {"kind": "test"},
            "content": self._content(wanted),
        }
        if wanted.sender is not None:
            body["sender_id"] = wanted.sender
        answer = self._call("POST", "message-log", "messages", json=body)
        message_id: str = answer["message_id"]
        return message_id

    def follow(self, message_id: str, seconds: float, tell: Tell) -> Journey:
        """Each state of its journey goes to `tell`; returns the last one: it has ended, or the time is over."""
        deadline = time.monotonic() + seconds
        while True:
            journey: Journey = self._call("GET", "message-log", f"messages/{quote(message_id, safe='')}/stages")
            tell(journey)
            if journey["ended"] and journey["status"] != "delivered":
                return journey
            if journey["ended"]:
                deadline = min(deadline, time.monotonic() + READ_WITHIN_SECONDS)
                seconds = 0.0
            if time.monotonic() >= deadline:
                return journey
            time.sleep(LOOK_SECONDS)

    def _content(self, wanted: Wanted) -> dict[str, Any]:
        if wanted.text is not None:
            return {"type": "text", "text": {"body": wanted.text}}
        name, _, language = (wanted.template or TEMPLATE).partition("/")
        template: dict[str, Any] = {"name": name, "language": {"code": language or self._language_of(name)}}
        if wanted.params:
            parameters = [{"type": "text", "text": each} for each in wanted.params]
            template["components"] = [{"type": "body", "parameters": parameters}]
        return {"type": "template", "template": template}

    def _language_of(self, name: str) -> str:
        """The only language in which the template can be sent; the dispatcher knows."""
        cursor, found = None, []
        while True:
            params = {"limit": "500", "status": "APPROVED"} | ({"cursor": cursor} if cursor else {})
            page = self._call("GET", "dispatcher", "templates", params=params)
            found += [each["language"] for each in page["items"] if each["name"] == name]
            if (cursor := page.get("next_cursor")) is None:
                break
        languages = sorted(set(found))
        if not languages:
            raise CommandError(Exit.NOT_FOUND, f"workspace {self._workspace} has no approved template {name}")
        if len(languages) > 1:
            raise CommandError(
                Exit.USAGE, f"{name} is there in {', '.join(languages)}: write --template {name}/{languages[0]}"
            )
        return str(languages[0])

    def _call(self, method: str, service: str, path: str, **more: Any) -> Any:
        base = self._stack.services.get(service, "")
        url = f"{base}/v1/workspaces/{quote(self._workspace, safe='')}/{path}"
        try:
            answer = self._http.request(method, url, **more)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise CommandError(Exit.UNREACHABLE, f"{service} at {base} doesn't answer: {error}") from error
        if answer.is_success:
            return answer.json()
        code = {401: Exit.NOT_ALLOWED, 403: Exit.NOT_ALLOWED, 404: Exit.NOT_FOUND, 422: Exit.USAGE}
        raise CommandError(code.get(answer.status_code, Exit.UNREACHABLE), f"{service}: {_refusal(answer)}")


def _refusal(answer: httpx.Response) -> str:
    try:
        told = answer.json()
        named = "; ".join(f"{each['field']}: {each['detail']}" for each in told.get("errors") or [])
        return f"{told['detail']} ({named})" if named else str(told["detail"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"it answered {answer.status_code}"


def lines_of(journey: Journey) -> list[str]:
    """A line for each stage that it has reached."""
    return [_line(stage) for stage in journey["stages"] if stage["state"] not in ("ahead", "skipped", "here")]


def _line(stage: dict[str, Any]) -> str:
    at = stage.get("at")
    clock = datetime.fromisoformat(at).astimezone(UTC).strftime("%H:%M:%S UTC") if at else " " * 12
    seconds = stage.get("seconds")
    gap = "" if seconds is None else "Meta's clock" if seconds < 0 or stage["by_meta"] else f"+{seconds:.3f} s"
    note = f"  {stage['note']}" if stage.get("note") and stage["state"] in ("failed", "waiting") else ""
    return f"{MARKS[stage['state']]} {clock}  {gap:>12}  {stage['title']}{note}"


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
