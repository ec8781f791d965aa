"""billing's wiring: the only place where its parts meet."""

from fastapi import FastAPI
from sendwhy.evaluation import EVALUATE_BYTES_MAX, EVALUATE_PATH
from sendwhy.events import SendConsented, SenderUpdated, SendRejected, StatusUpdated, TemplateUpdated
from sendwhy.metrics import Metric
from sendwhy.reasons import Service
from sendwhy.service import Runtime
from sendwhy.stage import parse_json, parse_state
from sendwhy.topics import Topic

from billing import api, store
from billing.settings import BillingSettings
from billing.stages import Funder, on_rejected, on_sender, on_status, on_template

RECONCILE_SECONDS = 30


def make_app(settings: BillingSettings) -> FastAPI:
    runtime = Runtime(Service.BILLING, settings)
    runtime.stage(Topic.SEND_CONSENTED, parse_json(SendConsented), Funder(runtime.metrics).on_consented)
    runtime.stage(Topic.STATUS_UPDATED, parse_json(StatusUpdated), on_status)
    runtime.stage(Topic.SEND_REJECTED, parse_json(SendRejected), on_rejected)
    runtime.stage(Topic.TEMPLATE_UPDATED, parse_state(TemplateUpdated), on_template)
    runtime.stage(Topic.SENDER_UPDATED, parse_state(SenderUpdated), on_sender)

    async def reconcile() -> None:
        async with runtime.pool.acquire(timeout=RECONCILE_SECONDS) as connection:
            runtime.metrics.set(Metric.BALANCE_MISMATCH, await store.mismatches(connection))

    runtime.every(RECONCILE_SECONDS, "reconcile", reconcile)
    app = runtime.make_api("Sendwhy billing", body_limits={EVALUATE_PATH: EVALUATE_BYTES_MAX})
    app.include_router(api.routes(runtime))
    return app
