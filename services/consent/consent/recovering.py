"""After a restored backup (`rewind`): what consent has decided and known since is taken from what it told.

A no that somebody brought over HTTP stands nowhere else (ADR 42).
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import structlog
from sendwhy.events import ContactUpdated, MarketingState, SendConsented, SendRejected, event_id_of
from sendwhy.postgres import Connection, Decision, MessageKey, add_to_outbox
from sendwhy.privacy import ERASURE
from sendwhy.reasons import Service
from sendwhy.recovery import Recovery, events_of
from sendwhy.service import Runtime
from sendwhy.stage import Record
from sendwhy.topics import Outgoing, Topic, outgoing

from consent import store
from consent.contacts import UNSUBSCRIBED, Change, Key, Mark, Origin, Word
from consent.decide import keep_until
from consent.fields import Fields
from consent.settings import Settings
from consent.stages import CONSENT_STEP, RECALL_STEP, marks_of_request

AT_ONCE = 200
BY = "restored backup"
# A refusal doesn't say when its message would have expired; none may live longer.
LIFE_MAX = timedelta(days=45)

_CONTINUE = """
update contact c set version = n.version + 1
from unnest($1::text[], $2::text[], $3::bigint[]) as n(workspace_id, contact_id, version)
where c.workspace_id = n.workspace_id and c.contact_id = n.contact_id and c.version <= n.version
returning c.*
"""

log = structlog.get_logger("sendwhy")


class Recovering:
    def __init__(self, runtime: Runtime, settings: Settings) -> None:
        self._runtime = runtime
        self._tagger = store.Tagger(settings.privacy_key.get_secret_value())

    def register(self) -> None:
        self._runtime.before_rewind(self.recover)

    async def recover(self, recovery: Recovery) -> None:
        told: dict[Key, ContactUpdated | None] = {}
        async for batch in recovery.told(Topic.CONTACT_UPDATED):
            told |= states(batch)
        decided = contacts = 0
        async with self._runtime.pool.acquire(timeout=30) as connection:
            async for batch in recovery.told(Topic.SEND_CONSENTED):
                async with connection.transaction():
                    decided += await adopt(connection, self._tagger, events_of(batch, SendConsented))
            async for batch in recovery.told(Topic.SEND_REJECTED):
                async with connection.transaction():
                    decided += await adopt(connection, self._tagger, events_of(batch, SendRejected))
            keys = sorted(told)
            for start in range(0, len(keys), AT_ONCE):
                some = {key: told[key] for key in keys[start : start + AT_ONCE]}
                async with connection.transaction():
                    contacts += await learn(connection, self._tagger, some)
        log.warning(
            "what was decided and known after the backup is taken from the topics", decisions=decided, contacts=contacts
        )


async def adopt(connection: Connection, tagger: store.Tagger, told: Iterable[tuple[Record[None], Any]]) -> int:
    """Store decisions as they were told, byte for byte, where none stands."""
    decisions: dict[tuple[MessageKey, str], Decision] = {}
    whom: dict[MessageKey, tuple[Mark, ...]] = {}
    for record, event in told:
        key = (event.workspace_id, event.message_id)
        step = _step_of(event)
        if step is None:
            continue
        until = event.expires_at if isinstance(event, SendConsented) else event.occurred_at + LIFE_MAX
        prune_after = keep_until(until, event.occurred_at)
        told_as = Outgoing(record.topic, record.key, record.value, record.headers)
        decisions[key, step] = Decision(*key, step, event.event_id, told_as, prune_after)
        whom[key] = _marks_of(event)
    rows = [(key, whom[key], one.prune_after) for (key, _), one in decisions.items()]
    return len(await store.add_decided(connection, tagger, list(decisions.values()), rows))


async def learn(connection: Connection, tagger: store.Tagger, told: Mapping[Key, ContactUpdated | None]) -> int:
    """Bring these contacts to the states that were told of them, if those are newer; returns how many were."""
    await store.lock_workspaces(connection, {key.workspace_id for key in told})
    found = await store.contacts_of(connection, [Mark(key.workspace_id, "contact", key.contact_id) for key in told])
    known = {contact.key: contact.version for contact in found}
    changes = {
        key: change
        for key, state in told.items()
        if (state is None or known.get(key, -1) < state.version) and (change := _change(key, state, known)) is not None
    }
    if not changes:
        return 0
    book = await store.open_book(connection, tagger, list(changes.values()), datetime.now(UTC))
    for key, change in changes.items():
        if (refusal := book.apply(change)) is not None:
            log.warning("a contact's state of after the backup was refused", contact=key.contact_id, why=refusal)
    await store.save_book(connection, tagger, book)
    rows = sorted((*key, state.version) for key in changes if (state := told[key]) is not None)
    renewed = await connection.fetch(_CONTINUE, *([row[i] for row in rows] for i in range(3)))
    events = {contact.key: contact.to_event() for contact in map(store.contact_from, renewed)}
    events |= {
        key: event for event in book.events() if (key := Key(event.workspace_id, event.contact_id)) not in events
    }
    await add_to_outbox(connection, [_announced(event) for event in events.values()])
    return len(changes)


def _announced(event: ContactUpdated) -> tuple[UUID, Outgoing]:
    return uuid4(), outgoing(event, source=Service.CONSENT)


def states(batch: Sequence[Record[None]]) -> dict[Key, ContactUpdated | None]:
    """The last state of each contact; None for one that was erased: a last state tells it, then the tombstone."""
    found: dict[Key, ContactUpdated | None] = {}
    for record in batch:
        if record.value is None:
            workspace, _, contact_id = (record.key or b"").decode(errors="replace").partition("/")
            found[Key(workspace, contact_id)] = None
        for _, event in events_of([record], ContactUpdated) if record.value is not None else ():
            found[Key(event.workspace_id, event.contact_id)] = None if event.source == ERASURE else event
    return found


def _step_of(event: SendConsented | SendRejected) -> str | None:
    """Which decision the event tells; None for a refusal of what could not be read, which is none."""
    if isinstance(event, SendConsented):
        return CONSENT_STEP
    name = f"{event.workspace_id}/{event.message_id}"
    steps = {
        event_id_of(name, "send.rejected"): CONSENT_STEP,
        event_id_of(f"{name}/recall", "send.rejected"): RECALL_STEP,
    }
    return steps.get(event.event_id)


def _marks_of(event: SendConsented | SendRejected) -> tuple[Mark, ...]:
    if isinstance(event, SendConsented):
        contact_id = event.resolved.contact_id
        named = (Mark(event.workspace_id, "contact", contact_id),) if contact_id else ()
        return tuple(dict.fromkeys((*named, *marks_of_request(event.request))))
    contact_id = event.to.contact_id if event.to else None
    return (Mark(event.workspace_id, "contact", contact_id),) if contact_id else ()


def _change(key: Key, state: ContactUpdated | None, known: Mapping[Key, int]) -> Change | None:
    if state is None:
        if key not in known:
            return None
        cause = f"restored/{key.contact_id}/erased"
        return Change(key.workspace_id, cause, datetime.now(UTC), BY, Origin.ERASURE, key.contact_id)
    word = None
    if state.marketing_state is not MarketingState.UNKNOWN:
        word = Word(state.marketing_state, state.since, state.source, state.proof)
    return Change(
        workspace_id=key.workspace_id,
        cause=f"restored/{state.event_id}",
        at=state.occurred_at,
        by=BY,
        origin=Origin.PUT,
        contact_id=key.contact_id,
        fields=Fields(
            phone=state.phone_given,
            country_code=state.phone_country_code,
            calling_code=state.phone_calling_code,
            user_id=state.user_id,
            name=state.name,
            language=state.language,
            address_country=state.address_country,
            external_ids=tuple(state.external_ids),
        ),
        word=word,
        # Who told it isn't known here any more: a no is taken as the person's own, which no import undoes.
        firm=state.marketing_state == UNSUBSCRIBED,
    )
