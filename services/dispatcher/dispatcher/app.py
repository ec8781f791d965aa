"""The dispatcher's wiring: the only place where its parts meet."""

import time

import structlog
from fastapi import FastAPI
from sendwhy.evaluation import EVALUATE_BYTES_MAX, EVALUATE_PATH
from sendwhy.reasons import Service
from sendwhy.service import Gaps, Runtime
from sendwhy.topics import Topic

from dispatcher import campaign_api, person_api, queue_store
from dispatcher.api import Api
from dispatcher.drift import Drift
from dispatcher.driver import Driver
from dispatcher.evaluating import Evaluation
from dispatcher.fleet import Fleet
from dispatcher.lease import SILENCE_ENDS_TRANSACTIONS
from dispatcher.limits import Budget
from dispatcher.meta import Meta
from dispatcher.pacing import Pacing
from dispatcher.queue_api import QueueApi
from dispatcher.resealing import Resealer
from dispatcher.results import utc_now
from dispatcher.sender_api import SenderApi
from dispatcher.settings import Settings
from dispatcher.stages import Stages
from dispatcher.subscription import SubscriptionApi
from dispatcher.sweeps import Sweeps
from dispatcher.timers import Timers
from dispatcher.tokens import TokenVault

log = structlog.get_logger("sendwhy")


def make_app(settings: Settings) -> FastAPI:
    runtime = Runtime(Service.DISPATCHER, settings, session=SILENCE_ENDS_TRANSACTIONS)
    meta = Meta(settings)
    vault = TokenVault(settings.token_encryption_key, settings.app_secrets)
    budget = Budget(settings.calls_in_flight_max)
    fleet = Fleet(runtime, lambda sender_id: Driver(sender_id, runtime, settings, meta, vault, budget))
    stages = Stages(runtime, settings, fleet, utc_now)
    stages.register()
    Timers(runtime, settings, utc_now).register()
    Resealer(runtime, vault).register()
    Sweeps(runtime, stages.cancel, utc_now).register()
    Drift(runtime, utc_now).register()
    Pacing(runtime, utc_now).register()
    runtime.background("drivers", fleet.run)
    runtime.every(5.0, "what drivers send", fleet.tell)
    runtime.before_rewind(lambda gaps: park_what_may_be_sent(runtime, gaps))
    runtime.at_end(meta.close)
    app = runtime.make_api("Sendwhy dispatcher", body_limits={EVALUATE_PATH: EVALUATE_BYTES_MAX})
    app.include_router(Api(runtime, settings, meta, vault, fleet, utc_now).routes())
    app.include_router(QueueApi(runtime, fleet, stages, utc_now).routes())
    app.include_router(Evaluation(runtime, settings, fleet.pairs, utc_now, time.monotonic).routes())
    app.include_router(SenderApi(runtime, settings, utc_now).routes())
    app.include_router(SubscriptionApi(runtime, meta, vault, utc_now).routes())
    app.include_router(person_api.routes(runtime))
    app.include_router(campaign_api.routes(runtime))
    return app


async def park_what_may_be_sent(runtime: Runtime, gaps: Gaps) -> None:
    """A restored backup doesn't know what was sent since: nothing of that goes out again by itself."""
    below = {number: gap.committed for (topic, number), gap in gaps.items() if topic == Topic.SEND_FUNDED}
    async with runtime.pool.acquire(timeout=30) as connection, connection.transaction():
        # A million rows take longer than all else does.
        await connection.execute("set local transaction_timeout = 0; set local statement_timeout = 0")
        parked = await queue_store.park_all(connection, below)
    log.warning("messages are parked as unknown", waiting=parked, funded_below=sum(below.values()))
