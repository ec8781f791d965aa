"""What the dispatcher does with what it hears from Kafka. Each handler runs in one transaction with its offsets."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from sendwhy import plain
from sendwhy.erasure import erased_people, keep_erasures_waiting, on_erasing
from sendwhy.events import (
    ContactUpdated,
    MarketingState,
    MessageReceived,
    PersonErasing,
    Reason,
    SendCancelled,
    SenderReported,
    SendFunded,
    Status,
    StatusUpdated,
    TemplateReported,
)
from sendwhy.metrics import Metric
from sendwhy.postgres import Connection, add_to_outbox
from sendwhy.privacy import ERASURE, Tagger, redacted
from sendwhy.reasons import ReasonCode, Service
from sendwhy.service import Runtime
from sendwhy.stage import Record, parse_json, parse_state
from sendwhy.topics import Outgoing, Topic, source_header

from dispatcher import (
    announce,
    hold_store,
    holding,
    people_store,
    queue_store,
    recovery_store,
    reporting,
    salvage,
    store,
    sweeps,
)
from dispatcher.answers import HoldScope, Taken, verdict
from dispatcher.decide import (
    CAMPAIGN,
    UPSTREAM,
    Facts,
    Message,
    Recall,
    Reject,
    campaign_of,
    cancellation,
    decide,
    erased_contact,
    lane_of,
    receipt_deadline,
    withdraws,
)
from dispatcher.erasures import CAP, Eraser, forget_phones, of_erased
from dispatcher.fleet import Fleet
from dispatcher.holds import WEBHOOK, Refusal
from dispatcher.queue_store import Arrival, NewMessage
from dispatcher.receipts import Accepted, receipt_of
from dispatcher.settings import Settings
from dispatcher.store import Key
from dispatcher.windows import opened_by

STOP_IS_NEWS = timedelta(hours=1)
CANCEL_STEPS_AT_ONCE = 5
# Four records for each message, of which nearly all are receipts that change nothing: the few that hold a number or
# settle what was open can wait so long.
STATUS_REST_SECONDS = 0.2
# A hold stands for minutes before anybody tries it.
LOOK_AT_HOLDS_SECONDS = 5.0
_RECEIPTS = frozenset({Status.SENT, Status.DELIVERED, Status.READ, Status.PLAYED})
_OUR_SOURCE = source_header(Service.DISPATCHER)
_STATUS = parse_json(StatusUpdated)


def funded_of(record: Record[None]) -> SendFunded:
    return salvage.parsed(record.value or b"")


def status_of_others(record: Record[None]) -> StatusUpdated | plain.Receipt | None:
    """A status that somebody else tells; None for one of ours, which isn't read: that is one for every message."""
    if record.header("ce_source") == _OUR_SOURCE:
        return None
    receipt = receipt_of(record.value or b"")
    if receipt is not None:
        return receipt
    told: StatusUpdated = _STATUS(record)
    return told


class Stages:
    def __init__(
        self,
        runtime: Runtime,
        settings: Settings,
        fleet: Fleet,
        clock: Callable[[], datetime],
        accepted: Accepted | None = None,
    ) -> None:
        """`accepted`: shared with who stores that Meta took a message, so that of its receipts nothing is asked."""
        self._runtime, self._settings, self._fleet, self._clock = runtime, settings, fleet, clock
        self._tagger = Tagger(settings.privacy_key.get_secret_value())
        self._accepted = accepted or Accepted()
        self._queued_for: set[str] = set()
        self._held_by_webhook: frozenset[str] = frozenset()

    def register(self) -> None:
        stage = self._runtime.stage
        stage(Topic.SEND_FUNDED, funded_of, self.on_funded, on_committed=self._on_funded_stored)
        stage(Topic.SEND_CANCELLED, parse_json(SendCancelled), self.on_cancelled)
        stage(Topic.CONTACT_UPDATED, parse_state(ContactUpdated), self.on_contacts)
        # `note_inbound_read` asks each second how far this is read.
        stage(Topic.MESSAGE_RECEIVED, parse_json(MessageReceived), self.on_inbound, fetch_wait_ms=500)
        stage(Topic.STATUS_UPDATED, status_of_others, self.on_statuses, rest_seconds=STATUS_REST_SECONDS)
        stage(Topic.TEMPLATE_REPORTED, parse_json(TemplateReported), self.on_template_reports)
        stage(Topic.SENDER_REPORTED, parse_json(SenderReported), self.on_sender_reports)
        erase = Eraser(self._clock, self._runtime.publish_soon).erase
        stage(Topic.PERSON_ERASING, parse_json(PersonErasing), on_erasing(Service.DISPATCHER, erase))
        self._runtime.every(LOOK_AT_HOLDS_SECONDS, "holds that receipts end", self.look_at_holds)

    async def _announce(self, connection: Connection, announcements: Sequence[announce.Announcement]) -> None:
        if announcements:
            await add_to_outbox(connection, announcements)
            self._runtime.publish_soon()

    # --- send.funded ---

    async def on_funded(self, connection: Connection, records: Sequence[Record[SendFunded]]) -> Sequence[Outgoing]:
        events = {(one.event.workspace_id, one.event.message_id): one for one in reversed(records)}
        await queue_store.enter_queues(connection, {workspace for workspace, _ in events})
        known = await queue_store.arrivals(connection, list(events.values()))
        now = self._clock()
        new: list[NewMessage] = []
        refusals: dict[Key, announce.Announcement] = {}
        for key, record in events.items():
            arrival = known[key]
            message, body = _queued(record, arrival), record.value
            if arrival.alias is not None and not message.is_erased:
                message, body = replace(message, funded=redacted(message.funded, arrival.alias)), None
            why = _refusal(message, arrival)
            state = _first_state(record, message, why, arrival.parked_below, now)
            one = NewMessage(
                message=message,
                campaign_id=campaign_of(message.funded.request.origin),
                state=state,
                outcome=state if state == "recalled" else why.code if why else None,
                lined=arrival.campaign is not None and arrival.campaign.lined,
                body=body,
            )
            new.append(one)
            if state == "rejected" and why:
                refusals[key] = announce.rejected(message, why, now)
            elif state == "recalled":
                refusals[key] = announce.recalled(message, _erased(message, now), now)
        added = await queue_store.add_messages(connection, new)
        for one in new:
            if one.state == "rejected" and one.outcome and one.message.key in added:
                self._runtime.metrics.inc(Metric.REJECTED, service=Service.DISPATCHER, reason=one.outcome)
        await self._announce(connection, [told for key, told in refusals.items() if key in added])
        # A STOP may have come first; what waits for its moment shall not stand in the queue until then.
        stopped = {key: arrival.stopped for key, arrival in known.items() if arrival.stopped and key in added}
        await self._recall(connection, {(key[0], state.contact_id): state for key, state in stopped.items()})
        self._queued_for.update(one.message.sender_id for one in new)
        return []

    def _on_funded_stored(self, _records: Sequence[Record[SendFunded]]) -> None:
        """Whoever looked before the commit would find nothing."""
        senders, self._queued_for = self._queued_for, set()
        self._wake(senders)

    # --- send.cancelled ---

    async def on_cancelled(
        self, connection: Connection, records: Sequence[Record[SendCancelled]]
    ) -> Sequence[Outgoing]:
        told = {(one.event.workspace_id, one.event.message_id): one.event for one in records if one.event.message_id}
        rows = [(*key, event.by) for key, event in told.items()]
        await queue_store.remember_cancellations(connection, rows, self._clock())
        waiting = await queue_store.lock_waiting(connection, list(told))
        await self.cancel(connection, waiting, {key: event.by or UPSTREAM for key, event in told.items()})
        for record in records:
            await self._cancel_many(connection, record)
        return []

    async def _cancel_many(self, connection: Connection, record: Record[SendCancelled]) -> None:
        """A campaign's cancel holds for what comes later too, a sender's for what came before it."""
        event = record.event
        if event.campaign_id is not None:
            kind, target = sweeps.Kind.CANCEL_CAMPAIGN, event.campaign_id
        elif event.sender_id is not None:
            kind, target = sweeps.Kind.CANCEL_SENDER, event.sender_id
            row = (await store.senders(connection, [target])).get(target)
            if row is None or row.sender.workspace_id != event.workspace_id:
                return
        else:
            return
        sweep = sweeps.Sweep(event.workspace_id, kind, target, event.by or UPSTREAM, record.at)
        await sweeps.start(connection, sweep)
        if event.campaign_id is not None:
            # In the order of `cancel_all`, so that a cancel over HTTP and this one don't lock each other out.
            await queue_store.cancel_campaign(connection, event.workspace_id, target, self._clock())

    async def cancel(self, connection: Connection, messages: Sequence[Message], by: dict[Key, str]) -> int:
        """Take locked, waiting messages out of the queue."""
        now = self._clock()
        reasons = {one.key: cancellation(by[one.key]) for one in messages}
        if not reasons:
            return 0
        await queue_store.finish_waiting(connection, "rejected", dict.fromkeys(reasons, ReasonCode.CANCELLED.value))
        for _ in reasons:
            self._runtime.metrics.inc(Metric.REJECTED, service=Service.DISPATCHER, reason=ReasonCode.CANCELLED)
        await self._announce(connection, [announce.rejected(one, reasons[one.key], now) for one in messages])
        return len(reasons)

    async def cancel_all(self, connection: Connection, sweep: sweeps.Sweep) -> int:
        """Take out what waits of a campaign, and what comes of it later, or of a sender; returns how many of them now.
        What is more than a few steps goes on by itself.

        Messages are locked before their campaign: a driver that decides on some of them may wait for its row.
        """
        total = 0
        for _ in range(CANCEL_STEPS_AT_ONCE):
            total += await sweeps.cancel_step(connection, sweep, self.cancel)
        await sweeps.start(connection, sweep)
        if sweep.kind is sweeps.Kind.CANCEL_CAMPAIGN:
            await queue_store.cancel_campaign(connection, sweep.workspace_id, sweep.target, sweep.at)
        return total

    # --- contact.updated ---

    async def on_contacts(
        self, connection: Connection, records: Sequence[Record[ContactUpdated | None]]
    ) -> Sequence[Outgoing]:
        states: dict[Key, ContactUpdated] = {}
        buried: set[Key] = set()
        stopped: dict[Key, datetime] = {}
        for record in records:
            if record.event is None:
                workspace_id, _, contact_id = (record.key or b"").decode(errors="replace").partition("/")
                buried.add((workspace_id, contact_id))
                states.pop((workspace_id, contact_id), None)
                continue
            key = (record.event.workspace_id, record.event.contact_id)
            if key not in states or states[key].version <= record.event.version:
                states[key] = record.event
            if (at := _received_at(record)) is not None:
                stopped[key] = min(at, stopped.get(key, at))
        for key in await self._erased_since(connection, states):
            del states[key]
        unsubscribed = [one for one in states.values() if one.marketing_state is not MarketingState.SUBSCRIBED]
        # An erasure's order takes out what waits, whatever its purpose, and names it without the person.
        told = [(one.workspace_id, one.contact_id) for one in unsubscribed if one.source != ERASURE]
        if told:
            await queue_store.close_queues(connection, [workspace_id for workspace_id, _ in told])
        await self._forget_erased(connection, [record.event for record in records])
        news = await people_store.save_contacts(connection, states.values())
        await people_store.delete_contacts(connection, sorted(buried - states.keys()))
        if told:
            # By the states that stand: one that was told may be an old repeat.
            await self._recall(connection, await people_store.unsubscribed(connection, told))
        self._measure_stops([at for key, at in stopped.items() if key in news and key in told])
        return []

    async def _erased_since(self, connection: Connection, states: Mapping[Key, ContactUpdated]) -> list[Key]:
        """Whose person was erased after that: a state that consent told while it was frozen, or Kafka away, may come
        behind the tombstone, and nothing would end it any more."""
        await keep_erasures_waiting(connection, {workspace_id for workspace_id, _ in states})
        tags = {key: (key[0], tag) for key in states for tag in self._tagger.of_person(key[0], contact_id=key[1])}
        erased = await erased_people(connection, tags.values())
        return [key for key, tag in tags.items() if tag in erased and states[key].occurred_at <= erased[tag]]

    @staticmethod
    async def _forget_erased(connection: Connection, events: Sequence[ContactUpdated | None]) -> None:
        """The copies of erased people lead to their numbers; they go with this batch."""
        erased = {
            (one.workspace_id, one.contact_id): one.occurred_at for one in events if one and one.source == ERASURE
        }
        if not erased:
            return
        known = [*(await people_store.contacts(connection, erased)).values(), *(one for one in events if one)]
        states: dict[Key, list[ContactUpdated]] = {key: [] for key in sorted(erased)}
        for one in known:
            if (own := states.get((one.workspace_id, one.contact_id))) is not None:
                own.append(one)
        for key, own in states.items():
            phones, users = {one.phone for one in own if one.phone}, {one.user_id for one in own if one.user_id}
            await forget_phones(connection, key[0], phones, erased[key], users)

    def _measure_stops(self, received: Sequence[datetime]) -> None:
        """From here on no marketing message starts for these people. Old states that are read anew don't count."""
        now = self._clock()
        for at in received:
            if now - at < STOP_IS_NEWS:
                self._runtime.metrics.observe(Metric.STOP_TO_LAST_SECONDS, max(0.0, (now - at).total_seconds()))

    async def _recall(self, connection: Connection, standing: Mapping[Key, ContactUpdated]) -> None:
        """Take out what waits for these people, by the states that stand."""
        if not standing:
            return
        now = self._clock()
        announcements = []
        recalled: dict[Key, str] = {}
        for message in await queue_store.lock_waiting_of_contacts(connection, sorted(standing)):
            contact = standing.get(_person(message))
            if contact is not None and withdraws(contact, message):
                recalled[message.key] = "recalled"
                announcements.append(announce.recalled(message, Recall(contact), now))
        if recalled:
            await queue_store.finish_waiting(connection, "recalled", recalled)
            await self._announce(connection, announcements)

    # --- message.received ---

    async def on_inbound(
        self, connection: Connection, records: Sequence[Record[MessageReceived]]
    ) -> Sequence[Outgoing]:
        events = [record.event for record in records]
        await keep_erasures_waiting(connection, {event.workspace_id for event in events if event.workspace_id})
        erased = await of_erased(connection, self._tagger, events)
        opened = opened_by(event for position, event in enumerate(events) if position not in erased)
        if opened:
            await people_store.open_windows(connection, opened)
        return []

    # --- status.updated ---

    async def on_statuses(
        self, connection: Connection, records: Sequence[Record[StatusUpdated | plain.Receipt | None]]
    ) -> Sequence[Outgoing]:
        events = [record.event for record in records if record.event is not None]
        told: dict[Key, StatusUpdated | plain.Receipt] = {}
        capped: dict[Key, datetime] = {}
        for event in events:
            if event.service is Service.DISPATCHER or event.message_id is None or event.workspace_id is None:
                continue
            key = (event.workspace_id, event.message_id)
            is_news = event.provider_message_id and key not in self._accepted
            if is_news and (key not in told or event.occurred_at < told[key].occurred_at):
                told[key] = event
            if isinstance(event, StatusUpdated) and _is_capped(event):
                capped[key] = event.occurred_at + CAP
        # Senders are locked before messages, as everywhere.
        await self._hold_or_lift(connection, events)
        if told:
            await self._taken(connection, told)
        if capped:
            await people_store.set_caps(connection, capped)
        return []

    async def _taken(self, connection: Connection, told: Mapping[Key, StatusUpdated | plain.Receipt]) -> None:
        accepted = await queue_store.accepted(connection, told)
        self._accepted.add(accepted)
        wamids = {key: event.provider_message_id or "" for key, event in told.items() if key not in accepted}
        if not wamids:
            return
        taken = await queue_store.taken_by_webhook(connection, wamids)
        if not taken:
            return
        ttl, now = timedelta(seconds=self._settings.receipt_ttl_seconds), self._clock()
        templates = await store.templates_at_senders(connection, [_template(message) for message in taken])
        announcements = []
        for message in taken:
            template, at = templates.get(_template(message)), told[message.key].occurred_at
            category, seconds = (template.category, template.ttl_seconds) if template else (None, None)
            announcements.append(
                announce.accepted(
                    message,
                    Taken(wamids[message.key]),
                    at=at,
                    now=now,
                    category=category,
                    deadline=receipt_deadline(at, category, ttl, seconds),
                )
            )
        await self._announce(connection, announcements)

    async def look_at_holds(self) -> None:
        """Of which senders receipts may end a hold; of all others they are looked at for nothing but their messages."""
        async with self._runtime.pool.acquire(timeout=30) as connection:
            self._held_by_webhook = await hold_store.senders_held(connection, said_by=WEBHOOK)

    async def _hold_or_lift(self, connection: Connection, events: Sequence[StatusUpdated | plain.Receipt]) -> None:
        """A failure that is about the sender: the message is over, and the sender is held for the others. That ends
        once a message that was to try it has gone through."""
        now, refusals, received = self._clock(), _refusals(events), self._received(events)
        # Hardly any receipt is of a try, and for the others no sender is locked.
        over = await holding.tried_by(connection, received, now) if received else []
        # In one order, as each hold locks all senders of one: else two replicas lock each other out.
        for workspace_id in sorted(
            {workspace_id for workspace_id, *_ in refusals} | {one.workspace_id for one in over}
        ):
            await store.lock_workspace(connection, workspace_id)
        for (_, sender_id, scope), refusal in sorted(refusals.items(), key=lambda pair: pair[0]):
            held = await holding.hold_sender(connection, sender_id, scope, refusal, now, token_tag=None)
            await self._announce(connection, held)
        if over:
            changed = await holding.went_through(connection, received, now)
            await self._announce(connection, announce.senders_updated(changed, now))
            self._wake(row.sender.sender_id for row in changed)

    def _received(self, events: Sequence[StatusUpdated | plain.Receipt]) -> set[Key]:
        """Of which messages receipts came that may end a hold."""
        if not self._held_by_webhook:
            return set()
        return {
            (event.workspace_id, event.message_id)
            for event in events
            if event.sender_id in self._held_by_webhook
            and event.status in _RECEIPTS
            and event.workspace_id is not None
            and event.message_id is not None
        }

    # --- template.reported, sender.reported ---

    async def on_template_reports(
        self, connection: Connection, records: Sequence[Record[TemplateReported]]
    ) -> Sequence[Outgoing]:
        for record in records:
            told, senders = await reporting.template_report(connection, record.event, self._clock())
            await self._announce(connection, told)
            self._wake(senders)
        return []

    async def on_sender_reports(
        self, connection: Connection, records: Sequence[Record[SenderReported]]
    ) -> Sequence[Outgoing]:
        told, senders = await reporting.sender_reports(connection, [one.event for one in records], self._clock())
        await self._announce(connection, told)
        self._wake(senders)
        return []

    def _wake(self, senders: Iterable[str]) -> None:
        for sender_id in senders:
            self._fleet.wake(sender_id)


def _refusal(message: Message, arrival: Arrival) -> Reason | None:
    """Why a message can't even wait, or None."""
    if arrival.sender_id is None:
        verdict = decide(message, Facts(sender=None), message.queued_at)
        assert isinstance(verdict, Reject)
        return verdict.reason
    if arrival.cancelled_by is not None:
        return cancellation(arrival.cancelled_by)
    if arrival.campaign is not None and arrival.campaign.cancelled_at:
        return cancellation(CAMPAIGN)
    return None


def _first_state(
    record: Record[SendFunded], message: Message, why: Reason | None, parked_below: int, now: datetime
) -> str:
    was_handled = record.offset < parked_below
    if was_handled and message.funded.send_at <= now + recovery_store.SURELY_LATER:
        return "unknown"
    if message.is_erased:
        return "recalled"
    return "rejected" if why else "waiting"


def _erased(message: Message, now: datetime) -> Recall:
    return Recall(erased_contact(message.funded.workspace_id, message.funded.resolved.contact_id or "", now))


def _person(message: Message) -> Key:
    return message.funded.workspace_id, message.funded.resolved.contact_id or ""


def _template(message: Message) -> tuple[str, str, str]:
    """By sender; no template has no name."""
    wanted = message.template
    return (message.sender_id, wanted.name, wanted.language.code) if wanted else (message.sender_id, "", "")


def _refusals(events: Sequence[StatusUpdated | plain.Receipt]) -> dict[tuple[str, str, HoldScope], Refusal]:
    """What failures that webhooks told are about, by workspace, sender and scope."""
    told: dict[tuple[str, str, HoldScope], Refusal] = {}
    for event in events:
        if not isinstance(event, StatusUpdated):
            continue
        failed = event.status is Status.FAILED and event.service is Service.WEBHOOK_INGEST
        meta = event.reason.meta if event.reason else None
        if not failed or event.reason is None or meta is None or event.sender_id is None:
            continue
        if event.workspace_id is None:
            # Nobody had registered the number at webhook-ingest: who spoke for it may be anybody.
            continue
        rule, _ = verdict(meta)
        if rule.scope is not None:
            told[event.workspace_id, event.sender_id, rule.scope] = Refusal(event.reason, WEBHOOK, event.occurred_at)
    return told


def _is_capped(event: StatusUpdated) -> bool:
    return event.reason is not None and event.reason.code is ReasonCode.MARKETING_CAP_REACHED


def _received_at(record: Record[Any]) -> datetime | None:
    """When the webhook of the STOP came that a contact's state tells of."""
    try:
        at = datetime.fromisoformat((record.header("received_at") or b"").decode())
    except ValueError:
        return None
    return at if at.tzinfo is not None else None


def _queued(record: Record[SendFunded], arrival: Arrival) -> Message:
    return Message(
        funded=record.event,
        sender_id=arrival.sender_id or "",
        lane=lane_of(record.event.resolved.purpose, arrival.category),
        queued_at=record.at,
        trace=record.trace,
    )
