"""The parsing half: what the stages and timers do with raw deliveries, senders, and `accepted`."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID, uuid4

import structlog
from sendwhy.events import Event, SenderUpdated, StatusUpdated
from sendwhy.metrics import Metric, Metrics
from sendwhy.postgres import Connection, add_to_outbox
from sendwhy.privacy import Tagger
from sendwhy.reasons import ReasonCode, Service
from sendwhy.stage import Record, dead_letter
from sendwhy.topics import Outgoing, Topic, outgoing
from sendwhy.values import value_class

from webhook_ingest import shopify, store
from webhook_ingest.accepted import Accepted
from webhook_ingest.decide import (
    Change,
    MessageKey,
    Sender,
    Sorted,
    Told,
    Verdict,
    accounts_needed,
    changes_of,
    is_to_be_saved,
    joined,
    judge_statuses,
    link_event,
    numbered,
    risen,
    sort_out,
    without_number,
)
from webhook_ingest.elements import Delivery, Element, StatusTold, Unreadable
from webhook_ingest.erasures import recipient_of
from webhook_ingest.fragments import read

CLAIM_LIMIT = 500
# Some 2 ms of usual webhooks. A pause takes a third of what one of them does.
READ_AT_ONCE_BYTES = 64 * 1024

log = structlog.get_logger("sendwhy")


@value_class
class Beat:
    """A number was heard of at `heard_at`, by statuses at least `late_seconds` old then; or another app spoke of it."""

    heard_at: datetime | None = None
    late_seconds: float | None = None
    foreign_at: datetime | None = None

    def with_later(self, other: "Beat") -> "Beat":
        return Beat(
            latest(self.heard_at, other.heard_at),
            min((late for late in (self.late_seconds, other.late_seconds) if late is not None), default=None),
            latest(self.foreign_at, other.foreign_at),
        )


def latest(*moments: datetime | None) -> datetime | None:
    return max((moment for moment in moments if moment is not None), default=None)


@value_class
class Replayed:
    """Reading stored deliveries again, for one workspace: everything else is left out, and what stands says nothing."""

    workspace_id: str
    at: datetime


@dataclass(slots=True)
class Outcome:
    """What deliveries lead to: `publish` now, `from_outbox` what no Kafka record stands behind, the counts, and the ids
    of what is `unclaimed`. `changes` only in a replay."""

    publish: list[Outgoing] = field(default_factory=list)
    from_outbox: list[tuple[UUID, Outgoing]] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)
    errors: Counter[tuple[str, ReasonCode]] = field(default_factory=Counter)
    dead: Counter[str] = field(default_factory=Counter)
    verdict: Verdict = field(default_factory=Verdict)
    beats: dict[str, Beat] = field(default_factory=dict)
    changes: dict[MessageKey, Change] = field(default_factory=dict)
    unclaimed: set[UUID] = field(default_factory=set)

    def count(self, metrics: Metrics) -> None:
        for kind, number in self.unknown.items():
            metrics.inc(Metric.WEBHOOK_UNKNOWN, number, kind=kind)
        for (place, code), number in self.errors.items():
            metrics.inc(Metric.WEBHOOK_ERRORS, number, place=place, reason=code)
        for error, number in self.dead.items():
            metrics.inc(Metric.DEAD_LETTERS, number, topic=Topic.WEBHOOK_RECEIVED, error=error)
        for (status, applied), number in self.verdict.applied.items():
            metrics.inc(Metric.STATUS_UPDATES, number, status=status, applied=applied)
        for failure, number in self.verdict.failed.items():
            metrics.inc(Metric.FAILED, number, service=Service.WEBHOOK_INGEST, reason=failure)


def delivery_of(record: Record[None]) -> Delivery:
    """A record of webhook.received; its body is read later, so that bad bodies are ours to put aside. Raises
    ValueError where the headers, which the door wrote, are missing."""
    # The first of a name counts.
    headers = dict(reversed(record.headers))
    source = (headers.get("source") or b"").decode()
    signer = (headers.get("app_id") or headers.get("workspace_id") or b"").decode()
    if source not in ("meta", "shopify") or not signer:
        raise ValueError("headers: source and app_id or workspace_id: missing")
    return Delivery(
        "shopify" if source == "shopify" else "meta",
        signer,
        record.value or b"",
        record.at,
        record.partition,
        record.offset,
        _text(headers.get("shopify_topic")),
        record.trace,
        _text(headers.get("shopify_event_id")),
    )


def _text(header: bytes | None) -> str:
    # The database takes no NUL in a text.
    return header.decode(errors="replace").replace("\0", "\ufffd") if header else ""


async def apply(
    connection: Connection,
    deliveries: Sequence[Delivery],
    apps: AbstractSet[str],
    *,
    replayed: Replayed | None = None,
) -> Outcome:
    """Read deliveries and store what they tell, in the caller's transaction."""
    outcome = Outcome()
    elements = await _read_all(await shopify.without_repeats(connection, deliveries), outcome)
    if replayed is not None:
        # What can't be read, and what is unknown, has been put aside and counted before.
        outcome = Outcome()
    origins = (element.origin for _, element in elements if not isinstance(element, Unreadable))
    senders = await store.senders_of(connection, {origin.number for origin in origins if origin.number})
    accounts = await store.senders_of_accounts(connection, accounts_needed(elements, senders))
    if accounts:
        elements = await _with_numbers(connection, elements, senders, accounts, apps)
    sorted_out = sort_out(elements, senders, accounts, apps, None if replayed is None else replayed.workspace_id)
    outcome.beats = _beats(elements, sorted_out)
    await _apply_statuses(connection, sorted_out.told, outcome, replayed)
    events = await _fresh_reports(connection, sorted_out, replayed)
    outcome.unclaimed = set(sorted_out.unclaimed)
    places = await store.add_unclaimed(connection, sorted_out.unclaimed) if sorted_out.unclaimed else {}
    for event_id, several in sorted_out.unclaimed.items():
        claimable = next((one for one in several if one.delivery.place == places.get(event_id)), None)
        if claimable is not None and claimable.is_told:
            events.append((claimable.delivery, claimable.event))
    outcome.publish += outcome.verdict.publish
    outcome.publish += [_outgoing(event, delivery.trace) for delivery, event in events]
    outcome.publish += [
        _put_aside(delivery, origin.alone(), "foreign", outcome) for delivery, origin in sorted_out.foreign
    ]
    _count_unclaimed(sorted_out, outcome)
    return outcome


async def _with_numbers(
    connection: Connection,
    elements: list[tuple[Delivery, Element]],
    senders: dict[str, Sender],
    accounts: Mapping[str, Sequence[Sender]],
    apps: AbstractSet[str],
) -> list[tuple[Delivery, Element]]:
    """With the numbers of statuses that name none but can only be of one; these join `senders`."""
    possible = {place: some for place, some in without_number(elements, accounts, apps).items() if some}
    if not possible:
        return elements
    wamids = {element.wamid for place in possible if isinstance(element := elements[place][1], StatusTold)}
    known = await store.known_messages(connection, {number for some in possible.values() for number in some}, wamids)
    found = list(elements)
    for place, some in possible.items():
        delivery, element = elements[place]
        if isinstance(element, StatusTold):
            element = numbered(element, some, known)
            senders.update((number, sender) for number, sender in some.items() if number == element.origin.number)
            found[place] = delivery, element
    return found


def _count_unclaimed(sorted_out: Sorted, outcome: Outcome) -> None:
    if sorted_out.unclaimed:
        outcome.unknown["sender"] += len(sorted_out.unclaimed)
    for entry, *_ in sorted_out.unclaimed.values():
        if isinstance(entry.event, StatusUpdated):
            outcome.verdict.applied[entry.event.status, "unknown_message"] += 1


def _beats(elements: Sequence[tuple[Delivery, Element]], sorted_out: Sorted) -> dict[str, Beat]:
    """When each number was heard of; whose it is shows later, when somebody looks for a silent one."""
    foreign = {(origin.number, delivery.at) for delivery, origin in sorted_out.foreign}
    # A batch's records have a few times, and what was told in them.
    heard: set[tuple[str, datetime, datetime | None]] = set()
    for delivery, element in elements:
        number = None if isinstance(element, Unreadable) else element.origin.number
        if number is not None:
            heard.add((number, delivery.at, element.occurred_at if isinstance(element, StatusTold) else None))
    beats: dict[str, Beat] = {}
    for number, at, told in heard:
        if (number, at) in foreign:
            beat = Beat(foreign_at=at)
        else:
            beat = Beat(at, None if told is None else (at - told).total_seconds())
        beats[number] = beats[number].with_later(beat) if number in beats else beat
    return beats


async def _fresh_reports(
    connection: Connection, sorted_out: Sorted, replayed: Replayed | None
) -> list[tuple[Delivery, Event]]:
    """The reports that are to go out: each once, and again only if its own record is read again."""
    if not sorted_out.reports:
        return []
    new, places = await store.add_reports(connection, {one: told[0][0] for one, told in sorted_out.reports.items()})
    said = [
        next((told for told in several if told[0].place == places.get(event_id)), None)
        for event_id, several in sorted_out.reports.items()
        if replayed is None or event_id in new
    ]
    found = [told for told in said if told is not None]
    return [(delivery, link_event(told) if isinstance(told, Told) else told) for delivery, told in found]


async def _read_all(deliveries: Sequence[Delivery], outcome: Outcome) -> list[tuple[Delivery, Element]]:
    elements: list[tuple[Delivery, Element]] = []
    read_bytes = 0
    for delivery in deliveries:
        read_bytes += len(delivery.body)
        if read_bytes > READ_AT_ONCE_BYTES:
            # Large bodies take tens of milliseconds each, and the door answers on the same loop.
            await asyncio.sleep(0)
            read_bytes = 0
        try:
            reading = read(delivery)
        except ValueError as error:
            outcome.publish.append(_put_aside(delivery, delivery.body, f"unreadable: {error}", outcome))
            continue
        if reading.unknown or reading.errors:
            outcome.unknown.update(reading.unknown)
            outcome.errors.update(reading.errors)
        for element in reading.elements:
            if isinstance(element, Unreadable):
                dead = _put_aside(delivery, element.fragment, f"unreadable: {element.error}", outcome)
                outcome.publish.append(dead)
            else:
                elements.append((delivery, element))
    return elements


def _put_aside(delivery: Delivery, body: bytes, error: str, outcome: Outcome) -> Outgoing:
    outcome.dead[error.partition(":")[0]] += 1
    record = Record(None, Topic.WEBHOOK_RECEIVED, delivery.partition, delivery.offset, delivery.at, None, body, ())
    return dead_letter(record, service=Service.WEBHOOK_INGEST, error=error)


async def _apply_statuses(
    connection: Connection, told: Sequence[Told], outcome: Outcome, replayed: Replayed | None
) -> None:
    if not told:
        return
    locked = await store.lock_messages(connection, (entry.key for entry in told), told[0].delivery.at)
    seen = await store.seen_statuses(connection, [key for key, message in locked.items() if message.is_told_of])
    messages = risen(locked, seen)
    verdict = judge_statuses(told, messages, seen, replayed_at=None if replayed is None else replayed.at)
    outcome.verdict = verdict
    if replayed is not None:
        outcome.changes = changes_of(messages, seen, verdict)
    changed = [message for key, message in verdict.messages.items() if is_to_be_saved(messages[key], message)]
    if changed:
        await store.save_messages(connection, changed)
    await store.add_seen(connection, verdict.seen)
    outcome.from_outbox += await _join(connection, verdict.identified, verdict)


async def _join(connection: Connection, keys: Sequence[MessageKey], verdict: Verdict) -> list[tuple[UUID, Outgoing]]:
    """Statuses of messages that have become known, through the outbox: no record of their own would repeat them."""
    events = [joined(*row) for row in await store.join(connection, keys)] if keys else []
    for event in events:
        verdict.applied[event.status, "yes"] += 1
        if event.reason is not None:
            verdict.failed[event.reason.code] += 1
    outbox = [(event.event_id, _outgoing(event, None)) for event in events]
    if outbox:
        await add_to_outbox(connection, outbox)
    return outbox


def _outgoing(event: Event, trace: bytes | None) -> Outgoing:
    return outgoing(event, source=Service.WEBHOOK_INGEST, trace=trace)


async def accept(connection: Connection, records: Sequence[Record[Accepted | None]], tagger: Tagger) -> Outcome:
    """Register what Meta took; statuses that came before get their message."""
    accepted = {
        (record.event.sender_id, record.event.provider_message_id): record.event
        for record in records
        if record.event is not None
    }
    outcome = Outcome()
    if accepted:
        await store.look_again_at_messages(connection, {wamid for _, wamid in accepted})
        recipients = {key: recipient_of(tagger, told.workspace_id, told.to) for key, told in accepted.items()}
        await store.accept(connection, accepted, recipients)
        outcome.from_outbox = await _join(connection, list(accepted), outcome.verdict)
    return outcome


async def keep_senders(connection: Connection, records: Sequence[Record[SenderUpdated | None]]) -> Sequence[Outgoing]:
    """Whose each number is; the last state of a batch counts."""
    states = {(record.key or b"").decode(errors="replace"): record.event for record in records}
    before = await store.senders_of(connection, states.keys())
    await store.save_senders(connection, states)
    after = await store.senders_of(connection, states.keys())
    # Nearly always it is something else about a number that has changed.
    if changed := {sender for sender, _ in before.items() ^ after.items()}:
        accounts = {
            sender.waba_id for known in (before, after) for number, sender in known.items() if number in changed
        }
        await store.look_again_at_senders(connection, changed, accounts)
    return ()


async def claim(connection: Connection, apps: AbstractSet[str]) -> Outcome:
    """Read again what was told about numbers that have become known; all of it goes through the outbox. What is still
    nobody's is left, and what has gone out of it is not said again."""
    only_app = next(iter(apps)) if len(apps) == 1 else None
    claimable = await store.lock_claimable(connection, only_app=only_app, limit=CLAIM_LIMIT)
    if not claimable:
        return Outcome()
    outcome = await apply(connection, list(claimable.values()), apps)
    left = claimable.keys() & outcome.unclaimed
    await store.settle_claim(connection, claimable.keys() - left, left)
    outcome.publish = [record for record in outcome.publish if _event_id(record) not in left]
    await hold_in_outbox(connection, outcome)
    return outcome


async def hold_in_outbox(connection: Connection, outcome: Outcome) -> None:
    """Leave what was to be published to the sweep: no record of a stage would be read again to say it anew."""
    if outcome.publish:
        rows = [(_event_id(record), record) for record in outcome.publish]
        await add_to_outbox(connection, rows)
        outcome.from_outbox += rows
        outcome.publish = []


def _event_id(record: Outgoing) -> UUID:
    given = next((value for name, value in record.headers if name == "ce_id"), None)
    return UUID(given.decode()) if given is not None else uuid4()
