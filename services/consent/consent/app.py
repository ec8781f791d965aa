"""The wiring: which topic goes where."""

from datetime import UTC, datetime

from fastapi import FastAPI
from sendwhy.evaluation import EVALUATE_BYTES_MAX, EVALUATE_PATH
from sendwhy.events import (
    CustomerUpdated,
    MessageReceived,
    SenderUpdated,
    SendRecalled,
    SendRejected,
    SendRequested,
    StatusUpdated,
    TemplateUpdated,
)
from sendwhy.reasons import Service
from sendwhy.service import Runtime
from sendwhy.stage import parse_json, parse_state
from sendwhy.topics import Topic

from consent import api, import_api, store
from consent.imports import Imports
from consent.settings import Settings
from consent.stages import Stages, parse_stopped

PRUNE_SECONDS = 600.0


def make_app(settings: Settings) -> FastAPI:
    runtime = Runtime(Service.CONSENT, settings)
    stages = Stages(settings, runtime.metrics)
    runtime.stage(
        Topic.SEND_REQUESTED, parse_json(SendRequested), stages.on_requested, on_unreadable=stages.on_unreadable
    )
    runtime.stage(Topic.SEND_RECALLED, parse_json(SendRecalled), stages.on_recalled)
    runtime.stage(Topic.MESSAGE_RECEIVED, parse_json(MessageReceived), stages.on_message)
    runtime.stage(Topic.CUSTOMER_UPDATED, parse_json(CustomerUpdated), stages.on_customer)
    runtime.stage(Topic.STATUS_UPDATED, parse_stopped(StatusUpdated), stages.on_stopped)
    runtime.stage(Topic.SEND_REJECTED, parse_stopped(SendRejected), stages.on_stopped)
    runtime.stage(Topic.TEMPLATE_UPDATED, parse_state(TemplateUpdated), stages.on_template)
    runtime.stage(Topic.SENDER_UPDATED, parse_state(SenderUpdated), stages.on_sender)

    async def prune() -> None:
        async with runtime.pool.acquire(timeout=30) as connection:
            await store.prune(connection, datetime.now(UTC))

    runtime.every(PRUNE_SECONDS, "prune", prune)
    imports = Imports(runtime, settings)
    app = runtime.make_api(
        "Sendwhy consent",
        body_limits={
            "POST /v1/workspaces/*/contacts/import": settings.import_bytes_max,
            EVALUATE_PATH: EVALUATE_BYTES_MAX,
        },
    )
    # Before the contacts, one of which might be called "imports".
    app.include_router(import_api.routes(runtime, imports))
    app.include_router(api.routes(runtime, settings))
    return app
