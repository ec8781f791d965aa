"""billing's wiring: the only place where its parts meet."""

from fastapi import FastAPI
from sendwhy.erasure import on_erasing
from sendwhy.evaluation import EVALUATE_BYTES_MAX, EVALUATE_PATH
from sendwhy.events import PersonErasing, SenderUpdated, SendRejected, TemplateUpdated
from sendwhy.kafka import UNHURRIED_SECONDS
from sendwhy.metrics import Metric
from sendwhy.postgres import KEYED_LOOKUPS
from sendwhy.reasons import Service
from sendwhy.service import Runtime
from sendwhy.stage import parse_json, parse_state
from sendwhy.topics import Topic

from billing import api, books, erasures
from billing.decide import LOW_BALANCE_PERCENTS
from billing.pricing import Difference
from billing.recovering import Recovering
from billing.settings import BillingSettings
from billing.stages import Funder, Settler, consented_of, on_sender, on_template, status_of

RECONCILE_SECONDS = 30
PRUNE_SECONDS = 600


def make_app(settings: BillingSettings) -> FastAPI:
    runtime = Runtime(Service.BILLING, settings, session=KEYED_LOOKUPS)
    runtime.stage(Topic.SEND_CONSENTED, consented_of, Funder(runtime.metrics).on_consented)
    settler = Settler(runtime.metrics)
    runtime.stage(Topic.STATUS_UPDATED, status_of, settler.on_status, rest_seconds=UNHURRIED_SECONDS)
    runtime.stage(Topic.SEND_REJECTED, parse_json(SendRejected), settler.on_rejected, rest_seconds=UNHURRIED_SECONDS)
    runtime.stage(Topic.TEMPLATE_UPDATED, parse_state(TemplateUpdated), on_template)
    runtime.stage(Topic.SENDER_UPDATED, parse_state(SenderUpdated), on_sender)

    runtime.stage(Topic.PERSON_ERASING, parse_json(PersonErasing), on_erasing(Service.BILLING, erasures.erase))

    Recovering(runtime).register()

    async def reconcile() -> None:
        async with runtime.pool.acquire(timeout=RECONCILE_SECONDS) as connection:
            await books.roll_up(connection)
            runtime.metrics.set(Metric.BALANCE_MISMATCH, await books.mismatches(connection))
            stands = await books.stands(connection)
        for state, credits in (("balance", stands.balance), ("reserved", stands.reserved)):
            runtime.metrics.set(Metric.CREDITS, credits, state=state)
        for percent in LOW_BALANCE_PERCENTS:
            runtime.metrics.set(Metric.ACCOUNTS_LOW, stands.low.get(percent, 0), percent=str(percent))

    async def prune() -> None:
        async with runtime.pool.acquire(timeout=RECONCILE_SECONDS) as connection:
            await books.prune_charges(connection)
            await erasures.prune(connection)

    for percent in LOW_BALANCE_PERCENTS:
        runtime.metrics.inc(Metric.LOW_BALANCE_ALERTS, 0, percent=str(percent))
    for kind in Difference:
        runtime.metrics.inc(Metric.PRICING_DIFFERENCES, 0, kind=kind)
    runtime.every(RECONCILE_SECONDS, "reconcile", reconcile)
    runtime.every(PRUNE_SECONDS, "prune charges", prune)
    app = runtime.make_api("Sendwhy billing", body_limits={EVALUATE_PATH: EVALUATE_BYTES_MAX})
    app.include_router(api.routes(runtime))
    app.include_router(erasures.routes(runtime))
    return app
