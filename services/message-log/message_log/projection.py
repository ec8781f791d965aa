"""From records to rows: what each topic's batch writes. Nothing is published from here but reports of erasures."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence, Set
from datetime import datetime
from functools import cache, partial
from typing import Any, TypeVar
from uuid import UUID

from pydantic import BaseModel, ValidationError
from sendwhy import plain
from sendwhy.erasure import keep_erasures_waiting, on_erasing
from sendwhy.events import (
    AccountUpdated,
    ContactUpdated,
    CustomerUpdated,
    Event,
    MessageId,
    MessageReceived,
    PersonErased,
    PersonErasing,
    SendCancelled,
    SendConsented,
    SenderReported,
    SenderUpdated,
    SendFunded,
    SendHeld,
    SendRecalled,
    SendRejected,
    SendRequested,
    StatusUpdated,
    TemplateReported,
    TemplateUpdated,
    Wire,
    WorkspaceId,
    event_id_of,
)
from sendwhy.kafka import REST_SECONDS, UNHURRIED_SECONDS
from sendwhy.postgres import Connection
from sendwhy.reasons import Service
from sendwhy.service import Runtime
from sendwhy.stage import Handle, Parse, Record, parse_json, parse_state
from sendwhy.topics import Outgoing, Topic

from message_log import store
from message_log.decide import MessageState, merge, tells
from message_log.deliveries import parts_of
from message_log.erasures import People
from message_log.progress import Progress, decides
from message_log.store import EventRow, Fold, HoldRow, InboundRow, KnownState, MessageKey, SenderRow, WebhookRow

T = TypeVar("T")
Write = Callable[[Connection, Sequence[Record[Any]]], Awaitable[None]]

STATUSES_AT_ONCE = 1_000

# Who speaks on a topic, where the event itself doesn't say it.
SPEAKERS = {
    Topic.SEND_REQUESTED: "upstream",
    Topic.SEND_CONSENTED: "consent",
    Topic.SEND_FUNDED: "billing",
    Topic.SEND_HELD: "dispatcher",
    Topic.SEND_RECALLED: "dispatcher",
    Topic.SEND_CANCELLED: "upstream",
    Topic.MESSAGE_RECEIVED: "webhook-ingest",
    Topic.CUSTOMER_UPDATED: "webhook-ingest",
    Topic.TEMPLATE_REPORTED: "webhook-ingest",
    Topic.SENDER_REPORTED: "webhook-ingest",
    Topic.CONTACT_UPDATED: "consent",
    Topic.TEMPLATE_UPDATED: "dispatcher",
    Topic.SENDER_UPDATED: "dispatcher",
    Topic.ACCOUNT_UPDATED: "billing",
}
_JSON_TOPICS: dict[Topic, type[Wire]] = {
    Topic.SEND_CONSENTED: SendConsented,
    Topic.SEND_FUNDED: SendFunded,
    Topic.SEND_REJECTED: SendRejected,
    Topic.SEND_HELD: SendHeld,
    Topic.SEND_RECALLED: SendRecalled,
    Topic.SEND_CANCELLED: SendCancelled,
    Topic.STATUS_UPDATED: StatusUpdated,
    Topic.MESSAGE_RECEIVED: MessageReceived,
    Topic.CUSTOMER_UPDATED: CustomerUpdated,
    Topic.TEMPLATE_REPORTED: TemplateReported,
    Topic.SENDER_REPORTED: SenderReported,
    Topic.PERSON_ERASING: PersonErasing,
    Topic.PERSON_ERASED: PersonErased,
}
_PLAIN_TOPICS: dict[Topic, Callable[[bytes], Any]] = {
    Topic.SEND_CONSENTED: plain.consented_of,
    Topic.SEND_FUNDED: plain.funded_of,
    Topic.STATUS_UPDATED: plain.receipt_of,
}
_STATE_TOPICS: dict[Topic, type[Event]] = {
    Topic.CONTACT_UPDATED: ContactUpdated,
    Topic.TEMPLATE_UPDATED: TemplateUpdated,
    Topic.SENDER_UPDATED: SenderUpdated,
    Topic.ACCOUNT_UPDATED: AccountUpdated,
}


class _Workspace(BaseModel):
    workspace_id: WorkspaceId


class _Ids(_Workspace):
    """The two ids of a request that can't be read otherwise."""

    message_id: MessageId


def _ids_in(topic: str | None, body: bytes | None) -> tuple[str | None, str | None]:
    """Whose a dead letter is, as far as it says. What came over the internet is not asked: it may say anything."""
    if topic is None or topic.startswith("webhook."):
        return None, None
    for kind in (_Ids, _Workspace):
        try:
            ids = kind.model_validate_json(body or b"")
        except ValidationError:
            continue
        return ids.workspace_id, getattr(ids, "message_id", None)
    return None, None


def parse_request(record: Record[None]) -> SendRequested | plain.Request | None:
    """None for an unreadable request: putting it aside is consent's, who also answers it."""
    request = plain.request_of(record.value or b"")
    if request is not None:
        return request
    try:
        return SendRequested.model_validate_json(record.value or b"")
    except ValidationError:
        return None


def as_it_came(_record: Record[None]) -> None:
    return None


def _parse_plain(read: Callable[[bytes], Any], model: type[Wire]) -> Parse[Any]:
    """The model reads what is not plain."""
    otherwise = parse_json(model)

    def parse(record: Record[None]) -> Any:
        return read(record.value or b"") or otherwise(record)

    return parse


@cache
def _names_of(kind: type[Wire]) -> frozenset[str]:
    # Asked for by a name that it doesn't have, a model looks in three places before it says so.
    return frozenset(name for name in _LINKS if name in kind.model_fields or hasattr(kind, name))


_LINKS = ("event_id", "workspace_id", "message_id", "provider_message_id", "wamid", "service")


def _link(event: Wire, name: str) -> Any:
    return getattr(event, name) if name in _names_of(type(event)) else None


def event_row(record: Record[Any], event: Wire | plain.Plain) -> EventRow:
    """The event as a row. A request and a cancel have no event_id: their place in the log is as good."""
    if isinstance(event, plain.Plain):
        return _plain_row(record, event)
    event_id: UUID = _link(event, "event_id") or event_id_of(record.place, str(record.topic))
    occurred_at = event.occurred_at if isinstance(event, Event) else record.at
    workspace_id: str | None = _link(event, "workspace_id")
    message_id: str | None = _link(event, "message_id") if workspace_id else None
    return EventRow(
        event_id,
        occurred_at,
        workspace_id,
        message_id,
        _link(event, "provider_message_id") or _link(event, "wamid"),
        _link(event, "service") or SPEAKERS[record.topic],
        kind_of(record.topic, event),
        record.value,
    )


def _plain_row(record: Record[Any], event: plain.Plain) -> EventRow:
    """The same of what the most of all rows are."""
    topic, body = record.topic, record.value
    if isinstance(event, plain.Receipt):
        workspace_id = event.workspace_id
        message_id = event.message_id if workspace_id else None
        wamid, said = event.provider_message_id, event.service
        return EventRow(event.event_id, event.occurred_at, workspace_id, message_id, wamid, said, event.status, body)
    if isinstance(event, plain.Request):
        request, event_id, occurred_at = event, event_id_of(record.place, topic), record.at
    else:
        request, event_id, occurred_at = event.request, event.event_id, event.occurred_at
    speaker, kind = SPEAKERS[topic], topic.removeprefix("send.")
    return EventRow(event_id, occurred_at, request.workspace_id, request.message_id, None, speaker, kind, body)


def kind_of(topic: Topic, event: Wire) -> str:
    """The word for it in a timeline: a status, what was done to the send (requested, held …), else the topic."""
    if isinstance(event, StatusUpdated):
        return event.status
    return topic.removeprefix("send.")


class Told:
    """What records tell of messages. `states`: of each, joined. `codes`: the calling codes of all numbers that they
    name, by workspace: of each event alone, since which number stands for a message at last, and whether its person is
    erased, depends on events that may come before or after. `decided_at`: when billing let a message pass, or a gate
    refused it, by Kafka's clock."""

    def __init__(self) -> None:
        self.states: dict[MessageKey, MessageState] = {}
        self.codes: set[tuple[str, str]] = set()
        self.decided_at: dict[MessageKey, datetime] = {}

    def add(self, record: Record[Any], row: EventRow) -> None:
        state = tells(record.event, record.at)
        if state is None or row.workspace_id is None:
            return
        code = store.calling_code(state.known("phone"))
        if code is not None:
            self.codes.add((row.workspace_id, code))
        if row.message_id is not None:
            key = (row.workspace_id, row.message_id)
            self.states[key] = merge(self.states[key], state) if key in self.states else state
            if decides(record.event):
                self.decided_at.setdefault(key, record.at)


async def write_events(
    connection: Connection, records: Sequence[Record[Any]], progress: Progress | None = None
) -> None:
    """Events of any topics, as rows and as what they tell of messages; `progress` counts what changes by them."""
    told = Told()
    rows: list[EventRow] = []
    for number, record in enumerate(records):
        if record.event is not None:
            row = event_row(record, record.event)
            told.add(record, row)
            rows.append(row)
        if number % store.AT_ONCE == 0:
            await asyncio.sleep(0)
    # A cancel tells nothing of its message, and may name who asked for it.
    others = await _without_person(connection, rows, told.states.keys())

    def note(fold: Fold) -> None:
        if progress is not None:
            progress.note(told.states[fold.key], told.decided_at.get(fold.key), fold.before, fold.after)

    without_person = await store.fold_messages(connection, told.states, note) | others
    await store.see_codes(connection, told.codes)
    await store.add_events(connection, [_bare(row, without_person) for row in rows])
    await store.set_holds(connection, [hold for record in records if (hold := _hold_row(record.event)) is not None])


async def write_jointly(connection: Connection, records: Sequence[Record[Any]], progress: Progress) -> None:
    """What tells of messages, and the deliveries that it was read from."""
    await write_events(connection, [one for one in records if one.topic is not Topic.WEBHOOK_RECEIVED], progress)
    await write_webhooks(connection, [one for one in records if one.topic is Topic.WEBHOOK_RECEIVED])


async def _without_person(connection: Connection, rows: Sequence[EventRow], folded: Set[MessageKey]) -> set[MessageKey]:
    """Of the messages that these rows name, but for those that the batch folds: whose person is erased. Nobody more is
    until the transaction ends: folding has erasures wait at the message's row, for a row that is added nothing does."""
    named = {(row.workspace_id, row.message_id) for row in rows if row.workspace_id and row.message_id} - folded
    if not named:
        return set()
    await keep_erasures_waiting(connection, {workspace_id for workspace_id, _ in named})
    return await store.without_person(connection, named)


def _bare(row: EventRow, without_person: Set[MessageKey]) -> EventRow:
    """The row; without its body if its message's person is erased."""
    is_bare = row.workspace_id and row.message_id and (row.workspace_id, row.message_id) in without_person
    return row._replace(body=None) if is_bare else row


def _hold_row(event: Wire | plain.Plain | None) -> HoldRow | None:
    """What else a hold covers than one message."""
    if not isinstance(event, SendHeld) or event.scope.kind == "message":
        return None
    scope = event.scope
    return HoldRow(
        event.workspace_id,
        scope.kind,
        scope.id,
        event.event_id,
        event.occurred_at,
        event.cause,
        event.since,
        event.until,
    )


async def write_inbound(connection: Connection, records: Sequence[Record[MessageReceived]], people: People) -> None:
    """Of a number that nobody has registered only the event: webhook-ingest tells of it again once it knows whose it
    is, and that the app which signed may speak for it."""
    events, gone = await people.rows(connection, records, event_row)
    await store.add_events(connection, events)
    told = [record.event for record in records if record.event.event_id not in gone]
    await store.add_inbound(connection, [inbound_row(e, e.workspace_id) for e in told if e.workspace_id is not None])


def inbound_row(e: MessageReceived, workspace_id: str) -> InboundRow:
    """Without the person where it belongs in no thread of theirs; their tag still finds it."""
    phone, user_id = (e.phone, e.user_id) if e.is_said_to_us else (None, None)
    return InboundRow(e.event_id, workspace_id, e.sender_id, phone, e.wamid, e.occurred_at, e.kind, e.text, user_id)


async def write_customers(connection: Connection, records: Sequence[Record[CustomerUpdated]], people: People) -> None:
    events, _ = await people.rows(connection, records, event_row)
    await store.add_events(connection, events)


async def write_states(connection: Connection, records: Sequence[Record[Any]]) -> None:
    await store.add_events(connection, [event_row(record, record.event) for record in records if record.event])
    await set_states(connection, records)


async def set_states(connection: Connection, records: Sequence[Record[Any]]) -> None:
    states = [
        KnownState(
            (record.key or b"").decode(errors="replace"),
            getattr(record.event, "version", 0),
            getattr(record.event, "workspace_id", None),
            getattr(record.event, "phone", None),
            record.value if record.event else None,
            record.event.name if isinstance(record.event, ContactUpdated) else None,
            record.event.user_id if isinstance(record.event, ContactUpdated) else None,
        )
        for record in records
    ]
    await store.set_states(connection, records[0].topic, states)


async def write_contacts(
    connection: Connection, records: Sequence[Record[ContactUpdated | None]], people: People
) -> None:
    """A tombstone only ends the state: what else there is of the person goes with the order to erase, which says until
    when. Topics have no order between them, so what the person does anew may come before the tombstone; and a state
    that consent told while it was frozen, or Kafka away, may come behind it."""
    events, gone = await people.rows(connection, [record for record in records if record.event], event_row)
    await store.add_events(connection, events)
    if states := [record for record in records if record.event is None or record.event.event_id not in gone]:
        await set_states(connection, states)


async def write_senders(connection: Connection, records: Sequence[Record[SenderUpdated | None]]) -> None:
    await write_states(connection, records)
    last: dict[bytes | None, Record[SenderUpdated | None]] = {}
    for record in records:
        before = last[record.key].event if record.key in last else None
        if before is None or record.event is None or record.event.version > before.version:
            last[record.key] = record
    senders = [_sender_row(record.event) for record in last.values() if record.event is not None]
    gone = [(record.key or b"").decode(errors="replace") for record in last.values() if record.event is None]
    await store.set_senders(connection, senders, gone)


def _sender_row(event: SenderUpdated) -> SenderRow:
    """Without the account until Meta has shown it to the workspace's token: a PUT may name another's, whose templates
    and deliveries are not to be seen by that."""
    free = event.hold is None and not event.paused
    free_since = event.occurred_at if free else None
    account = event.waba_id if event.synced_at is not None else ""
    return SenderRow(
        event.sender_id, event.workspace_id, account, event.version, event.default, free_since, event.app_id
    )


# What the door writes beside a delivery, and beside one that it refused.
_KEPT_HEADERS = frozenset(
    {
        "received_at",
        "delivery_id",
        "source",
        "app_id",
        "workspace_id",
        "shopify_topic",
        "content-type",
        "cause",
        "size",
        "digest",
        "unrecorded_before",
    }
)


async def write_webhooks(connection: Connection, records: Sequence[Record[None]]) -> None:
    await store.add_webhooks(connection, [webhook_row(record) for record in records])


def webhook_row(record: Record[Any]) -> WebhookRow:
    """A delivery, accepted or refused, with what was found in it. Everything but the bytes is in the headers."""
    body = record.value or b""
    told: dict[str, str] = {}
    for name, value in record.headers:
        if name not in told and (text := _text(value or b"")) is not None:
            told[name] = text
    refused = told.get("cause") if record.topic is Topic.WEBHOOK_REFUSED else None
    size = told.get("size", "")
    return WebhookRow(
        event_id_of(record.place, "webhook"),
        record.at,
        told.get("source", "meta"),
        told.get("app_id") or told.get("app"),
        refused,
        int(size) if size.isdigit() and len(size) < 9 else len(body),
        body,
        tuple(parts_of(body, workspace_id=told.get("workspace_id"))) if refused is None else (),
        {name: value for name, value in told.items() if name in _KEPT_HEADERS},
    )


def _header(record: Record[Any], name: str) -> str | None:
    return _text(record.header(name) or b"")


def _text(value: bytes) -> str | None:
    return value.decode(errors="replace").replace("\x00", "")[:256] or None


async def write_dead_letters(connection: Connection, records: Sequence[Record[None]]) -> None:
    rows = [_dead_letter_row(record) for record in records]
    without_person = await _without_person(connection, rows, frozenset())
    await store.add_dead_letters(connection, [_bare(row, without_person) for row in rows])


def _dead_letter_row(record: Record[Any]) -> EventRow:
    service = _header(record, "service") or "unknown"
    workspace_id, message_id = _ids_in(_header(record, "topic"), record.value)
    event_id = event_id_of(_put_aside_from(record), "dead letter")
    note = f"{_header(record, 'topic') or 'unknown'}: {_header(record, 'error') or 'no error was told'}"
    return EventRow(event_id, record.at, workspace_id, message_id, None, service, "dead_letter", record.value, note)


def _put_aside_from(record: Record[Any]) -> str:
    """Which record was put aside, and by whom: who reads a topic again puts the same aside again."""
    names = [_header(record, name) for name in ("service", "topic", "partition", "offset")]
    return "/".join(name for name in names if name) if all(names) else record.place


WRITES: dict[Topic, Write] = {
    Topic.SENDER_UPDATED: write_senders,
    Topic.TEMPLATE_UPDATED: write_states,
    Topic.ACCOUNT_UPDATED: write_states,
    Topic.WEBHOOK_REFUSED: write_webhooks,
    Topic.DEAD_LETTERS: write_dead_letters,
}


def parser_of(topic: Topic) -> Parse[Any]:
    if topic in _PLAIN_TOPICS:
        return _parse_plain(_PLAIN_TOPICS[topic], _JSON_TOPICS[topic])
    if topic in _STATE_TOPICS:
        return parse_state(_STATE_TOPICS[topic])
    if topic in _JSON_TOPICS:
        return parse_json(_JSON_TOPICS[topic])
    return parse_request if topic is Topic.SEND_REQUESTED else as_it_came


PersonalWrite = Callable[[Connection, Sequence[Record[Any]], People], Awaitable[None]]
_PERSONAL_WRITES: dict[Topic, PersonalWrite] = {
    Topic.MESSAGE_RECEIVED: write_inbound,
    Topic.CUSTOMER_UPDATED: write_customers,
    Topic.CONTACT_UPDATED: write_contacts,
}


def is_joint(topic: Topic) -> bool:
    """Whether it is written with others in one transaction: seven events and three deliveries of each message, within
    seconds."""
    return topic not in WRITES and topic not in _PERSONAL_WRITES and topic is not Topic.PERSON_ERASING


def write_of(topic: Topic, people: People, progress: Progress) -> Write:
    """What writes a batch of a topic, and counts in `progress` what changes by it; an order to erase is carried out by
    `people.erase`."""
    personal = _PERSONAL_WRITES.get(topic)
    if personal is not None:
        return _knowing(personal, people)
    return WRITES.get(topic) or partial(write_jointly, progress=progress)


def register(runtime: Runtime, applied: Callable[[Topic, datetime], None], people: People) -> None:
    """Consume every topic; `applied` is told the time of each batch's last record. Only erasures are answered."""
    progress = Progress(runtime.metrics)
    write = _handler(partial(write_jointly, progress=progress), applied)
    # Two, so that one works while the other waits for the database. What becomes of a message comes when what led to
    # its call is written. The more statuses meet in a turn, the fewer rows are written anew by the next one.
    before, after = runtime.joint(write), runtime.joint(write, max_records=STATUSES_AT_ONCE)
    for topic in Topic:
        if topic is Topic.PERSON_ERASING:
            runtime.stage(topic, parser_of(topic), on_erasing(Service.MESSAGE_LOG, people.erase, again=True))
        elif is_joint(topic):
            is_after = topic is Topic.STATUS_UPDATED
            visible = progress.visible if is_after else None
            runtime.stage(topic, parser_of(topic), after if is_after else before, on_committed=visible)
        else:
            # What an account has left is told with each batch that billing lets pass.
            rest = UNHURRIED_SECONDS if topic is Topic.ACCOUNT_UPDATED else REST_SECONDS
            handle = _handler(write_of(topic, people, progress), applied)
            runtime.stage(topic, parser_of(topic), handle, rest_seconds=rest)


def _knowing(write: PersonalWrite, people: People) -> Write:
    async def knowing(connection: Connection, records: Sequence[Record[Any]]) -> None:
        await write(connection, records, people)

    return knowing


def _handler(write: Write, applied: Callable[[Topic, datetime], None]) -> Handle[Any]:
    async def handle(connection: Connection, records: Sequence[Record[Any]]) -> Sequence[Outgoing]:
        await write(connection, records)
        for topic, at in {record.topic: record.at for record in records}.items():
            applied(topic, at)
        return ()

    return handle
