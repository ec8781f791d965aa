"""What billing does with its topics: funding, settling, and the copies that prices need."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from sendwhy import plain
from sendwhy.erasure import standing_and_erased
from sendwhy.events import (
    AccountUpdated,
    Price,
    Reason,
    SendConsented,
    SenderUpdated,
    SendFunded,
    SendRejected,
    SendRequested,
    StatusUpdated,
    TemplateUpdated,
    event_id_of,
    milliseconds,
)
from sendwhy.metrics import Metric, Metrics
from sendwhy.postgres import Connection, Decision, MessageKey, Write, decisions_added, write_together
from sendwhy.reasons import ReasonCode, Service
from sendwhy.stage import Record, parse_json
from sendwhy.topics import Outgoing, Topic, outgoing, record_of_event
from sendwhy.values import value_class

from billing import books, store
from billing.decide import (
    RECEIPTS,
    Account,
    AnyResolved,
    Ask,
    Cause,
    Charge,
    Entry,
    Funding,
    News,
    Quote,
    Settlement,
    Told,
    alerts,
    calling_code_of,
    country_of,
    fund,
    is_covered,
    origin_of,
    price_list,
    price_of,
    settle,
    told_by,
)
from billing.erasures import without_person
from billing.pricing import NO_RECEIPT, Difference, meta_pricing

STEP = "billing"
# contract.md, "What holds": keys that make repeats harmless outlive the message by this much.
KEPT_AFTER_EXPIRY = timedelta(days=45)

log = structlog.get_logger("billing")


@value_class
class Priceable:
    """What a price depends on. `at` is when the request was made."""

    request: SendRequested | plain.Request
    resolved: AnyResolved | None
    at: datetime


async def prices_for(connection: Connection, asked: Sequence[Priceable]) -> list[Quote]:
    """The prices of these requests, in their order."""
    rows = await store.prices_of(connection, {item.request.workspace_id for item in asked})
    lists = {workspace: price_list(prices) for workspace, prices in rows.items()}
    uses = [_template_use(item.request) for item in asked]
    categories = await store.categories_of(connection, (use for use in uses if use is not None))
    return [
        price_of(
            lists.get(item.request.workspace_id, {}),
            item.request,
            category=categories.get(use) if use is not None else None,
            calling_code=calling_code_of(item.resolved, item.request),
            at=item.at,
        )
        for item, use in zip(asked, uses, strict=True)
    ]


def _template_use(request: SendRequested | plain.Request) -> store.TemplateUse | None:
    template = request.template_id
    return None if template is None else store.TemplateUse(request.workspace_id, request.sender_id, *template)


async def account_records(connection: Connection, workspaces: Iterable[str]) -> list[Outgoing]:
    return _told(await store.account_events(connection, workspaces))


def _told(states: Iterable[AccountUpdated]) -> list[Outgoing]:
    return [outgoing(state, source=Service.BILLING) for state in sorted(states, key=lambda state: state.workspace_id)]


AnyConsented = SendConsented | plain.Consented
_CONSENTED = parse_json(SendConsented)
# As consent writes it: what else an event has stands behind.
_BEHIND_HEAD = b',"request":'
_HEAD = re.compile(rb'\{"event_id":"[^"\\]*","occurred_at":"[^"\\]*"(?=,"request":)')


def consented_of(record: Record[None]) -> AnyConsented:
    """The parser of send.consented."""
    body = record.value or b""
    return (plain.consented_of(body) if _is_as_written(body) else None) or whole_of(record)


def _is_as_written(body: bytes) -> bool:
    """Whether it becomes a send.funded by another head and a price behind it."""
    is_told_once = body.count(b'"event_id"') == 1 and body.count(b'"occurred_at"') == 1
    return is_told_once and body.endswith(b"}") and _HEAD.match(body) is not None


def whole_of(record: Record[Any]) -> SendConsented:
    """The event with all that it tells, read again if need be."""
    if isinstance(record.event, SendConsented):
        return record.event
    whole: SendConsented = _CONSENTED(record)
    return whole


class Funder:
    """The handler of send.consented."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def on_consented(self, connection: Connection, records: Sequence[Record[AnyConsented]]) -> list[Outgoing]:
        """Reserve or refuse. Decisions are read under the accounts' locks, so a twin's are seen."""
        firsts: dict[MessageKey, Record[AnyConsented]] = {}
        for record in records:
            request = record.event.request
            firsts.setdefault((request.workspace_id, request.message_id), record)
        accounts = await store.lock_or_open_accounts(connection, (workspace for workspace, _ in firsts))
        decided, erased = await standing_and_erased(connection, STEP, firsts)
        new: dict[MessageKey, Record[Any]] = {
            key: without_person(record, whole_of(record), erased[key]) if key in erased else record
            for key, record in firsts.items()
            if key not in decided
        }
        states: list[AccountUpdated] = []
        if new:
            fresh, states = await self._decide(connection, accounts, new)
            decided |= fresh
        rest = accounts.keys() - {state.workspace_id for state in states}
        if rest:
            states += await store.account_events(connection, rest)
        return [*(decided[key] for key in firsts), *_told(states)]

    async def _decide(
        self, connection: Connection, accounts: Mapping[str, Account], new: Mapping[MessageKey, Record[AnyConsented]]
    ) -> tuple[dict[MessageKey, Outgoing], list[AccountUpdated]]:
        """The decisions, and the states of the accounts on which something was booked."""
        at = datetime.now(UTC)
        asked = [Priceable(r.event.request, r.event.resolved, r.event.request.requested_at or at) for r in new.values()]
        quotes = await prices_for(connection, asked)
        asks: dict[str, list[Ask]] = {}
        for ((workspace, _), record), quote in zip(new.items(), quotes, strict=True):
            asks.setdefault(workspace, []).append(_ask(record.event, quote))
        tallies = await _tallies_to_tell(connection, accounts, asks)
        fundings = {
            workspace: fund(accounts[workspace], group, tallies.get(workspace, {})) for workspace, group in asks.items()
        }
        decisions = [
            _decision(key, record, fundings[key[0]].refused.get(key[1]), quote.price, at)
            for (key, record), quote in zip(new.items(), quotes, strict=True)
        ]
        states = await store_fundings(connection, fundings, decisions, decisions_added(decisions), at=at)
        await note_alerts(
            connection,
            self._metrics,
            [(accounts[name], funding.account, funding.entries) for name, funding in fundings.items()],
            at=at,
        )
        self._count(fundings.values())
        return {(each.workspace_id, each.message_id): each.outgoing for each in decisions}, states

    def _count(self, fundings: Iterable[Funding]) -> None:
        refused = Counter(reason.code for funding in fundings for reason in funding.refused.values())
        for code, count in refused.items():
            self._metrics.inc(Metric.REJECTED, count, service=Service.BILLING, reason=code)


async def _tallies_to_tell(
    connection: Connection, accounts: Mapping[str, Account], asks: Mapping[str, Sequence[Ask]]
) -> store.Tallies:
    """Refusals tell them: they are asked for only where there may be some."""
    short = {name: group for name, group in asks.items() if not is_covered(accounts[name], group)}
    if not short:
        return {}
    return await store.tallies_of(connection, ((name, origin_of(ask.charge)) for name in short for ask in short[name]))


def _ask(event: AnyConsented, quote: Quote) -> Ask:
    origin, price = event.request.origin, quote.price
    charge = Charge(
        event.request.message_id,
        price,
        origin.kind,
        origin.id,
        country=country_of(event.resolved, price.calling_code),
        row=quote.row,
    )
    return Ask(charge, Cause(str(event.event_id), Topic.SEND_CONSENTED))


def _decision(
    key: MessageKey, record: Record[AnyConsented], refusal: Reason | None, price: Price, at: datetime
) -> Decision:
    event = record.event
    prune_after = max(event.expires_at, at) + KEPT_AFTER_EXPIRY
    if refusal is None and isinstance(event, plain.Consented):
        event_id = event_id_of(str(event.event_id), "send.funded")
        return Decision(*key, STEP, event_id, _funded(event, record, event_id, price, at), prune_after)
    event = whole_of(record)
    verdict: SendFunded | SendRejected
    if refusal is None:
        verdict = SendFunded.of_checked(
            event_id=event_id_of(str(event.event_id), "send.funded"),
            occurred_at=at,
            request=event.request,
            resolved=event.resolved,
            contact_version=event.contact_version,
            needs_subscription=event.needs_subscription,
            send_at=event.send_at,
            expires_at=event.expires_at,
            price=price,
        )
    else:
        verdict = SendRejected(
            event_id=event_id_of(str(event.event_id), "send.rejected"),
            occurred_at=at,
            message_id=key[1],
            workspace_id=key[0],
            sender_id=event.request.sender_id,
            to=event.request.to,
            origin=event.request.origin,
            service=Service.BILLING,
            reason=refusal,
            metadata=event.request.metadata,
        )
    return Decision(
        *key,
        STEP,
        verdict.event_id,
        outgoing(verdict, source=Service.BILLING, trace=record.trace),
        prune_after,
    )


def _funded(event: plain.Consented, record: Record[Any], event_id: UUID, price: Price, at: datetime) -> Outgoing:
    """`outgoing` of the SendFunded: what consent has written, with billing's own words around it."""
    written = record.value or b""
    said = written[written.index(_BEHIND_HEAD) : -1]
    head = f'{{"event_id":"{event_id}","occurred_at":"{milliseconds(at)}"'
    body = b"".join((head.encode(), said, b',"price":', price.to_json(), b"}"))
    key = event.message_id.encode()
    return record_of_event(Topic.SEND_FUNDED, key, body, str(event_id), at, source=Service.BILLING, trace=record.trace)


async def store_fundings(
    connection: Connection,
    fundings: Mapping[str, Funding],
    decisions: Sequence[Decision],
    *others: Write,
    at: datetime,
) -> list[AccountUpdated]:
    """Write the fundings of these decisions, and `others` in the same go; returns the states of the accounts on which
    something was booked."""
    tallies = store.tallies_raised({workspace: funding.tallies for workspace, funding in fundings.items()})
    entries = [entry for workspace in sorted(fundings) for entry in fundings[workspace].entries]
    if not entries:
        await write_together(connection, tallies, *others)
        return []
    kept_until = {(decision.workspace_id, decision.message_id): decision.prune_after for decision in decisions}
    new = [
        store.NewCharge(entry.workspace_id, entry.charge, kept_until[entry.workspace_id, entry.charge.message_id])
        for entry in entries
        if entry.charge is not None
    ]
    booked = [funding.account for funding in fundings.values() if funding.entries]
    return await store.book(connection, entries, booked, store.charges_added(new), tallies, *others, at=at)


_STATUS = parse_json(StatusUpdated)


def status_of(record: Record[None]) -> StatusUpdated | plain.PricedReceipt:
    """The parser of status.updated."""
    receipt = plain.priced_receipt_of(record.value or b"")
    if receipt is not None:
        return receipt
    status: StatusUpdated = _STATUS(record)
    return status


class Settler:
    """The handlers of status.updated and send.rejected."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def on_status(
        self, connection: Connection, records: Sequence[Record[StatusUpdated | plain.PricedReceipt]]
    ) -> list[Outgoing]:
        return await self._settle(connection, [news for record in records for news in status_news(record.event)])

    async def on_rejected(self, connection: Connection, records: Sequence[Record[SendRejected]]) -> list[Outgoing]:
        events = [record.event for record in records if _is_of_a_funded_message(record.event)]
        return await self._settle(connection, [(event.workspace_id, _rejection_news(event)) for event in events])

    async def _settle(self, connection: Connection, news: Sequence[tuple[str, News]]) -> list[Outgoing]:
        """Book what the news lead to; returns the state of every account whose messages they told of, repeats too."""
        if not news:
            return []
        by_workspace: dict[str, list[News]] = {}
        for workspace, item in news:
            by_workspace.setdefault(workspace, []).append(item)
        accounts = await store.lock_accounts(connection, by_workspace)
        charges = await store.charges_of(connection, ((workspace, item.message_id) for workspace, item in news))
        settled = [
            settle(accounts[workspace], charges[workspace], by_workspace[workspace]) for workspace in sorted(charges)
        ]
        at = datetime.now(UTC)
        states = await self._store(connection, charges, settled, at)
        moves = [(accounts[each.account.workspace_id], each.account, each.entries) for each in settled]
        await note_alerts(connection, self._metrics, moves, at=at)
        rest = charges.keys() - {state.workspace_id for state in states}
        if rest:
            states += await store.account_events(connection, rest)
        return _told(states)

    async def _store(
        self,
        connection: Connection,
        charges: Mapping[str, Mapping[str, Charge]],
        settled: Sequence[Settlement],
        at: datetime,
    ) -> list[AccountUpdated]:
        """Returns the states of the accounts on which something was booked."""
        entries: list[Entry] = [entry for settlement in settled for entry in settlement.entries]
        changed = {
            (settlement.account.workspace_id, message_id): charge
            for settlement in settled
            for message_id, charge in settlement.changed.items()
        }
        writes = [store.charges_saved(changed)] if changed else []
        states: list[AccountUpdated] = []
        if entries:
            booked = [settlement.account for settlement in settled if settlement.entries]
            states = await store.book(connection, entries, booked, *writes, at=at)
        elif writes:
            await write_together(connection, *writes)
        differs = {
            (key, kind): stands
            for key, charge in changed.items()
            if charge.meta is not None
            for kind, stands in _changed_differences(charges[key[0]][key[1]], charge).items()
        }
        if differs:
            await books.note_differences(connection, differs, changed, at=at)
            new = (
                kind
                for (key, kind), stands in differs.items()
                if stands and kind not in charges[key[0]][key[1]].differences()
            )
            for kind, count in Counter(new).items():
                self._metrics.inc(Metric.PRICING_DIFFERENCES, count, kind=kind)
        return states


def status_news(event: StatusUpdated | plain.PricedReceipt) -> Iterable[tuple[str, News]]:
    told = told_by(event)
    if told is None or event.workspace_id is None or event.message_id is None:
        return
    code = None if event.reason is None else event.reason.code
    cause = Cause(str(event.event_id), f"{Topic.STATUS_UPDATED}/{event.status}", code)
    meta = meta_pricing(event.pricing, RECEIPTS.get(told, NO_RECEIPT))
    yield event.workspace_id, News(event.message_id, told, cause, meta)


def _is_of_a_funded_message(event: SendRejected) -> bool:
    """Our own rejections never stand on a reservation. An INVALID_REQUEST takes no id: what is funded under that is the
    corrected request, whichever of the two topics is read first."""
    return event.service is not Service.BILLING and event.reason.code is not ReasonCode.INVALID_REQUEST


def _rejection_news(event: SendRejected) -> News:
    return News(event.message_id, Told.REJECTED, Cause(str(event.event_id), Topic.SEND_REJECTED, event.reason.code))


def _changed_differences(before: Charge, after: Charge) -> dict[Difference, bool]:
    """Which differences to note, and whether they stand: also those that stood before, for what is told of them."""
    # Of one charge they depend on nothing else.
    if (before.meta, before.is_charged) == (after.meta, after.is_charged):
        return {}
    old, new = before.differences(), after.differences()
    return {kind: kind in new for kind in old | new}


async def note_alerts(
    connection: Connection,
    metrics: Metrics,
    states: Iterable[tuple[Account, Account, Sequence[Entry]]],
    *,
    at: datetime,
) -> None:
    """Count what was booked; store and count the thresholds reached from each account as it was to what the entries
    made of it."""
    states = list(states)
    booked: Counter[str] = Counter()
    for entry in (entry for _, _, entries in states for entry in entries):
        booked[entry.kind] += abs(entry.amount) if entry.charge is None else entry.charge.price.credits
    for kind, credits in booked.items():
        metrics.inc(Metric.CREDITS_BOOKED, credits, entry=kind)
    reached = [
        alert
        for before, after, entries in states
        if before.low_balance_percent != after.low_balance_percent
        for alert in alerts(before, entries)
    ]
    if not reached:
        return
    await books.add_alerts(connection, reached, at=at)
    for percent, count in Counter(alert.percent for alert in reached).items():
        metrics.inc(Metric.LOW_BALANCE_ALERTS, count, percent=str(percent))
    for alert in reached:
        log.warning(
            "a workspace's credits run low",
            workspace=alert.workspace_id,
            percent=alert.percent,
            balance=alert.balance,
            last_top_up=alert.last_top_up,
        )


async def on_sender(connection: Connection, records: Sequence[Record[SenderUpdated | None]]) -> list[Outgoing]:
    await store.keep_senders(connection, _latest(records))
    return []


async def on_template(connection: Connection, records: Sequence[Record[TemplateUpdated | None]]) -> list[Outgoing]:
    await store.keep_templates(connection, _latest(records))
    return []


def _latest(records: Sequence[Record[Any]]) -> dict[str, Any]:
    """The last state of each key: these topics have one partition, so a batch is in order."""
    return {(record.key or b"").decode(errors="replace"): record.event for record in records}
