"""What to make of what was told, given what is known: pure. Whose an element is, which statuses are new, where a
message stands on the ladder, and what a replay changes."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum
from uuid import UUID

from msgspec import Raw, Struct
from msgspec.json import Encoder
from sendwhy.events import (
    CustomerUpdated,
    Event,
    MessageReceived,
    Status,
    StatusUpdated,
    event_id_of,
    event_id_text,
    milliseconds,
)
from sendwhy.reasons import Service
from sendwhy.topics import Outgoing, Topic, outgoing, record_of_event
from sendwhy.values import value_class

from webhook_ingest.elements import Delivery, Element, Origin, Report, StatusTold, Unreadable, Whole
from webhook_ingest.values import JSON, Fragment

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
StatusKey = tuple[str, str, str, bytes]  # (sender_id, wamid, status, reading)


@value_class
class Sender:
    """A number that we know: whose it is, and which app speaks for it (None: the dispatcher wasn't told). `is_proven`:
    Meta has shown its account to its workspace's token; before, the account is a claim."""

    sender_id: str
    workspace_id: str
    waba_id: str
    app_id: str | None
    is_proven: bool = True


class Standing(Enum):
    """What an element's signer is to its number or account."""

    OWN = "own"
    FOREIGN = "foreign"
    UNKNOWN = "unknown"


@value_class
class Owner:
    standing: Standing
    workspace_id: str | None = None


def owner_of(
    number: str | None, signer: str, sender: Sender | None, of_account: Iterable[Sender], *, only_app: bool
) -> Owner:
    """Whose an element is. `sender`: the number, if it is known; `of_account`: the known ones of its account;
    `only_app`: no other app is configured.

    A secret speaks only for its own app's numbers and accounts: else whoever knows one could forge for all.
    """
    if sender is not None:
        speaks = _speaks_for(sender, signer, only_app)
        return Owner(speaks, sender.workspace_id if speaks is Standing.OWN else None)
    standings = {_speaks_for_account(one, signer, only_app) for one in of_account}
    # An account that is its own proves nothing of a number that nobody has registered.
    if number is None and Standing.OWN in standings:
        return Owner(Standing.OWN)
    return Owner(Standing.FOREIGN if standings == {Standing.FOREIGN} else Standing.UNKNOWN)


def _speaks_for(sender: Sender, signer: str, only_app: bool) -> Standing:
    if sender.app_id is None:
        return Standing.OWN if only_app else Standing.UNKNOWN
    return Standing.OWN if sender.app_id == signer else Standing.FOREIGN


def _speaks_for_account(sender: Sender, signer: str, only_app: bool) -> Standing:
    """By one of its numbers. Else whoever names another's account at a number of their own could hold it."""
    standing = _speaks_for(sender, signer, only_app)
    return Standing.UNKNOWN if standing is Standing.OWN and not sender.is_proven else standing


@value_class
class Message:
    """Where a message of ours stands. workspace_id and message_id are None while only its wamid is known. `silence`:
    the reason by which it ended for want of a receipt."""

    sender_id: str
    wamid: str
    workspace_id: str | None = None
    message_id: str | None = None
    rank: int = NO_RANK
    failed: bool = False
    delivered_at: datetime | None = None
    silence: str | None = None

    @property
    def key(self) -> MessageKey:
        return self.sender_id, self.wamid

    @property
    def is_told_of(self) -> bool:
        """Whether any status but `accepted` has been judged: each lifts the rank, or stands beside it as `failed`."""
        return self.rank > RANKS[Status.ACCEPTED] or self.failed


@value_class
class Seen:
    """One reading of a status that stands already: the record that told it, when its event says it was observed, the
    reason's code, and the event if it went out without a message_id."""

    partition: int
    offset: int
    observed_at: datetime
    reason: str | None = None
    body: bytes | None = None


@value_class
class Told:
    """A status of a number that we know."""

    delivery: Delivery
    status: StatusTold
    workspace_id: str

    @property
    def key(self) -> MessageKey:
        return self.status.origin.number or "", self.status.wamid


@value_class
class Shown:
    """What people see of a message: its status, and the reason if it failed."""

    status: str | None = None
    reason: str | None = None


@value_class
class Change:
    """A message whose state or reason a replay corrects."""

    message: Message
    before: Shown
    after: Shown


@dataclass(slots=True)
class Verdict:
    """What a batch of statuses comes to, and the events of it. `identified` are messages whose message_id was not known
    before."""

    publish: list[Outgoing] = field(default_factory=list)
    messages: dict[MessageKey, Message] = field(default_factory=dict)
    seen: dict[StatusKey, Seen] = field(default_factory=dict)
    identified: list[MessageKey] = field(default_factory=list)
    applied: Counter[tuple[str, str]] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)


def risen(messages: Mapping[MessageKey, Message], seen: Iterable[StatusKey]) -> dict[MessageKey, Message]:
    """The messages as high as any of their statuses: a row isn't written anew for what is told after `delivered`."""
    told = dict(messages)
    for sender_id, wamid, status, _ in seen:
        message, rank = told[sender_id, wamid], RANKS.get(Status(status), NO_RANK)
        if rank > message.rank:
            told[sender_id, wamid] = replace(message, rank=rank)
    return told


def is_to_be_saved(before: Message, after: Message) -> bool:
    """Whether more has changed than `risen` knows. Every other change is one of six indexes, too."""
    return before.rank < RANK_DELIVERED or replace(after, rank=before.rank) != before


def judge_statuses(
    told: Sequence[Told],
    messages: Mapping[MessageKey, Message],
    seen: Mapping[StatusKey, Seen],
    *,
    replayed_at: datetime | None = None,
) -> Verdict:
    """Each reading of a status once, with the message's highest rank; a repeat of the same record gives the same.

    So the set of events is the same for any order and repetition. In a replay what stands says nothing, and what the
    same record is now read to say counts as observed at that moment: it is to stand in place of the former reading.
    """
    verdict = Verdict()
    state = dict(messages)
    keys = [entry.key for entry in told]
    for key, entry in zip(keys, told, strict=True):
        state[key] = _identify(state[key] if key in state else Message(*key), entry)
    verdict.identified = [
        key
        for key, message in state.items()
        if message.message_id is not None and (key not in messages or messages[key].message_id is None)
    ]
    told_by = {(*key[:3], stands.partition, stands.offset) for key, stands in seen.items()} if replayed_at else set()
    done: set[StatusKey] = set()
    for key, entry in zip(keys, told, strict=True):
        status, place = entry.status, entry.delivery.place
        status_key = (*key, status.status, status.reading)
        stands = seen.get(status_key)
        # What stands is its own record's to say again, which may come behind another's in a batch that is read again.
        is_its_own = stands is None or (stands.partition, stands.offset) == place
        is_first = is_its_own and status_key not in done
        if is_its_own:
            done.add(status_key)
        if is_first and stands is None:
            corrects = replayed_at is not None and (*status_key[:3], *place) in told_by
            observed_at = replayed_at if corrects and replayed_at is not None else entry.delivery.at
            state[key] = _judge(entry, status_key, state[key], observed_at, verdict)
            continue
        if is_first and stands is not None and replayed_at is None:
            verdict.publish.append(_repeated(entry, state[key], stands))
        verdict.applied[status.status, "stale"] += 1
        # A repeat may tell of an earlier moment.
        state[key] = climb(state[key], status.status, status.occurred_at)
    verdict.messages = {key: message for key, message in state.items() if message != messages.get(key)}
    return verdict


def _identify(message: Message, entry: Told) -> Message:
    """Believe our own callback data only within the workspace that the number belongs to."""
    callback = entry.status.callback
    if message.message_id is not None or callback is None or callback[0] != entry.workspace_id:
        return message
    return replace(message, workspace_id=callback[0], message_id=callback[1])


def _repeated(entry: Told, message: Message, stands: Seen) -> Outgoing:
    if stands.body is not None:
        event = StatusUpdated.model_validate_json(stands.body)
        return outgoing(event, source=Service.WEBHOOK_INGEST, trace=entry.delivery.trace)
    return _record_of(entry, message, stands.observed_at)


def _record_of(entry: Told, message: Message, observed_at: datetime) -> Outgoing:
    workspace_id = message.workspace_id or entry.workspace_id
    return status_record(entry.status, observed_at, workspace_id, message.message_id, entry.delivery.trace)


def _judge(entry: Told, status_key: StatusKey, message: Message, observed_at: datetime, verdict: Verdict) -> Message:
    told, delivery = entry.status, entry.delivery
    record = _record_of(entry, message, observed_at)
    verdict.publish.append(record)
    is_known = message.message_id is not None
    code = None if told.reason is None else told.reason.code
    body = None if is_known else record.value
    verdict.seen[status_key] = Seen(delivery.partition, delivery.offset, observed_at, code, body)
    climbed = climb(message, told.status, told.occurred_at)
    if not is_known:
        verdict.applied[told.status, "unknown_message"] += 1
        return climbed
    corrects = observed_at != delivery.at
    applied = "corrected" if corrects else "yes" if climbed is not message and climbed != message else "stale"
    verdict.applied[told.status, applied] += 1
    # Several readings of one failure (of two devices, or by a better parser) are one failed message.
    if code is not None and not message.failed:
        verdict.failed[code] += 1
    return climbed


def standing(message: Message, failures: Iterable[Seen]) -> Shown:
    """Where a message stands, given all readings of its failure: the one observed last counts, as in message-log."""
    status = next((name for name, rank in RANKS.items() if rank == message.rank), None)
    if message.rank >= RANK_DELIVERED:
        return Shown(status)
    if message.failed:
        last = max(failures, key=lambda seen: seen.observed_at, default=None)
        return Shown(Status.FAILED, None if last is None else last.reason)
    return Shown(Status.FAILED, message.silence) if message.silence is not None else Shown(status)


def changes_of(
    messages: Mapping[MessageKey, Message], seen: Mapping[StatusKey, Seen], verdict: Verdict
) -> dict[MessageKey, Change]:
    """Which messages stand differently after a batch; what went out without its message was no state of it."""
    changes: dict[MessageKey, Change] = {}
    for key in dict.fromkeys([*verdict.messages, *(told[:2] for told in verdict.seen)]):
        was = messages.get(key, Message(*key))
        now = verdict.messages.get(key, was)
        old = [entry for told, entry in seen.items() if told[:3] == (*key, Status.FAILED)]
        new = [entry for told, entry in verdict.seen.items() if told[:3] == (*key, Status.FAILED)]
        before = Shown() if was.message_id is None and now.message_id is not None else standing(was, old)
        after = standing(now, [*old, *new])
        if before != after:
            changes[key] = Change(now, before, after)
    return changes


def followed(first: Change | None, then: Change) -> Change:
    """Two batches' changes of one message as one. In a dry run neither batch sees what the other would do."""
    if first is None:
        return then
    behind = first.message.rank > then.message.rank
    return Change(then.message, first.before, first.after if behind else then.after)


def climb(message: Message, status: Status, at: datetime) -> Message:
    """The message after one more status, in whatever order and however often they come."""
    if status is Status.FAILED:
        return replace(message, failed=True)
    rank = RANKS[status]
    delivered_at = message.delivered_at
    if rank >= RANK_DELIVERED:
        delivered_at = at if delivered_at is None else min(at, delivered_at)
    if rank <= message.rank and delivered_at == message.delivered_at:
        return message
    return Message(
        message.sender_id,
        message.wamid,
        message.workspace_id,
        message.message_id,
        max(message.rank, rank),
        message.failed,
        delivered_at,
        message.silence,
    )


def status_event(
    told: StatusTold, observed_at: datetime, workspace_id: str | None, message_id: str | None
) -> StatusUpdated:
    """The event; its id tells apart what was understood, and what was known of the message when it went out."""
    number = told.origin.number
    # What Meta told was checked where it was read, all else where we stored it.
    return StatusUpdated.of_checked(
        event_id=event_id_of(*_cause((number or "", told.wamid, told.status, told.reading), workspace_id, message_id)),
        occurred_at=told.occurred_at,
        observed_at=observed_at,
        message_id=message_id,
        workspace_id=workspace_id,
        sender_id=number,
        provider_message_id=told.wamid,
        service=Service.WEBHOOK_INGEST,
        status=told.status,
        reason=told.reason,
        pricing=told.pricing,
        conversation=told.conversation,
        extra=told.extra,
    )


class _Status(Struct):
    """A status as it is written: `StatusUpdated` for msgspec, by which it takes a fifth of the time. Same fields in the
    same order, those of `accepted` always null."""

    event_id: str
    occurred_at: str
    observed_at: str
    message_id: str | None
    workspace_id: str | None
    sender_id: str | None
    provider_message_id: str
    service: Service
    status: Status
    reason: Raw | None
    pricing: Raw | None
    conversation: Raw | None
    extra: Raw | None
    to: None = None
    origin: None = None
    metadata: None = None
    receipt_deadline: None = None
    template_category: None = None


_ENCODER = Encoder()


def status_record(
    told: StatusTold, observed_at: datetime, workspace_id: str | None, message_id: str | None, trace: bytes | None
) -> Outgoing:
    """The record that carries `status_event`, to the byte."""
    number = told.origin.number
    event_id = event_id_text(*_cause((number or "", told.wamid, told.status, told.reading), workspace_id, message_id))
    body = _Status(
        event_id,
        milliseconds(told.occurred_at),
        milliseconds(observed_at),
        message_id,
        workspace_id,
        number,
        told.wamid,
        Service.WEBHOOK_INGEST,
        told.status,
        None if told.reason is None else Raw(told.reason.to_json()),
        _written(told.pricing),
        _written(told.conversation),
        _written(told.extra),
    )
    return record_of_event(
        Topic.STATUS_UPDATED,
        (message_id or told.wamid).encode(),
        _ENCODER.encode(body),
        event_id,
        told.occurred_at,
        source=Service.WEBHOOK_INGEST,
        trace=trace,
    )


def _written(part: Fragment | None) -> Raw | None:
    return None if part is None else Raw(JSON.serializer.to_json(part))


def _cause(key: StatusKey, workspace_id: str | None, message_id: str | None) -> tuple[str, str]:
    number, wamid, status, reading = key
    return f"{number}/{wamid}", f"{status}/{reading.hex()}/{workspace_id or ''}/{message_id or ''}"


def joined(event: StatusUpdated, reading: bytes, workspace_id: str, message_id: str) -> StatusUpdated:
    """A status that went out without its message, once that is known: a new event, since the first one stands. It is
    the one that would have gone out had the message been known before."""
    key = (event.sender_id or "", event.provider_message_id or "", event.status, reading)
    return event.model_copy(
        update={
            "event_id": event_id_of(*_cause(key, workspace_id, message_id)),
            "workspace_id": workspace_id,
            "message_id": message_id,
        }
    )


def addressed(report: Report, workspace_id: str | None) -> Event:
    """A report with its id and workspace; the same fragment for another workspace is another event."""
    event = report.event.model_copy(update={"event_id": event_id_of(report.cause, workspace_id or "")})
    if not isinstance(event, MessageReceived | CustomerUpdated) or workspace_id is None:
        return event
    return event.model_copy(update={"workspace_id": workspace_id})


@value_class
class Unclaimed:
    """An element of a number or account that nobody has registered: its event without a workspace, and how to read it
    again."""

    delivery: Delivery
    event: Event
    number: str | None
    waba: str
    body: bytes

    @property
    def wamid(self) -> str | None:
        """By which a status without a number may find its message."""
        if self.number is not None or not isinstance(self.event, StatusUpdated):
            return None
        return self.event.provider_message_id

    @property
    def is_told(self) -> bool:
        """Whether its event goes out already. Not what could hold or change an account: whether its signer may speak
        for that shows once the account is registered."""
        return isinstance(self.event, StatusUpdated | MessageReceived | CustomerUpdated)


def link_id(status: StatusTold, workspace_id: str) -> UUID:
    """The id of `link_event`: of what it tells, not of the message by which it is told."""
    phone, user_id = status.link or ("", "")
    return event_id_of(f"{status.origin.number}/{phone}/{user_id}/link", workspace_id)


def link_event(told: Told) -> CustomerUpdated:
    """Which user id belongs to a phone, by a status with a `link`."""
    status = told.status
    phone, user_id = status.link or (None, None)
    return CustomerUpdated(
        event_id=link_id(status, told.workspace_id),
        occurred_at=status.occurred_at,
        source="meta",
        action="link",
        workspace_id=told.workspace_id,
        sender_id=status.origin.number,
        phone=phone,
        user_id=user_id,
        observed_at=told.delivery.at,
    )


@dataclass(slots=True)
class Sorted:
    """A batch's elements by what is done with them. Of what is told by several deliveries all are kept: only the one
    that told it first may say it again, and in a batch that is read again it may stand behind the others. A status
    among `reports` stands for its `link_event`: nearly always that has been told."""

    told: list[Told] = field(default_factory=list)
    reports: dict[UUID, list[tuple[Delivery, Event | Told]]] = field(default_factory=dict)
    unclaimed: dict[UUID, list[Unclaimed]] = field(default_factory=dict)
    foreign: list[tuple[Delivery, Origin | Whole]] = field(default_factory=list)


def without_number(
    elements: Iterable[tuple[Delivery, Element]],
    accounts: Mapping[str, Sequence[Sender]],
    apps: AbstractSet[str],
) -> dict[int, dict[str, Sender]]:
    """The statuses without a number, by their place in `elements`, each with the numbers that it may be of: those of
    its account for which its signer speaks, and, where it names a workspace, only that one's."""
    found: dict[int, dict[str, Sender]] = {}
    for place, (delivery, element) in enumerate(elements):
        if not isinstance(element, StatusTold) or element.origin.number is not None:
            continue
        named, only_app = element.callback, apps <= {delivery.signer}
        found[place] = {
            sender.sender_id: sender
            for sender in accounts.get(element.origin.waba, ())
            if _speaks_for(sender, delivery.signer, only_app) is Standing.OWN
            and (named is None or named[0] == sender.workspace_id)
        }
    return found


def numbered(status: StatusTold, numbers: Iterable[str], known: AbstractSet[MessageKey]) -> StatusTold:
    """A status without a number, of which `numbers` may be the one: of the one that has its message, or of the only
    one of the workspace that its callback data name. Else as it is."""
    possible = set(numbers)
    having = {number for number in possible if (number, status.wamid) in known}
    fitting = having or (possible if status.callback is not None else set())
    if len(fitting) != 1 or not isinstance(status.origin, Origin):
        return status
    return replace(status, origin=replace(status.origin, number=next(iter(fitting))))


def accounts_needed(elements: Iterable[tuple[Delivery, Element]], senders: Mapping[str, Sender]) -> set[str]:
    """The accounts whose numbers `sort_out` must know, beside `senders`, those that the elements name. Hardly ever is
    there one for a status, and an account may have thousands of numbers."""
    named = (
        element
        for delivery, element in elements
        if delivery.source != "shopify" and not isinstance(element, Unreadable)
    )
    return {
        element.origin.waba
        for element in named
        if element.origin.number not in senders or (isinstance(element, Report) and not element.is_personal)
    }


def sort_out(
    elements: Sequence[tuple[Delivery, Element]],
    senders: Mapping[str, Sender],
    accounts: Mapping[str, Sequence[Sender]],
    apps: AbstractSet[str],
    only_workspace: str | None = None,
) -> Sorted:
    """`senders` by number; `accounts`: the senders of `accounts_needed`; `only_workspace`: leave out whatever isn't
    surely that workspace's."""

    def whose(delivery: Delivery, element: StatusTold | Report) -> Owner:
        sender = senders.get(element.origin.number or "")
        return _owner(delivery, element, sender, accounts.get(element.origin.waba, ()), apps)

    result = Sorted()
    # Of statuses there are many, of few numbers.
    owners: dict[tuple[str | None, str, str], Owner] = {}
    for delivery, element in elements:
        if isinstance(element, StatusTold):
            place = (element.origin.number, element.origin.waba, delivery.signer)
            owner = owners.get(place) or owners.setdefault(place, whose(delivery, element))
        elif isinstance(element, Report):
            owner = whose(delivery, element)
        else:
            continue
        if only_workspace in (None, owner.workspace_id):
            _sort(delivery, element, owner, result)
    return result


def _owner(
    delivery: Delivery,
    element: StatusTold | Report,
    sender: Sender | None,
    of_account: Sequence[Sender],
    apps: AbstractSet[str],
) -> Owner:
    if delivery.source == "shopify":
        return Owner(Standing.OWN, delivery.signer)
    origin, only_app = element.origin, apps <= {delivery.signer}
    owner = owner_of(origin.number, delivery.signer, sender, of_account, only_app=only_app)
    if isinstance(element, Report) and not element.is_personal and of_account:
        # A report may hold or change the whole account that it names: neither a number of one's own beside it nor an
        # account whose app nobody told may open a door to it.
        speaks = {_speaks_for_account(one, delivery.signer, only_app) for one in of_account}
        if Standing.OWN not in speaks:
            owner = Owner(_claimed(of_account, delivery.signer, only_app))
    if owner.standing is Standing.OWN and origin.number is None:
        return replace(owner, workspace_id=_only_workspace([one for one in of_account if one.is_proven]))
    return owner


def _claimed(of_account: Sequence[Sender], signer: str, only_app: bool) -> Standing:
    """Of an account for which an app doesn't speak: what it may prove yet is kept until then."""
    standings = {_speaks_for(one, signer, only_app) for one in of_account}
    return Standing.UNKNOWN if Standing.OWN in standings else Standing.FOREIGN


def _only_workspace(senders: Sequence[Sender]) -> str | None:
    workspaces = {sender.workspace_id for sender in senders}
    return next(iter(workspaces)) if len(workspaces) == 1 else None


def _sort(delivery: Delivery, element: StatusTold | Report, owner: Owner, result: Sorted) -> None:
    origin = element.origin
    if owner.standing is Standing.FOREIGN:
        result.foreign.append((delivery, origin))
    elif isinstance(element, StatusTold) and owner.standing is Standing.OWN and owner.workspace_id and origin.number:
        told = Told(delivery, element, owner.workspace_id)
        result.told.append(told)
        if element.link is not None:
            result.reports.setdefault(link_id(element, owner.workspace_id), []).append((delivery, told))
    elif isinstance(element, Report) and _may_go_out(element, owner):
        report = addressed(element, owner.workspace_id)
        result.reports.setdefault(report.event_id, []).append((delivery, report))
    else:
        event = (
            status_event(element, delivery.at, None, None)
            if isinstance(element, StatusTold)
            else addressed(element, None)
        )
        entry = Unclaimed(delivery, event, origin.number, origin.waba, origin.alone())
        result.unclaimed.setdefault(event.event_id, []).append(entry)


def _may_go_out(report: Report, owner: Owner) -> bool:
    return owner.workspace_id is not None or (owner.standing is Standing.OWN and not report.is_personal)
