"""`python -m dispatcher migrate | serve | rewind`."""

from pathlib import Path

from sendwhy.reasons import Service
from sendwhy.service import main

from dispatcher.app import make_app
from dispatcher.settings import Settings

main(Service.DISPATCHER, Settings, make_app, Path(__file__).parent / "migrations")
