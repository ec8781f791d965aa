"""The wiring of webhook-ingest: the only place that knows all its parts."""

from collections.abc import Sequence
from pathlib import Path

from fastapi import FastAPI
from sendwhy.erasure import on_erasing
from sendwhy.events import PersonErasing, SenderUpdated
from sendwhy.kafka import UNHURRIED_SECONDS
from sendwhy.postgres import KEYED_LOOKUPS, Connection, time_of
from sendwhy.privacy import Tagger
from sendwhy.reasons import Service
from sendwhy.service import Runtime
from sendwhy.stage import Record, parse_json, parse_state
from sendwhy.topics import Outgoing, Topic

from webhook_ingest import api, erasures, lists, parsing, shopify, store
from webhook_ingest.accepted import Accepted, accepted_of
from webhook_ingest.door import Door
from webhook_ingest.door_openapi import DOOR
from webhook_ingest.elements import Delivery
from webhook_ingest.parsing import Outcome
from webhook_ingest.receipts import Deadlines
from webhook_ingest.settings import Settings
from webhook_ingest.watch import Pulse, Watch

MIGRATIONS = Path(__file__).parent / "migrations"
DEADLINES_SECONDS = 2.0
CLAIM_SECONDS = 1.0
COUNT_SECONDS = 15.0
WATCH_SECONDS = 20.0
PRUNE_SECONDS = 600.0


def make_app(settings: Settings) -> FastAPI:
    runtime = Runtime(Service.WEBHOOK_INGEST, settings, session=KEYED_LOOKUPS)
    pulse = Pulse()
    _add_stages(runtime, settings, pulse)
    _add_timers(runtime, settings, pulse)
    app = runtime.make_api("Sendwhy webhook-ingest")
    app.before_routes = DOOR
    app.state.entrance = Door(app, runtime.producer.publish, runtime.metrics, settings)
    app.include_router(api.routes(runtime, settings))
    app.include_router(lists.routes(runtime))
    app.include_router(erasures.routes(runtime, settings))
    return app


def _add_stages(runtime: Runtime, settings: Settings, pulse: Pulse) -> None:
    apps = frozenset(settings.app_secrets)
    tagger = Tagger(settings.privacy_key.get_secret_value())

    async def on_webhooks(connection: Connection, records: Sequence[Record[Delivery]]) -> Sequence[Outgoing]:
        outcome = await parsing.apply(connection, [record.event for record in records], apps)
        return _told(outcome)

    async def on_statuses(connection: Connection, records: Sequence[Record[Accepted | None]]) -> Sequence[Outgoing]:
        return _told(await parsing.accept(connection, records, tagger))

    def _told(outcome: Outcome) -> Sequence[Outgoing]:
        outcome.count(runtime.metrics)
        pulse.note(outcome.beats)
        return outcome.publish

    runtime.stage(Topic.WEBHOOK_RECEIVED, parsing.delivery_of, on_webhooks)
    # Whose a message is tells its webhook as well, nearly always; and of what is read here three quarters are ours.
    runtime.stage(Topic.STATUS_UPDATED, accepted_of, on_statuses, rest_seconds=UNHURRIED_SECONDS)
    runtime.stage(Topic.SENDER_UPDATED, parse_state(SenderUpdated), parsing.keep_senders)
    erase = on_erasing(Service.WEBHOOK_INGEST, erasures.erase)
    runtime.stage(Topic.PERSON_ERASING, parse_json(PersonErasing), erase)


def _add_timers(runtime: Runtime, settings: Settings, pulse: Pulse) -> None:
    apps = frozenset(settings.app_secrets)
    deadlines = Deadlines(runtime, settings.blocked_after_silent_messages)

    async def claim() -> None:
        async with runtime.pool.acquire(timeout=30) as connection, connection.transaction():
            outcome = await parsing.claim(connection, apps)
        outcome.count(runtime.metrics)
        if outcome.from_outbox:
            runtime.publish_soon()

    async def prune() -> None:
        async with runtime.pool.acquire(timeout=30) as connection:
            now = await time_of(connection)
            while await store.prune(connection, now):
                pass
            await shopify.prune(connection, now)

    watch = Watch(runtime, settings, pulse)

    runtime.every(DEADLINES_SECONDS, "deadlines", deadlines.tick)
    runtime.every(COUNT_SECONDS, "count awaited receipts", deadlines.count)
    runtime.every(WATCH_SECONDS, "watch for silent senders", watch.tick)
    runtime.every(CLAIM_SECONDS, "claim", claim)
    runtime.every(PRUNE_SECONDS, "prune", prune)
