"""The dispatcher's wiring: the only place where its parts meet."""

import time

from fastapi import FastAPI
from sendwhy.evaluation import EVALUATE_BYTES_MAX, EVALUATE_PATH
from sendwhy.postgres import KEYED_LOOKUPS
from sendwhy.reasons import Service
from sendwhy.service import Runtime

from dispatcher import campaign_api, person_api
from dispatcher.api import Api
from dispatcher.clock import utc_now
from dispatcher.drift import Drift
from dispatcher.driver import IDLE_SECONDS, Driver
from dispatcher.evaluating import Evaluation
from dispatcher.fleet import Fleet
from dispatcher.lease import SILENCE_ENDS_TRANSACTIONS
from dispatcher.limits import Budget
from dispatcher.meta import Meta
from dispatcher.pacing import Pacing
from dispatcher.queue_api import QueueApi
from dispatcher.receipts import Accepted
from dispatcher.recovering import Recovering
from dispatcher.resealing import Resealer
from dispatcher.rests import Rests
from dispatcher.sender_api import SenderApi
from dispatcher.settings import Settings
from dispatcher.stages import Stages
from dispatcher.subscription import SubscriptionApi
from dispatcher.sweeps import Sweeps
from dispatcher.timers import Timers
from dispatcher.tokens import TokenVault

# For fewer than ten rows a plan of its own looks cheaper than the one for any number, so that each such statement would
# be planned anew, which takes several times what it does. None of ours needs other plans for other values.
PLANNED_ONCE = {"plan_cache_mode": "force_generic_plan"}
SESSION = {**KEYED_LOOKUPS, **SILENCE_ENDS_TRANSACTIONS, **PLANNED_ONCE}


def make_app(settings: Settings) -> FastAPI:
    runtime = Runtime(Service.DISPATCHER, settings, session=SESSION)
    meta = Meta(settings)
    vault = TokenVault(settings.token_encryption_key, settings.app_secrets)
    budget = Budget(settings.calls_in_flight_max)
    accepted, rests = Accepted(), Rests()
    fleet = Fleet(
        runtime,
        lambda sender_id: Driver(sender_id, runtime, settings, meta, vault, budget, accepted=accepted, rests=rests),
    )
    stages = Stages(runtime, settings, fleet, utc_now, accepted)
    stages.register()
    Timers(runtime, settings, utc_now).register()
    Resealer(runtime, vault).register()
    Sweeps(runtime, stages.cancel, utc_now).register()
    Drift(runtime, utc_now).register()
    Pacing(runtime, utc_now).register()
    runtime.background("drivers", fleet.run)
    runtime.every(IDLE_SECONDS, "who has work", fleet.look)
    runtime.every(2.0, "who is to be synced", fleet.look_at_syncs)
    runtime.every(1.0, "what drivers do", fleet.tell)
    Recovering(runtime, stages, utc_now).register()
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
