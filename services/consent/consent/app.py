"""The wiring: which topic goes where."""

from fastapi import FastAPI
from sendwhy.evaluation import EVALUATE_BYTES_MAX, EVALUATE_PATH
from sendwhy.events import (
    CustomerUpdated,
    MessageReceived,
    PersonErased,
    SenderUpdated,
    SendRecalled,
    SendRejected,
    SendRequested,
    StatusUpdated,
    TemplateUpdated,
)
from sendwhy.kafka import UNHURRIED_SECONDS
from sendwhy.metrics import Metric
from sendwhy.postgres import KEYED_LOOKUPS, time_of
from sendwhy.reasons import Service
from sendwhy.service import Runtime
from sendwhy.stage import parse_json, parse_state
from sendwhy.topics import Topic

from consent import api, erasure_api, erasures, history, import_api, store, suggestions, workspace
from consent.imports import Imports
from consent.keyword_api import keyword_routes
from consent.recovering import Recovering
from consent.settings import Settings
from consent.stages import Stages, parse_stopped

PRUNE_SECONDS = 600.0
COUNT_SECONDS = 60.0


def make_app(settings: Settings) -> FastAPI:
    runtime = Runtime(Service.CONSENT, settings, session=KEYED_LOOKUPS)
    stages = Stages(settings, runtime.metrics)
    runtime.stage(
        Topic.SEND_REQUESTED, parse_json(SendRequested), stages.on_requested, on_unreadable=stages.on_unreadable
    )
    runtime.stage(Topic.SEND_RECALLED, parse_json(SendRecalled), stages.on_recalled)
    runtime.stage(Topic.MESSAGE_RECEIVED, parse_json(MessageReceived), stages.on_message)
    runtime.stage(Topic.CUSTOMER_UPDATED, parse_json(CustomerUpdated), stages.on_customer)
    for topic, kind in ((Topic.STATUS_UPDATED, StatusUpdated), (Topic.SEND_REJECTED, SendRejected)):
        runtime.stage(topic, parse_stopped(kind), stages.on_stopped, rest_seconds=UNHURRIED_SECONDS)
    runtime.stage(Topic.TEMPLATE_UPDATED, parse_state(TemplateUpdated), stages.on_template)
    runtime.stage(Topic.SENDER_UPDATED, parse_state(SenderUpdated), stages.on_sender)
    runtime.stage(Topic.PERSON_ERASED, parse_json(PersonErased), erasures.on_reports)
    Recovering(runtime, settings).register()
    _keep(runtime)
    imports = Imports(runtime, settings)
    app = runtime.make_api(
        "Sendwhy consent",
        body_limits={
            "POST /v1/workspaces/*/contacts/import": settings.import_bytes_max,
            EVALUATE_PATH: EVALUATE_BYTES_MAX,
        },
    )
    desk = api.Desk(runtime, settings)
    # An id may have slashes, so that a contact's own routes take whatever is left: all others stand before them.
    app.include_router(suggestions.routes(runtime, desk))
    app.include_router(workspace.routes(runtime, desk))
    app.include_router(history.routes(runtime))
    app.include_router(import_api.routes(runtime, imports))
    app.include_router(erasure_api.routes(runtime, settings))
    app.include_router(api.routes(runtime, settings))
    app.include_router(keyword_routes(runtime))
    return app


def _keep(runtime: Runtime) -> None:
    """What is done from time to time."""

    async def prune() -> None:
        async with runtime.pool.acquire(timeout=30) as connection:
            now = await time_of(connection)
            await store.prune(connection, now)
            await erasures.prune(connection, now)

    async def count_erasures() -> None:
        async with runtime.pool.acquire(timeout=30) as connection:
            unfinished = await erasures.count_unfinished(connection, await time_of(connection))
        runtime.metrics.set(Metric.ERASURES_UNFINISHED, unfinished)

    runtime.every(PRUNE_SECONDS, "prune", prune)
    runtime.every(COUNT_SECONDS, "count erasures", count_erasures)
