"""The parsing half: what the stages and timers do with raw deliveries, senders, and `accepted`."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import structlog
from sendwhy.events import Event, SenderUpdated, Status, StatusUpdated
from sendwhy.metrics import Metric, Metrics
from sendwhy.postgres import Connection, add_to_outbox
from sendwhy.privacy import Tagger
from sendwhy.reasons import Service
from sendwhy.stage import Record, dead_letter
from sendwhy.topics import Outgoing, Topic, outgoing

from webhook_ingest import shopify, store
from webhook_ingest.decide import MessageKey, Sorted, Told, Verdict, joined, judge_statuses, sort_out
from webhook_ingest.erasures import recipient_of
from webhook_ingest.fragments import Delivery, Element, Unreadable, read

CLAIM_LIMIT = 500

log = structlog.get_logger("sendwhy")


@dataclass(slots=True)
class Outcome:
    """What deliveries lead to: `publish` now, `from_outbox` what no Kafka record stands behind, and the counts."""

    publish: list[Outgoing] = field(default_factory=list)
    from_outbox: list[tuple[UUID, Outgoing]] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)
    dead: Counter[str] = field(default_factory=Counter)
    verdict: Verdict = field(default_factory=Verdict)

    def count(self, metrics: Metrics) -> None:
        for kind, number in self.unknown.items():
            metrics.inc(Metric.WEBHOOK_UNKNOWN, number, kind=kind)
        for error, number in self.dead.items():
            metrics.inc(Metric.DEAD_LETTERS, number, topic=Topic.WEBHOOK_RECEIVED, error=error)
        for (status, applied), number in self.verdict.applied.items():
            metrics.inc(Metric.STATUS_UPDATES, number, status=status, applied=applied)
        for code, number in self.verdict.failed.items():
            metrics.inc(Metric.FAILED, number, service=Service.WEBHOOK_INGEST, reason=code)


def delivery_of(record: Record[None]) -> Delivery:
    """A record of webhook.received; its body is read later, so that bad bodies are ours to put aside. Raises
    ValueError where the headers, which the door wrote, are missing."""
    source = (record.header("source") or b"").decode()
    signer = (record.header("app_id") or record.header("workspace_id") or b"").decode()
    if source not in ("meta", "shopify") or not signer:
        raise ValueError("headers: source and app_id or workspace_id: missing")
    return Delivery(
        "shopify" if source == "shopify" else "meta",
        signer,
        record.value or b"",
        record.at,
        record.partition,
        record.offset,
        _text(record.header("shopify_topic")),
        record.trace,
        _text(record.header("shopify_event_id")),
    )


def _text(header: bytes | None) -> str:
    # The database takes no NUL in a text.
    return (header or b"").decode(errors="replace").replace("\0", "\ufffd")


def accepted_of(record: Record[None]) -> StatusUpdated | None:
    """An `accepted` of the dispatcher; None for all other statuses. Raises ValueError where its keys are missing."""
    event = StatusUpdated.model_validate_json(record.value or b"")
    if event.status is not Status.ACCEPTED or event.service is not Service.DISPATCHER:
        return None
    missing = [
        name for name in ("workspace_id", "message_id", "sender_id", "provider_message_id") if not getattr(event, name)
    ]
    if missing:
        raise ValueError(f"accepted without {', '.join(missing)}")
    return event


async def apply(
    connection: Connection,
    deliveries: Sequence[Delivery],
    apps: AbstractSet[str],
    *,
    only_workspace: str | None = None,
) -> Outcome:
    """Read deliveries and store what they tell, in the caller's transaction.

    With `only_workspace` everything else is left out, also what can't be read: it has been put aside before.
    """
    outcome = Outcome()
    elements = await _read_all(await shopify.without_repeats(connection, deliveries), outcome)
    if only_workspace is not None:
        outcome.publish.clear()
    origins = [element.origin for _, element in elements if not isinstance(element, Unreadable)]
    senders = await store.senders_of(
        connection, (origin.number for origin in origins if origin.number), (origin.waba for origin in origins)
    )
    sorted_out = sort_out(elements, senders, apps, only_workspace)
    await _apply_statuses(connection, sorted_out.told, outcome)
    fresh = await store.add_unclaimed(connection, sorted_out.unclaimed) if sorted_out.unclaimed else set()
    outcome.publish += _events(sorted_out, fresh, outcome.verdict)
    outcome.publish += [_put_aside(delivery, body, "foreign", outcome) for delivery, body in sorted_out.foreign]
    for entry in sorted_out.unclaimed.values():
        if isinstance(entry.event, StatusUpdated):
            outcome.verdict.applied[entry.event.status, "unknown_message"] += 1
    return outcome


async def _read_all(deliveries: Sequence[Delivery], outcome: Outcome) -> list[tuple[Delivery, Element]]:
    elements: list[tuple[Delivery, Element]] = []
    for delivery in deliveries:
        # Large bodies take tens of milliseconds each, and the door answers on the same loop.
        await asyncio.sleep(0)
        try:
            reading = read(delivery)
        except ValueError as error:
            outcome.publish.append(_put_aside(delivery, delivery.body, f"unreadable: {error}", outcome))
            continue
        outcome.unknown.update(reading.unknown)
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


async def _apply_statuses(connection: Connection, told: Sequence[Told], outcome: Outcome) -> None:
    if not told:
        return
    messages = await store.lock_messages(connection, (entry.key for entry in told), told[0].delivery.at)
    seen = await store.seen_statuses(connection, messages)
    outcome.verdict = judge_statuses(told, messages, seen)
    await store.save_messages(connection, list(outcome.verdict.messages.values()))
    await store.add_seen(connection, outcome.verdict.seen)
    outcome.from_outbox += await _join(connection, outcome.verdict.identified, outcome.verdict)


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


def _events(sorted_out: Sorted, fresh: AbstractSet[UUID], verdict: Verdict) -> list[Outgoing]:
    events: list[tuple[Delivery, Event]] = [*verdict.events, *sorted_out.events]
    events += [(entry.delivery, entry.event) for event_id, entry in sorted_out.unclaimed.items() if event_id in fresh]
    return [_outgoing(event, delivery.trace) for delivery, event in events]


def _outgoing(event: Event, trace: bytes | None) -> Outgoing:
    return outgoing(event, source=Service.WEBHOOK_INGEST, trace=trace)


async def accept(connection: Connection, records: Sequence[Record[StatusUpdated | None]], tagger: Tagger) -> Outcome:
    """Register what Meta took; statuses that came before get their message."""
    accepted = {
        (record.event.sender_id or "", record.event.provider_message_id or ""): record.event
        for record in records
        if record.event is not None
    }
    outcome = Outcome()
    if accepted:
        recipients = {key: recipient_of(tagger, event) for key, event in accepted.items()}
        await store.accept(connection, accepted, recipients)
        outcome.from_outbox = await _join(connection, list(accepted), outcome.verdict)
    return outcome


async def keep_senders(connection: Connection, records: Sequence[Record[SenderUpdated | None]]) -> Sequence[Outgoing]:
    """Whose each number is; the last state of a batch counts."""
    states = {(record.key or b"").decode(errors="replace"): record.event for record in records}
    await store.save_senders(connection, states)
    return ()


async def claim(connection: Connection, apps: AbstractSet[str]) -> Outcome:
    """Read again what was told about numbers that have become known; all of it goes through the outbox."""
    only_app = next(iter(apps)) if len(apps) == 1 else None
    deliveries = await store.take_claimable(connection, only_app=only_app, limit=CLAIM_LIMIT)
    outcome = await apply(connection, deliveries, apps) if deliveries else Outcome()
    if outcome.publish:
        rows = [(_event_id(record), record) for record in outcome.publish]
        await add_to_outbox(connection, rows)
        outcome.from_outbox += rows
        outcome.publish = []
    return outcome


def _event_id(record: Outgoing) -> UUID:
    given = next((value for name, value in record.headers if name == "ce_id"), None)
    return UUID(given.decode()) if given is not None else uuid4()
