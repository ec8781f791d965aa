"""`python -m billing migrate | serve | rewind`."""

from pathlib import Path

from sendwhy.reasons import Service
from sendwhy.service import main

from billing.app import make_app
from billing.settings import BillingSettings

main(Service.BILLING, BillingSettings, make_app, Path(__file__).parent / "migrations")
