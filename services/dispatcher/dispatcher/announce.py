"""The dispatcher's own events, made from values. All go through the outbox: no Kafka record stands behind them."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from msgspec import Raw, Struct
from msgspec.json import Encoder
from pydantic import JsonValue, TypeAdapter
from sendwhy.events import (
    Reason,
    Scope,
    SenderUpdated,
    SendHeld,
    SendRecalled,
    SendRejected,
    Status,
    TemplateUpdated,
    event_id_of,
    milliseconds,
)
from sendwhy.privacy import ERASURE, UNNUMBERED_ALIAS, is_alias, redacted
from sendwhy.reasons import ReasonCode, Service
from sendwhy.topics import Outgoing, Topic, outgoing, record_of_event

from dispatcher.answers import HoldScope, Taken
from dispatcher.decide import Message, Recall, Waiting
from dispatcher.holds import Hold
from dispatcher.store import SenderRow, TemplateRow

HELD_ABOVE = timedelta(seconds=10)
_TRIED_AGAIN = frozenset({Waiting.RETRY, Waiting.RATE, Waiting.PAIR, Waiting.SYNC, Waiting.REPAIR})
Announcement = tuple[UUID, Outgoing]


class _To(Struct, gc=False):
    contact_id: str | None
    phone: str | None


class _Accepted(Struct, gc=False, kw_only=True):
    """A `StatusUpdated` that tells of a taken message, as it is written: its fields in their order."""

    event_id: str
    occurred_at: str
    observed_at: str
    message_id: str
    workspace_id: str
    sender_id: str
    provider_message_id: str
    service: Service = Service.DISPATCHER
    status: Status = Status.ACCEPTED
    reason: None = None
    pricing: None = None
    conversation: None = None
    extra: dict[str, str] | None = None
    to: _To
    origin: Raw
    metadata: Raw
    receipt_deadline: str
    template_category: str | None


_ENCODER = Encoder()
_METADATA = TypeAdapter(dict[str, JsonValue]).serializer


def _announce(
    event: SendRejected | SendHeld | SendRecalled | SenderUpdated | TemplateUpdated,
    trace: bytes | None = None,
) -> Announcement:
    return event.event_id, outgoing(event, source=Service.DISPATCHER, trace=trace)


def _name(message: Message) -> str:
    return "/".join(message.key)


def rejected(message: Message, why: Reason, now: datetime) -> Announcement:
    request = message.funded.request
    event = SendRejected(
        event_id=event_id_of(_name(message), "dispatcher.rejected"),
        occurred_at=now,
        message_id=request.message_id,
        workspace_id=request.workspace_id,
        sender_id=message.sender_id or request.sender_id,
        to=request.to,
        origin=request.origin,
        service=Service.DISPATCHER,
        reason=why,
        metadata=request.metadata,
    )
    return _announce(event, message.trace)


def accepted(
    message: Message,
    taken: Taken,
    *,
    at: datetime,
    now: datetime,
    category: str | None,
    deadline: datetime,
) -> Announcement:
    """One for every message, and so written without its model: in some half of the time. What Meta says beside the id
    is told on where it isn't just that it took the message."""
    request = message.funded.request
    event_id = event_id_of(_name(message), "dispatcher.accepted")
    said = taken.message_status
    told = _Accepted(
        event_id=str(event_id),
        occurred_at=milliseconds(at),
        observed_at=milliseconds(now),
        message_id=request.message_id,
        workspace_id=request.workspace_id,
        sender_id=message.sender_id,
        provider_message_id=taken.wamid,
        extra=None if said in (None, "accepted") else {"message_status": said},
        to=_To(request.to.contact_id, message.funded.resolved.phone or request.to.phone),
        origin=Raw(request.origin.to_json()),
        metadata=Raw(_METADATA.to_json(request.metadata)),
        receipt_deadline=milliseconds(deadline),
        template_category=category,
    )
    return event_id, record_of_event(
        Topic.STATUS_UPDATED,
        request.message_id.encode(),
        _ENCODER.encode(told),
        told.event_id,
        at,
        source=Service.DISPATCHER,
        trace=message.trace,
    )


def recalled(message: Message, recall: Recall, now: datetime) -> Announcement:
    funded = message.funded
    if recall.contact.source == ERASURE and not message.is_erased:
        contact_id = recall.contact.contact_id
        funded = redacted(funded, contact_id if is_alias(contact_id) else UNNUMBERED_ALIAS)
    event = SendRecalled(
        event_id=event_id_of(_name(message), "dispatcher.recalled"),
        occurred_at=now,
        funded=funded,
        contact=recall.contact,
    )
    return _announce(event, message.trace)


def held(
    message: Message, cause: ReasonCode, waiting_for: Waiting, now: datetime, until: datetime | None
) -> Announcement | None:
    """Said once a message and cause, as soon as it waits above 10 s for it. `until` is the latest moment: where a wait
    ends in another try, that is the message's expiry."""
    since = (message.waiting_since if message.waiting_for is waiting_for else None) or now
    if waiting_for in message.told or (until is not None and until - since <= HELD_ABOVE):
        return None
    expires_at = message.funded.expires_at
    until = expires_at if waiting_for in _TRIED_AGAIN else until and min(until, expires_at)
    return _message_held(message, cause, waiting_for, now, since, until)


def outcome_awaited(message: Message, called_at: datetime, until: datetime, now: datetime) -> Announcement:
    """Whether Meta took the call that began then only a receipt can tell, until the message is given up."""
    return _message_held(message, ReasonCode.SEND_OUTCOME_UNKNOWN, Waiting.OUTCOME, now, called_at, until)


def _message_held(
    message: Message, cause: ReasonCode, waiting_for: Waiting, now: datetime, since: datetime, until: datetime | None
) -> Announcement:
    event = SendHeld(
        event_id=event_id_of(_name(message), f"dispatcher.held.{waiting_for}"),
        occurred_at=now,
        workspace_id=message.funded.workspace_id,
        message_id=message.funded.message_id,
        sender_id=message.sender_id,
        cause=cause,
        scope=Scope(kind="message", id=message.funded.message_id),
        since=since,
        until=until,
    )
    return _announce(event, message.trace)


def sender_paused(row: SenderRow, now: datetime) -> Announcement:
    event = SendHeld(
        event_id=event_id_of(f"{row.sender.sender_id}/{row.version}", "dispatcher.paused"),
        occurred_at=now,
        workspace_id=row.sender.workspace_id,
        sender_id=row.sender.sender_id,
        cause=ReasonCode.EXPIRED_BEFORE_SENDING,
        scope=Scope(kind="sender", id=row.sender.sender_id),
        since=row.sender.paused_at or now,
    )
    return _announce(event)


def sender_paced(workspace_id: str, sender_id: str, since: datetime, until: datetime, now: datetime) -> Announcement:
    """More waits than the number may send in 10 s; with `until` now, that is over."""
    event = SendHeld(
        event_id=event_id_of(f"{sender_id}/{now.isoformat()}", "dispatcher.paced"),
        occurred_at=now,
        workspace_id=workspace_id,
        sender_id=sender_id,
        cause=ReasonCode.RATE_LIMIT_EXCEEDED,
        scope=Scope(kind="sender", id=sender_id),
        since=since,
        until=until,
    )
    return _announce(event)


def senders_held(hold: Hold, rows: Sequence[SenderRow], now: datetime) -> list[Announcement]:
    """One event for an account; a portfolio is told by its accounts and a token by its senders, since the contract
    knows no other scopes. `until` is told only where Meta told it: a try may find that the hold goes on."""
    if hold.scope.held is HoldScope.ACCOUNT:
        scopes: list[tuple[Scope, str | None]] = [(Scope(kind="account", id=hold.scope_id), None)]
    elif hold.scope is HoldScope.PORTFOLIO:
        scopes = [(Scope(kind="account", id=one), None) for one in sorted({row.sender.waba_id for row in rows})]
    else:
        scopes = [(Scope(kind="sender", id=row.sender.sender_id), row.sender.sender_id) for row in rows]
    return [
        _announce(
            SendHeld(
                event_id=event_id_of(
                    f"{hold.workspace_id}/{scope.kind}/{scope.id}/{hold.cause.code}/{now.isoformat()}",
                    "dispatcher.hold",
                ),
                occurred_at=now,
                workspace_id=hold.workspace_id,
                sender_id=sender_id,
                cause=hold.cause.code,
                scope=scope,
                since=hold.since,
                until=hold.until,
            )
        )
        for scope, sender_id in scopes
    ]


def campaign_held(workspace_id: str, campaign_id: str, now: datetime, until: datetime | None = None) -> Announcement:
    """An operator's pause; with `until` now, its end."""
    event = SendHeld(
        event_id=event_id_of(f"{workspace_id}/{campaign_id}/{now.isoformat()}", "dispatcher.held"),
        occurred_at=now,
        workspace_id=workspace_id,
        cause=ReasonCode.EXPIRED_BEFORE_SENDING,
        scope=Scope(kind="campaign", id=campaign_id),
        since=now,
        until=until,
    )
    return _announce(event)


def senders_updated(rows: Iterable[SenderRow], now: datetime) -> list[Announcement]:
    return [_announce(_sender_updated(row, now)) for row in rows]


def _sender_updated(row: SenderRow, now: datetime) -> SenderUpdated:
    sender = row.sender
    return SenderUpdated(
        event_id=event_id_of(f"{sender.sender_id}/{row.version}", "sender.updated"),
        occurred_at=now,
        sender_id=sender.sender_id,
        workspace_id=sender.workspace_id,
        version=row.version,
        waba_id=sender.waba_id,
        portfolio_id=sender.portfolio_id,
        app_id=row.app_id,
        default=row.is_default,
        display_phone_number=row.display_phone_number,
        quality=sender.quality,
        messages_per_second=sender.messages_per_second,
        messaging_limit=sender.messaging_limit,
        hold=None if sender.hold is None else sender.hold.model_dump(mode="json"),
        paused=sender.paused_at is not None,
        synced_at=sender.templates_synced_at,
    )


def templates_updated(rows: Iterable[TemplateRow], now: datetime) -> list[Announcement]:
    return [_announce(_template_updated(row, now)) for row in rows]


def _template_updated(row: TemplateRow, now: datetime) -> TemplateUpdated:
    template = row.template
    return TemplateUpdated(
        event_id=event_id_of(f"{row.waba_id}/{template.name}/{template.language}/{row.version}", "template.updated"),
        occurred_at=now,
        waba_id=row.waba_id,
        name=template.name,
        language=template.language,
        version=row.version,
        status=template.status,
        category=template.category,
        parameter_format=row.parameter_format,
        components=[dict(part) for part in template.components],
        quality=row.quality,
        rejected_reason=template.rejected_reason,
        said_by=template.said_by,
        said_at=template.said_at or now,
        synced_at=row.synced_at,
    )
