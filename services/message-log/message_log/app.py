"""The message log's wiring."""

from datetime import UTC, datetime, timedelta

from fastapi import FastAPI
from sendwhy.reasons import Service
from sendwhy.service import Runtime

from message_log import api, erasures, pages, projection, store
from message_log.erasures import People
from message_log.export import Exporter
from message_log.freshness import Freshness
from message_log.live import Streams
from message_log.settings import MessageLogSettings

KEEP_SECONDS = 60.0
MEASURE_SECONDS = 5.0


def make_app(settings: MessageLogSettings) -> FastAPI:
    runtime = Runtime(Service.MESSAGE_LOG, settings)
    freshness = Freshness(runtime.metrics)
    projection.register(runtime, freshness.applied, People(settings))

    async def keep_tables() -> None:
        now = datetime.now(UTC)
        days = {
            "event": settings.event_retention_days,
            "webhook": settings.webhook_retention_days,
            "webhook_part": settings.webhook_retention_days,
        }
        async with runtime.pool.acquire(timeout=30) as connection:
            await store.keep_partitions(connection, days, now.date())
            await store.prune(connection, now - timedelta(days=settings.event_retention_days))
            await store.empty_dead_letters(connection, now - timedelta(days=settings.webhook_retention_days))
            await erasures.prune(connection, now)

    runtime.every(KEEP_SECONDS, "tables", keep_tables)
    runtime.every(MEASURE_SECONDS, "freshness", freshness.measure)
    app = runtime.make_api("Sendwhy message log")
    app.include_router(api.routes(runtime, settings, Streams()))
    exporter = Exporter(runtime, settings)
    runtime.at_end(exporter.close)
    app.include_router(exporter.routes())
    pages.install(app, runtime, settings, freshness)
    return app
