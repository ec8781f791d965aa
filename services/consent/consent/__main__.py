from pathlib import Path

from sendwhy.reasons import Service
from sendwhy.service import main

from consent.app import make_app
from consent.settings import Settings

main(Service.CONSENT, Settings, make_app, Path(__file__).parent / "migrations")
