"""A message's way, stage by stage: where it is, where it hangs, what to look at. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from pydantic import BaseModel
from sendwhy.events import Moment, Status
from sendwhy.reasons import Service

from message_log import story, words
from message_log.language import gettext as _
from message_log.language import lazy, told
from message_log.view import EventView, MessageDetail, WaitingView

# An id of a test message tells when it was made: the log has nothing of it for its first moments.
_ID = re.compile(r"test-(\d{8}T\d{6}Z)-[0-9a-f]{8}")
FORGOTTEN_AFTER = timedelta(hours=1)


class Place(StrEnum):
    """The stages in their order."""

    REQUESTED = "requested"
    CONSENT = "consent"
    BILLING = "billing"
    QUEUE = "queue"
    META = "meta"
    SENT = "sent"
    DELIVERED = "delivered"
    READ = "read"


class State(StrEnum):
    """`passed`: by what came later, no event tells when. `here`: it is here now. `skipped`: it ended before."""

    DONE = "done"
    PASSED = "passed"
    HERE = "here"
    WAITING = "waiting"
    FAILED = "failed"
    AHEAD = "ahead"
    SKIPPED = "skipped"


class Stage(BaseModel):
    """`at`: when it was done, `seconds`: since the stage before; `by_meta`: Meta’s clock, in whole seconds."""

    place: Place
    title: str
    state: State
    at: Moment | None = None
    seconds: float | None = None
    by_meta: bool = False
    note: str | None = None


class Hang(BaseModel):
    """No progress for `seconds`: at which stage, and what to look at."""

    place: Place
    seconds: float
    detail: str
    remedy: str


class Journey(BaseModel):
    """`ended`: nothing more is awaited that must come. `status`: the message's; `unseen`: not in the log yet.
    `next_step`: for one that failed or waits."""

    message_id: str
    at: Moment
    status: str
    ended: bool
    stages: list[Stage]
    reason: str | None = None
    detail: str | None = None
    next_step: str | None = None
    hang: Hang | None = None
    url: str


@dataclass(frozen=True, slots=True)
class _Row:
    title: str
    kinds: frozenset[str]
    service: Service | None
    # Without progress for so long something hangs, and this is what to look at.
    patience: float
    remedy: str


_ROWS: Mapping[Place, _Row] = {
    Place.REQUESTED: _Row(
        lazy("Request arrived"),
        frozenset({"requested"}),
        None,
        10,
        lazy(
            "Look at Kafka, and at how far this log is behind (Diagnostics): the request waits to be published or read."
        ),
    ),
    Place.CONSENT: _Row(
        lazy("Consent decided"),
        frozenset({"consented"}),
        Service.CONSENT,
        10,
        lazy("Look at consent: whether it is alive, and how much waits for it (Diagnostics)."),
    ),
    Place.BILLING: _Row(
        lazy("Credits reserved"),
        frozenset({"funded"}),
        Service.BILLING,
        10,
        lazy("Look at billing: whether it is alive, and how much waits for it (Diagnostics)."),
    ),
    Place.QUEUE: _Row(
        lazy("Left the dispatcher’s queue"),
        frozenset(),
        Service.DISPATCHER,
        20,
        lazy("Look at the dispatcher and at the number: what stops it, and what else waits there."),
    ),
    Place.META: _Row(lazy("Accepted by Meta"), frozenset({"accepted"}), Service.DISPATCHER, 20, ""),
    Place.SENT: _Row(
        lazy("Sent: with WhatsApp’s servers"),
        frozenset({"sent"}),
        None,
        30,
        lazy(
            "Meta took it, and no webhook came: look at the webhook subscription (Diagnostics) and at the webhook log."
        ),
    ),
    Place.DELIVERED: _Row(
        lazy("Delivered to the device"),
        frozenset({"delivered"}),
        None,
        60,
        lazy(
            "Nothing is wrong on this side: the phone is off, offline, or has no WhatsApp any more. It comes by itself."
        ),
    ),
    Place.READ: _Row(lazy("Read"), frozenset({"read", "played"}), None, 0, ""),
}
_ORDER = list(Place)
_REJECTED_AT = {
    Service.CONSENT: Place.CONSENT,
    Service.BILLING: Place.BILLING,
}


def new_id(now: datetime, random_hex: str) -> str:
    return f"test-{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{random_hex[:8]}"


def made_at(message_id: str) -> datetime | None:
    """When a test message's id was made; None for any other id."""
    found = _ID.fullmatch(message_id)
    try:
        return datetime.strptime(found[1], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC) if found else None
    except ValueError:
        return None


def unseen(message_id: str, url: str, now: datetime) -> Journey | None:
    """Of a test message that was handed over a moment ago, of which the log has nothing yet."""
    made = made_at(message_id)
    if made is None or not timedelta(seconds=-60) < now - made < FORGOTTEN_AFTER:
        return None
    stages = [_blank(place, State.HERE if place is Place.REQUESTED else State.AHEAD) for place in _ORDER]
    stages[0].note = _("Handed over; it is not in the log yet.")
    hang = _hang(Place.REQUESTED, (now - made).total_seconds())
    return Journey(message_id=message_id, at=now, status="unseen", ended=False, stages=stages, hang=hang, url=url)


def of_message(message: MessageDetail, now: datetime, next_step: str | None) -> Journey:
    """`next_step`: what to do about its reason, or about what it waits for."""
    done = {place: event for place in _ORDER if (event := _event_of(message, place)) is not None}
    furthest = max((_ORDER.index(place) for place in done), default=-1)
    failure = _failed_at(message, furthest)
    stages = [_stage(place, index, done, furthest, failure) for index, place in enumerate(_ORDER)]
    _mark_here(stages, message)
    _fill_gaps(stages)
    ended = failure is not None or message.status in ("delivered", "read")
    reason, waiting = message.reason, message.waiting
    return Journey(
        message_id=message.message_id,
        at=now,
        status=message.status,
        ended=ended,
        stages=stages,
        reason=told(reason.title) if reason else words.wait_title(waiting) if waiting else None,
        detail=reason.detail if reason else None,
        next_step=next_step,
        hang=None if ended or waiting else _hang_of(message, stages, now),
        url=message.url,
    )


def _event_of(message: MessageDetail, place: Place) -> EventView | None:
    kinds = _ROWS[place].kinds
    return next((event for event in message.events if event.kind in kinds), None)


def _failed_at(message: MessageDetail, furthest: int) -> int | None:
    """At which stage it ended, None where it did not fail."""
    if message.status != "failed":
        return None
    if message.service == Service.DISPATCHER:
        # Its own checks stop a message while it is in the queue; all else is Meta's answer, or none.
        place = Place.META if story.tries_of(message) else Place.QUEUE
    else:
        place = next((place for service, place in _REJECTED_AT.items() if service == message.service), Place.REQUESTED)
    return min(max(_ORDER.index(place), furthest + 1), len(_ORDER) - 1)


def _stage(place: Place, index: int, done: Mapping[Place, EventView], furthest: int, failure: int | None) -> Stage:
    if failure is not None and index >= failure:
        return _blank(place, State.FAILED if index == failure else State.SKIPPED)
    event = done.get(place)
    if event is None:
        return _blank(place, State.PASSED if index < (furthest if failure is None else failure) else State.AHEAD)
    stage = _blank(place, State.DONE)
    stage.at, stage.note = event.at, words.event_detail(event.model_dump(mode="json", exclude_none=True)) or None
    stage.by_meta = event.service == Service.WEBHOOK_INGEST and event.at.microsecond == 0
    return stage


def _blank(place: Place, state: State) -> Stage:
    return Stage(place=place, title=str(_ROWS[place].title), state=state)


def _mark_here(stages: Sequence[Stage], message: MessageDetail) -> None:
    """The first stage that is not behind it is where it is; and a failure says when and what."""
    for stage in stages:
        if stage.state is State.FAILED:
            stage.at = message.times.get(Status.FAILED)
            stage.note = told(message.reason.title) if message.reason else None
            return
        if stage.state is State.AHEAD:
            break
    else:
        return
    stage.state = State.HERE
    if message.waiting is not None:
        stage.state = State.WAITING
        stage.note = _wait_of(message.waiting)


def _wait_of(waiting: WaitingView) -> str:
    cause = words.wait_title(waiting)
    if waiting.scheduled and waiting.until is not None:
        return _("%(cause)s, from %(time)s on", cause=cause, time=words.absolute(waiting.until))
    if waiting.until is None:
        return _("%(cause)s, until %(end)s", cause=cause, end=words.open_end(waiting.cause))
    return _("%(cause)s, until %(time)s at the latest", cause=cause, time=words.absolute(waiting.until))


def _fill_gaps(stages: Sequence[Stage]) -> None:
    before: datetime | None = None
    for stage in stages:
        if stage.at is not None:
            stage.seconds = None if before is None else (stage.at - before).total_seconds()
            before = stage.at


def _hang_of(message: MessageDetail, stages: Sequence[Stage], now: datetime) -> Hang | None:
    here = next((stage for stage in stages if stage.state is State.HERE), None)
    if here is None or here.place is Place.READ:
        return None
    moved = max((event.at for event in message.events), default=message.requested_at)
    return _hang(here.place, (now - moved).total_seconds())


def _hang(place: Place, seconds: float) -> Hang | None:
    row = _ROWS[place]
    if seconds <= row.patience:
        return None
    span = words.duration(seconds)
    detail = _("No progress for %(span)s: “%(stage)s” has not been told.", span=span, stage=row.title)
    if row.service:
        detail = _(
            "No progress for %(span)s: “%(stage)s” has not been told by %(service)s.",
            span=span,
            stage=row.title,
            service=row.service,
        )
    remedy = str(row.remedy or _ROWS[Place.QUEUE].remedy)
    return Hang(place=place, seconds=round(seconds, 1), detail=detail, remedy=remedy)
