"""Lists for people: statuses of messages that nobody knows, what unknown numbers say, and numbers that are silent."""

from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import AwareDatetime, BaseModel, JsonValue, StringConstraints, TypeAdapter, ValidationError
from sendwhy.access import Role
from sendwhy.events import Line, Moment, StatusUpdated
from sendwhy.http import AnyToken, Cursor, Viewer, cursor_of, position_of
from sendwhy.problems import Problem
from sendwhy.service import Runtime

from webhook_ingest.silence import WHAT_TO_DO, Cause

# A message of ours is known within seconds of its first status; the dispatcher believes a lost answer for ten minutes.
MATCH_WITHIN = timedelta(hours=1)
LIMIT_MAX = 500

_UNMATCHED = """
select u.sender_id, u.wamid, u.status, u.reading, u.observed_at, u.body,
       u.observed_at < clock_timestamp() - $1::interval as old
from sender s
cross join lateral (
    select * from seen_status t
    where t.sender_id = s.sender_id and t.body is not null and not t.joined
      and ($3::timestamptz is null
           or (t.observed_at, t.sender_id, t.wamid, t.status, t.reading) < ($3, $4, $5, $6, $7::bytea))
    order by t.observed_at desc, t.sender_id desc, t.wamid desc, t.status desc, t.reading desc
    limit $8
) u
where s.workspace_id = $2
order by u.observed_at desc, u.sender_id desc, u.wamid desc, u.status desc, u.reading desc
limit $8
"""
_UNCLAIMED = """
select event_id, sender_id, app_id, received_at, body from unclaimed
where $1::timestamptz is null or (received_at, event_id) < ($1, $2::uuid)
order by received_at desc, event_id desc
limit $3
"""
_SILENT = """
select s.sender_id, q.cause, q.since, q.evidence, q.judged_at
from sender s join silent_sender q using (sender_id)
where s.workspace_id = $1
order by q.since, s.sender_id
"""

_JSON: TypeAdapter[JsonValue] = TypeAdapter(JsonValue)
_Hex = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{2})*$")]
_UNMATCHED_PLACE: TypeAdapter[Any] = TypeAdapter(tuple[AwareDatetime, Line, Line, Line, _Hex])
_UNCLAIMED_PLACE: TypeAdapter[Any] = TypeAdapter(tuple[AwareDatetime, UUID])

Limit = Annotated[int, Query(ge=1, le=LIMIT_MAX)]


class UnmatchedStatus(BaseModel):
    """A status of a message that is not known to be ours. `note` says what to think of it."""

    sender_id: str
    provider_message_id: str
    status: str
    reason: str | None
    occurred_at: Moment
    observed_at: Moment
    by_other_software: bool
    note: str


class UnmatchedAnswer(BaseModel):
    items: list[UnmatchedStatus]
    next_cursor: str | None


class UnclaimedElement(BaseModel):
    """What was told about a number that nobody has registered: by which app, when, and the webhook with it alone."""

    event_id: str
    sender_id: str | None
    app_id: str
    received_at: Moment
    body: JsonValue


class UnclaimedAnswer(BaseModel):
    items: list[UnclaimedElement]
    next_cursor: str | None


class SilentSender(BaseModel):
    """A number of which nothing is heard although Meta took its messages: since when, why, and what to do."""

    sender_id: str
    cause: Cause
    since: Moment
    what_to_do: str
    evidence: dict[str, JsonValue]
    judged_at: Moment


class SilenceAnswer(BaseModel):
    items: list[SilentSender]


def routes(runtime: Runtime) -> APIRouter:
    router = APIRouter(prefix="/v1")

    @router.get("/workspaces/{w}/webhooks/unmatched")
    async def get_unmatched(caller: Viewer, cursor: Cursor = None, limit: Limit = 100) -> UnmatchedAnswer:
        """Statuses of messages that are not known to be ours, the latest first: of other software on the same number,
        or of a message whose acceptance has not reached us yet."""
        place = _position(cursor, _UNMATCHED_PLACE)
        before = (*place[:4], bytes.fromhex(place[4])) if place else (None,) * 5
        async with runtime.within(caller.workspace) as connection:
            rows = await connection.fetch(_UNMATCHED, MATCH_WITHIN, caller.workspace, *before, limit + 1)
        shown = rows[:limit]
        return UnmatchedAnswer(
            items=[_unmatched(row) for row in shown], next_cursor=_next(rows, shown, _UNMATCHED_PLACE, _unmatched_place)
        )

    @router.get("/webhooks/unclaimed")
    async def get_unclaimed(token: AnyToken, cursor: Cursor = None, limit: Limit = 100) -> UnclaimedAnswer:
        """What unknown numbers say, the latest first; it is read again once the number is registered, and kept for 14
        days. Whose it is nobody can tell: for administrators of all workspaces only."""
        if token.workspace != "*" or token.role < Role.ADMIN:
            raise Problem(403, "This needs the role admin for all workspaces.")
        before = _position(cursor, _UNCLAIMED_PLACE) or (None, None)
        async with runtime.pool.acquire(timeout=10) as connection:
            rows = await connection.fetch(_UNCLAIMED, *before, limit + 1)
        shown = rows[:limit]
        return UnclaimedAnswer(
            items=[_unclaimed(row) for row in shown], next_cursor=_next(rows, shown, _UNCLAIMED_PLACE, _unclaimed_place)
        )

    @router.get("/workspaces/{w}/webhooks/silence")
    async def get_silence(caller: Viewer) -> SilenceAnswer:
        """The workspace's numbers that are silent now, with cause and evidence."""
        async with runtime.within(caller.workspace) as connection:
            rows = await connection.fetch(_SILENT, caller.workspace)
        return SilenceAnswer(items=[_silent(row) for row in rows])

    return router


def _unmatched(row: Any) -> UnmatchedStatus:
    event = StatusUpdated.model_validate_json(row["body"])
    return UnmatchedStatus(
        sender_id=row["sender_id"],
        provider_message_id=row["wamid"],
        status=row["status"],
        reason=None if event.reason is None else event.reason.code,
        occurred_at=event.occurred_at,
        observed_at=row["observed_at"],
        by_other_software=row["old"],
        note=(
            "sent by other software on this number: no callback data of ours, and no acceptance within an hour"
            if row["old"]
            else "not known yet: it joins its message when the dispatcher's word of it comes"
        ),
    )


def _unmatched_place(row: Any) -> tuple[Any, ...]:
    return row["observed_at"], row["sender_id"], row["wamid"], row["status"], row["reading"].hex()


def _unclaimed(row: Any) -> UnclaimedElement:
    return UnclaimedElement(
        event_id=str(row["event_id"]),
        sender_id=row["sender_id"],
        app_id=row["app_id"],
        received_at=row["received_at"],
        body=_JSON.validate_json(row["body"]),
    )


def _unclaimed_place(row: Any) -> tuple[Any, ...]:
    return row["received_at"], row["event_id"]


def _silent(row: Any) -> SilentSender:
    cause = Cause(row["cause"])
    return SilentSender(
        sender_id=row["sender_id"],
        cause=cause,
        since=row["since"],
        what_to_do=WHAT_TO_DO[cause],
        evidence=TypeAdapter(dict[str, JsonValue]).validate_json(row["evidence"]),
        judged_at=row["judged_at"],
    )


def _next(rows: Any, shown: Any, kind: TypeAdapter[Any], place_of: Callable[[Any], Any]) -> str | None:
    return cursor_of(kind.dump_json(place_of(shown[-1])).decode()) if len(rows) > len(shown) else None


def _position(cursor: str | None, kind: TypeAdapter[Any]) -> Any:
    """A cursor's position; 422 for a cursor that isn't ours."""
    if cursor is None:
        return None
    try:
        return kind.validate_json(position_of(cursor))
    except ValidationError:
        raise Problem(422, "The cursor is not one of ours.", errors={"cursor": "is not one of ours"}) from None
