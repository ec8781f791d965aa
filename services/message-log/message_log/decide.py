"""What became of a message, folded from events that come in any order and any number of times.

Every event tells a partial `MessageState`; `merge` joins two of them. It is commutative, associative and idempotent,
so all orders and repeats end in the same state (contract.md, "How to read them").
"""

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from enum import StrEnum
from functools import reduce, singledispatch
from typing import Any, NamedTuple, Self, TypeVar
from uuid import UUID

from msgspec import Raw, Struct, field
from msgspec.structs import replace
from pydantic import JsonValue
from sendwhy import plain
from sendwhy.events import (
    Origin,
    Reason,
    SendConsented,
    SendHeld,
    SendRecalled,
    SendRejected,
    SendRequested,
    Status,
    StatusUpdated,
    To,
    Wire,
)
from sendwhy.reasons import ReasonCode, Service

# consent stamps its INVALID_REQUEST with its own clock, Kafka the request with the broker's.
CLOCK_SKEW = timedelta(seconds=60)

K = TypeVar("K")
T = TypeVar("T")

_RECEIPT_RANK = {
    status: rank
    for rank, status in enumerate((Status.ACCEPTED, Status.SENT, Status.DELIVERED, Status.READ, Status.PLAYED))
}
_REACHED_PERSON = frozenset({Status.DELIVERED, Status.READ, Status.PLAYED})
_REJECTION_RANK = {ReasonCode.INVALID_REQUEST: 0, ReasonCode.SEND_OUTCOME_UNKNOWN: 1}
_RANK_REQUESTED, _RANK_ECHOED, _RANK_CONSENTED, _RANK_SENDER_USED = 1, 2, 3, 4


class Outcome(StrEnum):
    """Where a message stands, as stored. `open` (nothing decided yet) is shown as sending or waiting, by the clock."""

    OPEN = "open"
    ACCEPTED = "accepted"
    SENT = "sent"
    DELIVERED = "delivered"
    READ = "read"
    FAILED = "failed"


# The values below are Structs: some hundred are made for each message, of parts that have been checked as events, and a
# model would check them again each time that `store` reads them. Times are aware.


class Fact(Struct, frozen=True, omit_defaults=True):
    """Something known of the message. The higher rank stands; among equals the earliest told."""

    rank: int
    at: datetime
    # JSON, checked as part of an event.
    value: Any

    def or_other(self, other: "Fact") -> "Fact":
        """The one of both that stands."""
        if self.rank != other.rank:
            return self if self.rank > other.rank else other
        if self.at != other.at:
            return self if self.at < other.at else other
        return max(self, other, key=_spelt)


def _spelt(fact: Fact) -> tuple[str, str]:
    # By what an erasure leaves of it first: else forgetting and choosing could not change places.
    return repr(_impersonal(fact.value)), repr(fact.value)


class Verdict(Struct, frozen=True, omit_defaults=True):
    """A failure: who said it, when, and why. `observed_at`: when a webhook, or its replay, was read to say so."""

    service: Service
    at: datetime
    event_id: UUID
    reason: Reason
    observed_at: datetime | None = None

    @property
    def order(self) -> tuple[bool, datetime, datetime, UUID]:
        """Meta's word before what is inferred; then the one observed last: a better reading of the same word."""
        return self.reason.meta is not None, self.observed_at or self.at, self.at, self.event_id


class Waiting(Struct, frozen=True, omit_defaults=True):
    cause: ReasonCode
    since: datetime
    event_id: UUID
    until: datetime | None = None


# In a reason's place: nothing is wrong, the request asked for a later moment.
SCHEDULED = "SCHEDULED"


class Wait(NamedTuple):
    """What a message waits for by itself: a reason's code, or SCHEDULED. `until` None: until somebody repairs it."""

    cause: str
    since: datetime
    until: datetime | None

    def holds(self, now: datetime) -> bool:
        return self.until is None or self.until > now


class MessageState(Struct, frozen=True, omit_defaults=True):
    """All that is known of one message. `times`: when each receipt was first told, by Meta's clock."""

    first_at: datetime
    updated_at: datetime
    facts: dict[str, Fact] = field(default_factory=dict)
    times: dict[Status, datetime] = field(default_factory=dict)
    failed: Verdict | None = None
    rejected: Verdict | None = None
    waiting: Waiting | None = None
    # A service let it pass: an INVALID_REQUEST under the same id was about another, earlier request.
    passed: bool = False
    requested_last: datetime | None = None
    erased: bool = False

    @classmethod
    def at(cls, moment: datetime, **known: Any) -> Self:
        return cls(first_at=moment, updated_at=moment, **known)

    def known(self, name: str) -> Any:
        fact = self.facts.get(name)
        return None if fact is None else fact.value

    @property
    def receipt(self) -> Status | None:
        """The highest receipt."""
        return max(self.times, key=_RECEIPT_RANK.__getitem__, default=None)

    @property
    def verdict(self) -> Verdict | None:
        """The failure that stands, if one does."""
        if self.failed is None and self.rejected is None:
            return None
        receipt = self.receipt
        if receipt in _REACHED_PERSON:
            return None
        if self.failed is not None or receipt is not None:
            return self.failed
        return self.rejected if self._rejection_stands() else None

    @property
    def outcome(self) -> Outcome:
        if self.verdict is not None:
            return Outcome.FAILED
        receipt = self.receipt
        if receipt is None:
            return Outcome.OPEN
        return Outcome.READ if receipt is Status.PLAYED else Outcome(receipt)

    @property
    def left_at(self) -> datetime | None:
        """When it left our hands: its first receipt, or its failure. None while nothing is decided."""
        verdict = self.verdict
        first = min(self.times.values(), default=None)
        if verdict is None:
            return first
        return verdict.at if first is None else min(first, verdict.at)

    @property
    def expires_at(self) -> datetime | None:
        """From when on it isn't sent any more, once its request is known."""
        told = self.known("expires_at")
        return datetime.fromisoformat(told) if isinstance(told, str) else None

    @property
    def waits(self) -> Wait | None:
        """What was told last, or its own time: of the two what lasts longer. Either may be over (`Wait.holds`)."""
        last, asked = self.waiting, self.facts.get("send_at")
        told = None if last is None else Wait(last.cause, last.since, last.until)
        if asked is None:
            return told
        send_at = datetime.fromisoformat(str(asked.value))
        return told if told is not None and told.holds(send_at) else Wait(SCHEDULED, self.first_at, send_at)

    def _rejection_stands(self) -> bool:
        if self.rejected is None or self.rejected.reason.code is not ReasonCode.INVALID_REQUEST:
            return True
        corrected = self.requested_last is not None and self.requested_last > self.rejected.at + CLOCK_SKEW
        return not self.passed and not corrected


def merge(one: MessageState, other: MessageState) -> MessageState:
    """Both states' knowledge in one."""
    erased = one.erased or other.erased
    return MessageState(
        first_at=min(one.first_at, other.first_at),
        updated_at=max(one.updated_at, other.updated_at),
        facts=_forget_person(_join(one.facts, other.facts, Fact.or_other), erased),
        times=_join(one.times, other.times, min),
        failed=_say_less(_last(one.failed, other.failed, lambda v: v.order), erased),
        rejected=_say_less(
            _last(one.rejected, other.rejected, lambda v: (_rank_of(v.reason.code), v.at, v.event_id)), erased
        ),
        waiting=_last(one.waiting, other.waiting, lambda w: (w.since, w.event_id)),
        passed=one.passed or other.passed,
        requested_last=_last(one.requested_last, other.requested_last, lambda moment: moment),
        erased=erased,
    )


def fold(states: Iterable[MessageState]) -> MessageState:
    return reduce(merge, states)


def _join(one: dict[K, T], other: dict[K, T], choose: Callable[[T, T], T]) -> dict[K, T]:
    if not one or not other:
        return one or other
    both = dict(one)
    for name, value in other.items():
        both[name] = choose(both[name], value) if name in both else value
    return both


def _last(one: T | None, other: T | None, order: Callable[[T], Any]) -> T | None:
    if one is None or other is None:
        return other if one is None else one
    return max(one, other, key=order)


def _rank_of(code: ReasonCode) -> int:
    return _REJECTION_RANK.get(code, 2)


_PERSONAL_FACTS = ("phone", "metadata", "contact_id")
_PERSONAL_KEYS = ("thread_id", "enrollment_id")


def _forget_person(facts: dict[str, Fact], erased: bool) -> dict[str, Fact]:
    if not erased:
        return facts
    return {
        name: replace(fact, value=_impersonal(fact.value))
        for name, fact in facts.items()
        if name not in _PERSONAL_FACTS
    }


def _impersonal(value: JsonValue) -> JsonValue:
    """An origin without what leads to the person; anything else as it is."""
    if not isinstance(value, dict):
        return value
    return {name: part for name, part in value.items() if name not in _PERSONAL_KEYS}


def _say_less(verdict: Verdict | None, erased: bool) -> Verdict | None:
    """A failure's code stays; evidence, details and Meta's own words may quote a number or a name."""
    if verdict is None or not erased:
        return verdict
    why = verdict.reason
    meta = why.meta and why.meta.model_copy(update={"title": None, "details": None, "fbtrace_id": None})
    return replace(verdict, reason=why.model_copy(update={"detail": why.title, "evidence": {}, "meta": meta}))


def erased(moment: datetime) -> MessageState:
    """What a contact's erasure tells of each of its messages; it holds for what comes later too."""
    return MessageState.at(moment, erased=True)


@singledispatch
def tells(event: Wire | plain.Plain, at: datetime) -> MessageState | None:  # noqa: ARG001 - the other kinds use it
    """What an event tells of its message; None where it tells nothing. `at`: when Kafka stored it."""
    return None


@tells.register(SendRequested)
@tells.register(plain.Request)
def _(event: SendRequested | plain.Request, at: datetime) -> MessageState:
    known = _of_request(event)
    known["expires_at"] = event.expiry(at).isoformat()
    known["send_at"] = _later(event.send_at, at)
    return MessageState.at(at, facts=_facts(_RANK_REQUESTED, at, known), requested_last=at)


@tells.register(SendConsented)
@tells.register(plain.Consented)
def _(event: SendConsented | plain.Consented, at: datetime) -> MessageState:
    """Of send.funded too: it is a send.consented with a price."""
    known, resolved = _of_request(event.request), event.resolved
    if resolved.contact_id is not None:
        known["contact_id"] = resolved.contact_id
    if resolved.phone is not None:
        known["phone"] = resolved.phone
    known["purpose"] = resolved.purpose
    known["expires_at"] = event.expires_at.isoformat()
    known["send_at"] = _later(event.send_at, at)
    return MessageState.at(at, facts=_facts(_RANK_CONSENTED, event.occurred_at, known), passed=True)


@tells.register
def _(event: SendRejected, at: datetime) -> MessageState:
    facts = _facts_echoed(event.to, event.origin, event.metadata, event.occurred_at)
    facts |= _facts(_RANK_SENDER_USED, event.occurred_at, {"sender_id": event.sender_id})
    verdict = Verdict(service=event.service, at=event.occurred_at, event_id=event.event_id, reason=event.reason)
    return MessageState.at(at, facts=facts, rejected=verdict)


@tells.register
def _(event: SendHeld, at: datetime) -> MessageState | None:
    if event.scope.kind != "message":
        return None
    waiting = Waiting(cause=event.cause, since=event.since, until=event.until, event_id=event.event_id)
    facts = _facts(_RANK_SENDER_USED, event.occurred_at, {"sender_id": event.sender_id})
    return MessageState.at(at, facts=facts, waiting=waiting, passed=True)


@tells.register
def _(event: SendRecalled, at: datetime) -> MessageState | None:
    return tells(event.funded, at)


@tells.register
def _(event: StatusUpdated, at: datetime) -> MessageState:
    facts = _facts_echoed(event.to, event.origin, event.metadata, event.occurred_at)
    used = {"sender_id": event.sender_id, "wamid": event.provider_message_id}
    facts |= _facts(_RANK_SENDER_USED, event.occurred_at, used)
    if event.status is not Status.FAILED:
        return MessageState.at(at, facts=facts, times={event.status: event.occurred_at}, passed=True)
    if event.reason is None:
        return MessageState.at(at, facts=facts, passed=True)
    verdict = Verdict(
        service=event.service,
        at=event.occurred_at,
        event_id=event.event_id,
        reason=event.reason,
        observed_at=event.observed_at,
    )
    return MessageState.at(at, facts=facts, failed=verdict, passed=True)


@tells.register
def _(event: plain.Receipt, at: datetime) -> MessageState:
    said_at = event.occurred_at
    used = {"sender_id": event.sender_id, "wamid": event.provider_message_id}
    facts = _facts(_RANK_SENDER_USED, said_at, used)
    # Most, those of webhooks, echo nothing.
    if event.to is not None or event.origin is not None or bytes(event.metadata) != b"null":
        facts = _facts_echoed(event.to, event.origin, event.metadata, said_at) | facts
    times = {} if event.status is Status.FAILED else {event.status: said_at}
    return MessageState.at(at, facts=facts, times=times, passed=True)


def _later(send_at: datetime | None, at: datetime) -> str | None:
    """A moment that had not come when it was told. Most requests have none, and it is kept for the others only."""
    return send_at.isoformat() if send_at is not None and send_at > at else None


def _of_request(request: SendRequested | plain.Request) -> dict[str, JsonValue]:
    content = request.content
    name, language = request.template_id or (None, None)
    return {
        "contact_id": request.to.contact_id,
        "phone": request.to.phone,
        "origin": _origin(request.origin),
        "purpose": request.purpose,
        "sender_id": request.sender_id,
        "content_type": content["type"] if isinstance(content, dict) else content.type,
        "template": name,
        "language": language,
        "requested_at": request.requested_at.isoformat() if request.requested_at else None,
        "resend_of": request.resend_of,
        "metadata": _metadata(request.metadata),
    }


def _facts_echoed(
    to: To | plain.To | None,
    origin: Origin | plain.Origin | None,
    metadata: dict[str, JsonValue] | Raw | None,
    at: datetime,
) -> dict[str, Fact]:
    known: dict[str, JsonValue] = {"metadata": _metadata(metadata)}
    if to is not None:
        known |= {"contact_id": to.contact_id, "phone": to.phone}
    if origin is not None:
        known["origin"] = _origin(origin)
    return _facts(_RANK_ECHOED, at, known)


def _metadata(metadata: dict[str, JsonValue] | Raw | None) -> JsonValue:
    return (plain.told_by(metadata) if isinstance(metadata, Raw) else metadata) or None


def _origin(origin: Origin | plain.Origin) -> JsonValue:
    told = {
        "kind": origin.kind,
        "id": origin.id,
        "name": origin.name,
        "node_id": origin.node_id,
        "enrollment_id": origin.enrollment_id,
        "thread_id": origin.thread_id,
        "agent": origin.agent,
    }
    return {name: str(value) for name, value in told.items() if value is not None}


def _facts(rank: int, at: datetime, known: dict[str, Any]) -> dict[str, Fact]:
    return {name: Fact(rank, at, value) for name, value in known.items() if value is not None}
