"""The message log's wiring."""

from datetime import timedelta

from fastapi import APIRouter, FastAPI
from sendwhy.postgres import time_of
from sendwhy.reasons import Service
from sendwhy.service import Runtime

from message_log import (
    api,
    audience_api,
    audience_pages,
    audience_store,
    automation_pages,
    bundle,
    campaign_api,
    campaign_pages,
    cells,
    contact_api,
    contact_pages,
    counts,
    credit_pages,
    dead_letter_pages,
    dead_letters,
    diagnostics_api,
    diagnostics_pages,
    erasures,
    forgetting,
    inbox_api,
    inbox_pages,
    journey_api,
    journey_pages,
    login_pages,
    message_pages,
    people_pages,
    projection,
    reason_pages,
    sender_pages,
    store,
    webhook_api,
    webhook_pages,
)
from message_log.audience_job import Audiences
from message_log.erasures import People
from message_log.export import Exporter
from message_log.freshness import Freshness
from message_log.group_lag import READ_SECONDS, GroupLag
from message_log.live import Streams
from message_log.overdue import Overdue
from message_log.pages import Pages, install_errors, static_file
from message_log.probes import Probes
from message_log.services import OtherServices
from message_log.settings import MessageLogSettings

KEEP_SECONDS = 60.0
CELLS_SECONDS = 20.0
MEASURE_SECONDS = 5.0
OVERDUE_SECONDS = 30.0


def make_app(settings: MessageLogSettings) -> FastAPI:
    runtime = Runtime(Service.MESSAGE_LOG, settings)
    freshness = Freshness(runtime.metrics)
    projection.register(runtime, freshness.applied, People(settings))
    _keep(runtime, settings)
    runtime.every(MEASURE_SECONDS, "freshness", freshness.measure)
    overdue = Overdue(runtime.metrics, freshness, lambda: runtime.pool.acquire(timeout=30))
    runtime.every(OVERDUE_SECONDS, "overdue outcomes", overdue.measure)
    lag = GroupLag(settings, runtime.metrics)
    runtime.every(READ_SECONDS, "lag of all groups", lag.read)
    runtime.at_end(lag.close)
    app = runtime.make_api("Sendwhy message log", body_limits=audience_api.BODY_LIMITS)
    app.shapes = api.shapes_asked_for()
    app.include_router(campaign_api.routes(runtime, settings))
    app.include_router(inbox_api.routes(runtime, settings))
    services = OtherServices(settings, runtime.metrics)
    audiences = Audiences(runtime, services)
    runtime.every(audience_store.BEAT_SECONDS, "audiences", audiences.beat)
    # The runs end before what they ask by is closed.
    runtime.at_end(services.close)
    runtime.at_end(audiences.close)
    desk = audience_api.Desk(runtime, audiences)
    app.include_router(audience_api.routes(settings, desk))
    streams = Streams()
    app.include_router(api.routes(runtime, settings, streams))
    app.include_router(counts.routes(runtime))
    app.include_router(webhook_api.routes(runtime))
    app.include_router(dead_letters.routes(runtime))
    app.include_router(bundle.routes(runtime, settings, services))
    app.include_router(Exporter(runtime, settings, services).routes())
    app.include_router(contact_api.routes(runtime, settings, services))
    probes = Probes(runtime, services, freshness)
    app.include_router(diagnostics_api.routes(probes))
    app.include_router(journey_api.routes(runtime, settings))
    install_pages(app, Pages(runtime, settings, freshness, services, streams), desk, probes)
    return app


def _keep(runtime: Runtime, settings: MessageLogSettings) -> None:
    """What the tables need from time to time."""

    async def keep_tables() -> None:
        days = {
            "event": settings.event_retention_days,
            "webhook": settings.webhook_retention_days,
            "webhook_part": settings.webhook_retention_days,
        }
        async with runtime.pool.acquire(timeout=30) as connection:
            now = await time_of(connection)
            await store.keep_partitions(connection, days, now.date())
            await store.prune(connection, now - timedelta(days=settings.event_retention_days))
            await forgetting.prune_messages(connection, now, settings.event_retention_days)
            await store.empty_dead_letters(connection, now - timedelta(days=settings.webhook_retention_days))
            await erasures.prune(connection, now)
            await audience_store.prune(connection)

    async def keep_cells() -> None:
        await cells.keep(lambda: runtime.pool.acquire(timeout=30))

    runtime.every(KEEP_SECONDS, "tables", keep_tables)
    runtime.every(CELLS_SECONDS, "cells", keep_cells)


def install_pages(app: FastAPI, pages: Pages, desk: audience_api.Desk, probes: Probes) -> None:
    """All pages; `pages`, `desk` and `probes` are what they share."""
    router = APIRouter(include_in_schema=False, route_class=pages.route_class())
    for group in (
        login_pages,
        message_pages,
        campaign_pages,
        automation_pages,
        inbox_pages,
        contact_pages,
        credit_pages,
        sender_pages,
        webhook_pages,
        dead_letter_pages,
        people_pages,
        journey_pages,
        reason_pages,
    ):
        group.install(router, pages)
    audience_pages.install(router, pages, desk)
    diagnostics_pages.install(router, pages, probes)
    router.add_api_route("/static/{path:path}", static_file, methods=["GET"])
    app.include_router(router)
    install_errors(app, pages)
