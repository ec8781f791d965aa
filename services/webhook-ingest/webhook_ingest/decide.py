"""What to make of what was told, given what is known: pure. Whose an element is, which statuses are new, where a
message stands on the ladder, and what silence means."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum
from uuid import UUID

from sendwhy.events import (
    CustomerUpdated,
    Event,
    Evidence,
    MessageReceived,
    Reason,
    Status,
    StatusUpdated,
    event_id_of,
    reason,
)
from sendwhy.reasons import ReasonCode, Service

from webhook_ingest.fragments import Delivery, Element, Report, StatusTold

# accepted < sent < delivered < read <= played; `failed` stands beside the ladder.
RANKS: Mapping[Status, int] = {
    Status.ACCEPTED: 0,
    Status.SENT: 1,
    Status.DELIVERED: 2,
    Status.READ: 3,
    Status.PLAYED: 4,
}
NO_RANK = -1
RANK_SENT = RANKS[Status.SENT]
RANK_DELIVERED = RANKS[Status.DELIVERED]

MessageKey = tuple[str, str]  # (sender_id, wamid)
StatusKey = tuple[str, str, str]  # (sender_id, wamid, status)


@dataclass(frozen=True, slots=True)
class Sender:
    """A number that we know: whose it is, and which app speaks for it (None: the dispatcher wasn't told)."""

    sender_id: str
    workspace_id: str
    waba_id: str
    app_id: str | None


class Standing(Enum):
    """What an element's signer is to its number or account."""

    OWN = "own"
    FOREIGN = "foreign"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Owner:
    standing: Standing
    workspace_id: str | None = None


def owner_of(number: str | None, waba: str, signer: str, senders: Iterable[Sender], *, only_app: bool) -> Owner:
    """Whose an element is. `senders` are those of that number or account; `only_app`: no other app is configured.

    A secret speaks only for its own app's numbers and accounts: else whoever knows one could forge for all.
    """
    judged = [(sender, _speaks_for(sender, signer, only_app)) for sender in senders]
    for sender, speaks in judged:
        if sender.sender_id == number:
            return Owner(speaks, sender.workspace_id if speaks is Standing.OWN else None)
    of_account = {speaks for sender, speaks in judged if sender.waba_id == waba}
    # An account that is its own proves nothing of a number that nobody has registered.
    if number is None and Standing.OWN in of_account:
        return Owner(Standing.OWN)
    return Owner(Standing.FOREIGN if of_account == {Standing.FOREIGN} else Standing.UNKNOWN)


def _speaks_for(sender: Sender, signer: str, only_app: bool) -> Standing:
    if sender.app_id is None:
        return Standing.OWN if only_app else Standing.UNKNOWN
    return Standing.OWN if sender.app_id == signer else Standing.FOREIGN


@dataclass(frozen=True, slots=True)
class Message:
    """Where a message of ours stands. workspace_id and message_id are None while only its wamid is known."""

    sender_id: str
    wamid: str
    workspace_id: str | None = None
    message_id: str | None = None
    rank: int = NO_RANK
    failed: bool = False
    delivered_at: datetime | None = None

    @property
    def key(self) -> MessageKey:
        return self.sender_id, self.wamid


@dataclass(frozen=True, slots=True)
class Seen:
    """A status that stands already: the record that told it, and the event if it went out without a message_id."""

    partition: int
    offset: int
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """A status of a number that we know."""

    delivery: Delivery
    status: StatusTold
    workspace_id: str

    @property
    def key(self) -> MessageKey:
        return self.status.origin.number or "", self.status.wamid

    @property
    def status_key(self) -> StatusKey:
        return *self.key, self.status.status


@dataclass(slots=True)
class Verdict:
    """What a batch of statuses comes to. `identified` are messages whose message_id was not known before."""

    events: list[tuple[Delivery, StatusUpdated]] = field(default_factory=list)
    messages: dict[MessageKey, Message] = field(default_factory=dict)
    seen: dict[StatusKey, Seen] = field(default_factory=dict)
    identified: list[MessageKey] = field(default_factory=list)
    applied: Counter[tuple[str, str]] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)


def judge_statuses(
    told: Sequence[Told], messages: Mapping[MessageKey, Message], seen: Mapping[StatusKey, Seen]
) -> Verdict:
    """Each status of a message once, with the message's highest rank; a repeat of the same record gives the same."""
    verdict = Verdict()
    state = dict(messages)
    for entry in told:
        state[entry.key] = _identify(state.get(entry.key, Message(*entry.key)), entry)
    verdict.identified = [
        key
        for key, message in state.items()
        if message.message_id is not None and (key not in messages or messages[key].message_id is None)
    ]
    done: set[StatusKey] = set()
    for entry in told:
        if entry.status_key in done:
            verdict.applied[entry.status.status, "stale"] += 1
            continue
        done.add(entry.status_key)
        state[entry.key] = _judge(entry, state[entry.key], seen.get(entry.status_key), verdict)
    verdict.messages = {key: message for key, message in state.items() if message != messages.get(key)}
    return verdict


def _identify(message: Message, entry: Told) -> Message:
    """Believe our own callback data only within the workspace that the number belongs to."""
    callback = entry.status.callback
    if message.message_id is not None or callback is None or callback[0] != entry.workspace_id:
        return message
    return replace(message, workspace_id=callback[0], message_id=callback[1])


def _judge(entry: Told, message: Message, before: Seen | None, verdict: Verdict) -> Message:
    told, delivery = entry.status, entry.delivery
    event = status_event(delivery, told, message.workspace_id or entry.workspace_id, message.message_id)
    if before is not None:
        verdict.applied[told.status, "stale"] += 1
        if (before.partition, before.offset) == (delivery.partition, delivery.offset):
            stood = event if before.body is None else StatusUpdated.model_validate_json(before.body)
            verdict.events.append((delivery, stood))
        return message
    verdict.events.append((delivery, event))
    body = event.to_json() if event.message_id is None else None
    verdict.seen[entry.status_key] = Seen(delivery.partition, delivery.offset, body)
    climbed = climb(message, told.status, told.occurred_at)
    if event.message_id is None:
        verdict.applied[told.status, "unknown_message"] += 1
    else:
        verdict.applied[told.status, "yes" if climbed != message else "stale"] += 1
        if event.reason is not None:
            verdict.failed[event.reason.code] += 1
    return climbed


def climb(message: Message, status: Status, at: datetime) -> Message:
    """The message after one more status, in whatever order and however often they come."""
    if status is Status.FAILED:
        return replace(message, failed=True)
    rank = RANKS[status]
    delivered_at = message.delivered_at
    if rank >= RANK_DELIVERED:
        delivered_at = at if delivered_at is None else min(at, delivered_at)
    return replace(message, rank=max(message.rank, rank), delivered_at=delivered_at)


def status_event(
    delivery: Delivery, told: StatusTold, workspace_id: str | None, message_id: str | None
) -> StatusUpdated:
    """The event; its id tells apart what was known of the message when it went out."""
    cause = f"{told.origin.number}/{told.wamid}"
    return StatusUpdated(
        event_id=event_id_of(cause, f"{told.status}/{workspace_id or ''}/{message_id or ''}"),
        occurred_at=told.occurred_at,
        observed_at=delivery.at,
        message_id=message_id,
        workspace_id=workspace_id,
        sender_id=told.origin.number,
        provider_message_id=told.wamid,
        service=Service.WEBHOOK_INGEST,
        status=told.status,
        reason=told.reason,
        pricing=told.pricing,
    )


def joined(event: StatusUpdated, workspace_id: str, message_id: str) -> StatusUpdated:
    """A status that went out without its message, once that is known: a new event, since the first one stands."""
    return event.model_copy(
        update={
            "event_id": event_id_of(str(event.event_id), f"joined/{workspace_id}/{message_id}"),
            "workspace_id": workspace_id,
            "message_id": message_id,
        }
    )


def addressed(report: Report, workspace_id: str | None) -> Event:
    """A report with its workspace; the same fragment for another workspace is another event."""
    event = report.event
    if not isinstance(event, MessageReceived | CustomerUpdated) or workspace_id is None:
        return event
    return event.model_copy(update={"workspace_id": workspace_id, "event_id": event_id_of(report.cause, workspace_id)})


@dataclass(frozen=True, slots=True)
class Unclaimed:
    """An element of a number that nobody has registered: its event without a workspace, and how to read it again."""

    delivery: Delivery
    event: StatusUpdated | MessageReceived | CustomerUpdated
    number: str | None
    body: bytes


@dataclass(slots=True)
class Sorted:
    """A batch's elements by what is done with them."""

    told: list[Told] = field(default_factory=list)
    events: list[tuple[Delivery, Event]] = field(default_factory=list)
    unclaimed: dict[UUID, Unclaimed] = field(default_factory=dict)
    foreign: list[tuple[Delivery, bytes]] = field(default_factory=list)


def sort_out(
    elements: Sequence[tuple[Delivery, Element]],
    senders: Mapping[str, Sequence[Sender]],
    apps: AbstractSet[str],
    only_workspace: str | None = None,
) -> Sorted:
    """`senders` by number and by account; `only_workspace`: leave out whatever isn't surely that workspace's."""
    result = Sorted()
    for delivery, element in elements:
        if not isinstance(element, StatusTold | Report):
            continue
        owner = _owner(delivery, element, senders, apps)
        if only_workspace in (None, owner.workspace_id):
            _sort(delivery, element, owner, result)
    return result


def _owner(
    delivery: Delivery, element: StatusTold | Report, senders: Mapping[str, Sequence[Sender]], apps: AbstractSet[str]
) -> Owner:
    if delivery.source == "shopify":
        return Owner(Standing.OWN, delivery.signer)
    origin = element.origin
    near = [*senders.get(origin.number or "", ()), *senders.get(origin.waba, ())]
    owner = owner_of(origin.number, origin.waba, delivery.signer, near, only_app=apps <= {delivery.signer})
    if owner.standing is Standing.OWN and origin.number is None:
        return replace(owner, workspace_id=_only_workspace(senders.get(origin.waba, ())))
    return owner


def _only_workspace(senders: Sequence[Sender]) -> str | None:
    workspaces = {sender.workspace_id for sender in senders}
    return next(iter(workspaces)) if len(workspaces) == 1 else None


def _sort(delivery: Delivery, element: StatusTold | Report, owner: Owner, result: Sorted) -> None:
    origin = element.origin
    if owner.standing is Standing.FOREIGN:
        result.foreign.append((delivery, origin.alone()))
    elif isinstance(element, StatusTold) and owner.standing is Standing.OWN and owner.workspace_id and origin.number:
        result.told.append(Told(delivery, element, owner.workspace_id))
    elif isinstance(element, Report) and (owner.workspace_id is not None or not element.is_personal):
        result.events.append((delivery, addressed(element, owner.workspace_id)))
    else:
        event = status_event(delivery, element, None, None) if isinstance(element, StatusTold) else element.event
        assert isinstance(event, StatusUpdated | MessageReceived | CustomerUpdated)
        result.unclaimed.setdefault(event.event_id, Unclaimed(delivery, event, origin.number, origin.alone()))


@dataclass(frozen=True, slots=True)
class Awaited:
    """A message whose receipt is or was awaited, as `silence` looks at it."""

    wamid: str
    rank: int
    failed: bool
    accepted_at: datetime
    deadline: datetime | None
    delivered_at: datetime | None


def silence(overdue: Awaited, history: Sequence[Awaited], now: datetime, blocked_after: int) -> Reason:
    """Why no receipt came, from the person's other messages of the same sender.

    Meta never tells of a block. It is inferred where an earlier message was delivered, and this is at least the
    `blocked_after`th in a row that stays at sent beyond its deadline, with nothing delivered since.
    """
    deadline = overdue.deadline or now
    status = "sent" if overdue.rank >= RANK_SENT else "accepted"
    evidence: Evidence = {"inferred": True, "status": status, "deadline": deadline.isoformat()}
    delivered = [entry for entry in history if entry.rank >= RANK_DELIVERED]
    last = max((entry for entry in delivered), key=lambda entry: entry.accepted_at, default=None)
    silent = [
        entry
        for entry in history
        if (last is None or entry.accepted_at > last.accepted_at)
        and entry.accepted_at <= overdue.accepted_at
        and _is_silent(entry, now)
    ]
    if last is None or last.accepted_at > overdue.accepted_at or len(silent) < blocked_after:
        detail = f"No delivery receipt came until {deadline:%Y-%m-%d %H:%M} UTC; Meta gives no cause."
        return reason(ReasonCode.NO_DELIVERY_RECEIPT, detail, {**evidence, "silent_messages": len(silent)})
    at = last.delivered_at or last.accepted_at
    detail = (
        f"Probably blocked: messages were delivered until {at:%Y-%m-%d %H:%M} UTC,"
        f" the last {len(silent)} stay at sent. Meta never tells of a block."
    )
    return reason(
        ReasonCode.RECIPIENT_PROBABLY_BLOCKED_SENDER,
        detail,
        {
            **evidence,
            "silent_messages": len(silent),
            "silent_since": min(entry.accepted_at for entry in silent).isoformat(),
            "last_delivered_at": at.isoformat(),
        },
    )


def _is_silent(entry: Awaited, now: datetime) -> bool:
    return entry.rank == RANK_SENT and not entry.failed and entry.deadline is not None and entry.deadline <= now


def silence_event(message: Message, overdue: Awaited, why: Reason, now: datetime) -> StatusUpdated:
    return StatusUpdated(
        event_id=event_id_of(f"{message.sender_id}/{message.wamid}", "no_receipt"),
        occurred_at=overdue.deadline or now,
        observed_at=now,
        message_id=message.message_id,
        workspace_id=message.workspace_id,
        sender_id=message.sender_id,
        provider_message_id=message.wamid,
        service=Service.WEBHOOK_INGEST,
        status=Status.FAILED,
        reason=why,
    )
