"""Requests that can't be used: what is told of them, kept of them, and erased with whom they are for.

INVALID_REQUEST takes no id: of one message there may be several, and a decision beside them. So each is kept as a
decision in a step of its own: where its record is read again, it is told again, whatever was decided meanwhile.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Annotated, Any

from pydantic import ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from sendwhy.events import (
    MAX_HORIZON,
    MessageId,
    Metadata,
    Origin,
    SenderId,
    SendRejected,
    SendRequested,
    To,
    Wire,
    WorkspaceId,
    event_id_of,
)
from sendwhy.metrics import Metric, Metrics
from sendwhy.postgres import Connection, Decision, MessageKey
from sendwhy.privacy import redacted_rejection
from sendwhy.reasons import ReasonCode, Service
from sendwhy.requests import Completed, Invalid, complete
from sendwhy.stage import Record
from sendwhy.topics import EVENT_RETENTION_DAYS, Outgoing, outgoing

from consent import erasures, store
from consent.contacts import Mark
from consent.decide import keep_until
from consent.phones import read_phone

# For as long as Kafka may give the record again, and a week.
KEPT = timedelta(days=EVENT_RETENTION_DAYS + 7)
KEY_LENGTH_MAX = 128


def _none_if_wrong(value: Any, read: ValidatorFunctionWrapHandler) -> Any:
    try:
        return read(value)
    except (ValueError, RecursionError):
        return None


_IfRight = WrapValidator(_none_if_wrong)


class Legible(Wire):
    """What can be read of a request that is wrong: its ids must be for its refusal to be told, the rest is echoed in
    it, each as far as it is right by itself."""

    message_id: MessageId
    workspace_id: WorkspaceId
    sender_id: Annotated[SenderId | None, _IfRight] = None
    to: Annotated[To | None, _IfRight] = None
    origin: Annotated[Origin | None, _IfRight] = None
    metadata: Annotated[Metadata | None, _IfRight] = None


def legible(record: Record[None]) -> Legible | None:
    try:
        return Legible.model_validate_json(record.value or b"")
    except ValidationError:
        return None


@dataclass(frozen=True)
class Unusable:
    """One record that can't be used, and what it told. `is_first`: nothing was decided under its id before it."""

    record: Record[Any]
    told: SendRequested | Legible
    invalid: Invalid
    is_first: bool

    @property
    def key(self) -> MessageKey:
        return self.told.workspace_id, self.told.message_id

    @cached_property
    def event(self) -> SendRejected:
        # By its bytes and place: the same broken bytes twice are two refusals, each told with its own time.
        digest = hashlib.sha256(self.record.value or b"").hexdigest()
        told = self.told
        return SendRejected(
            event_id=event_id_of(f"{digest}/{self.record.place}", "send.rejected"),
            occurred_at=self.record.at,
            workspace_id=told.workspace_id,
            message_id=told.message_id,
            sender_id=told.sender_id,
            to=told.to,
            origin=told.origin,
            service=Service.CONSENT,
            reason=self.invalid.reason,
            metadata=told.metadata or {},
        )

    @property
    def step(self) -> str:
        return f"{erasures.REFUSAL}{self.event.event_id}"

    @property
    def marks(self) -> tuple[Mark, ...]:
        """Whom it is for, as far as that can be read; else whom its record's key names (contract.md: the contact id or
        phone)."""
        to = self.told.to
        if to is not None:
            return _marks(self.told.workspace_id, to.contact_id, to.phone)
        key = (self.record.key or b"").decode(errors="replace")[:KEY_LENGTH_MAX]
        return _marks(self.told.workspace_id, key, key)


def _marks(workspace: str, contact_id: str | None, phone: str | None) -> tuple[Mark, ...]:
    reading = read_phone(phone) if phone else None
    by_phone = (Mark(workspace, "phone", reading.phone.key),) if reading and reading.phone else ()
    return (*((Mark(workspace, "contact", contact_id),) if contact_id else ()), *by_phone)


def first_usable(
    records: Sequence[Record[SendRequested]], asked: Iterable[MessageKey]
) -> dict[tuple[MessageKey, int], int]:
    """The offset at which a batch first decides each of these messages, by message and partition."""
    wanted = set(asked)
    found: dict[tuple[MessageKey, int], int] = {}
    for record in records:
        key = (record.event.workspace_id, record.event.message_id)
        if key in wanted and isinstance(complete(record.event, record.at), Completed):
            found.setdefault((key, record.partition), record.offset)
    return found


async def refuse(
    connection: Connection, tagger: store.Tagger, metrics: Metrics, unusable: Sequence[Unusable], now: datetime
) -> Mapping[str, Outgoing]:
    """The rejections of those that are or were the first under their ids, by their steps. Those that were told before
    are told as they were."""
    if not unusable:
        return {}
    told = await store.refusals_of(connection, [(*one.key, one.step) for one in unusable])
    new = [one for one in unusable if one.is_first and one.step not in told]
    if not new:
        return told
    known = await erasures.erasures_of(connection, tagger, {mark for one in new for mark in one.marks})
    decisions: list[Decision] = []
    for_whom: list[tuple[MessageKey, Iterable[Mark], datetime]] = []
    late: list[tuple[str, str, erasures.Earlier]] = []
    for one in new:
        earlier = erasures.erased_since(one.record.at, one.marks, known)
        event = one.event if earlier is None else redacted_rejection(one.event, earlier.alias)
        record = outgoing(event, source=Service.CONSENT, trace=one.record.trace)
        decisions.append(Decision(*one.key, one.step, event.event_id, record, now + KEPT))
        if earlier is None:
            marks = [erasures.refused_mark(mark) for mark in one.marks]
            for_whom.append((one.key, marks, keep_until(one.record.at + MAX_HORIZON, now)))
        else:
            late.append((*one.key, earlier))
    await erasures.order_late(connection, late, now)
    await store.add_decided(connection, tagger, decisions, for_whom)
    metrics.inc(Metric.REJECTED, len(new), service=Service.CONSENT, reason=ReasonCode.INVALID_REQUEST)
    return {**told, **{one.step: one.outgoing for one in decisions}}
