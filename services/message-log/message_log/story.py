"""What a message went through, read from its events: waits, tries at Meta, and what Meta was asked to send. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from pydantic import JsonValue
from sendwhy.reasons import Service

from message_log.view import MessageDetail, read_moment

_GOES_ON = frozenset({"held", "accepted", "sent", "delivered", "read", "rejected", "failed", "recalled"})


@dataclass(frozen=True, slots=True)
class Wait:
    """`until`: as it was told when it began, None until somebody repairs the cause. `ended`: when the next thing
    happened, None while it lasts or where nobody told. `scheduled`: the request itself asked for `until`."""

    cause: str
    scope: str
    since: datetime
    until: datetime | None
    ended: datetime | None
    scheduled: bool = False


def waits_of(message: MessageDetail) -> list[Wait]:
    """Each wait that was told, the first first; the one that holds now too, also where it is a hold of many."""
    waits = []
    for position, event in enumerate(message.events):
        if event.kind != "held":
            continue
        told = event.model_extra or {}
        scope = told.get("scope")
        later = (one.at for one in message.events[position + 1 :] if one.kind in _GOES_ON)
        waits.append(
            Wait(
                cause=str(told.get("cause")),
                scope=str(scope.get("kind")) if isinstance(scope, Mapping) else "message",
                since=read_moment(told.get("since")) or event.at,
                until=read_moment(told.get("until")),
                ended=next(later, None),
            )
        )
    now = message.waiting
    if now is not None and all((wait.cause, wait.since) != (now.cause, now.since) for wait in waits):
        scope = "message" if now.scheduled else "many"
        waits.append(Wait(now.cause, scope, now.since, now.until, None, now.scheduled))
    return waits


def tries_of(message: MessageDetail) -> list[dict[str, JsonValue]]:
    """The calls to Meta, as far as events tell: the evidence of what failed has them, and `accepted` tells of the last.

    Each has `at` and `result`, and beside them whatever of code, http_status, detail and cause was told."""
    evidence = message.reason.evidence if message.reason else {}
    found = evidence.get("tries") or [evidence.get("last_try")]
    tries = [dict(one) for one in found if isinstance(one, dict) and one] if isinstance(found, list) else []
    if not tries and message.reason and message.reason.meta and message.service == Service.DISPATCHER:
        meta = message.reason.meta.model_dump(exclude_none=True)
        tries.append({"result": "refused", "detail": message.reason.detail, **meta})
    for event in message.events:
        if event.kind == "accepted" and event.service == Service.DISPATCHER:
            wamid = (event.model_extra or {}).get("provider_message_id")
            tries.append({"at": event.at.isoformat(), "result": "taken", "wamid": wamid})
    return tries


def content_of(message: MessageDetail) -> JsonValue:
    """What Meta is asked to send: the request's content, as the last service that passed it on had it."""
    for event in reversed(message.events):
        told = event.model_extra or {}
        request = told.get("request") if event.kind in ("funded", "consented") else told
        if event.kind in ("funded", "consented", "requested") and isinstance(request, dict) and "content" in request:
            content: JsonValue = request["content"]
            return content
    return None
