"""The dispatcher's wiring: the only place where its parts meet."""

from fastapi import FastAPI
from sendwhy.reasons import Service
from sendwhy.service import Runtime

from dispatcher.api import EVALUATE_BYTES_MAX, EVALUATE_PATH, Api
from dispatcher.driver import Driver, utc_now
from dispatcher.fleet import Fleet
from dispatcher.meta import Meta
from dispatcher.settings import Settings
from dispatcher.stages import Stages
from dispatcher.timers import Timers
from dispatcher.tokens import TokenVault


def make_app(settings: Settings) -> FastAPI:
    runtime = Runtime(Service.DISPATCHER, settings)
    meta = Meta(settings)
    vault = TokenVault(settings.token_encryption_key)
    fleet = Fleet(runtime, lambda sender_id: Driver(sender_id, runtime, settings, meta, vault))
    stages = Stages(runtime, settings, fleet, utc_now)
    stages.register()
    Timers(runtime, settings, utc_now).register()
    runtime.background("drivers", fleet.run)
    runtime.at_end(meta.close)
    app = runtime.make_api("Sendwhy dispatcher", body_limits={EVALUATE_PATH: EVALUATE_BYTES_MAX})
    app.include_router(Api(runtime, settings, meta, vault, fleet, stages, utc_now).routes())
    return app
