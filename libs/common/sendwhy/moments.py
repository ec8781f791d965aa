"""Times as Meta tells them, read tolerantly."""

import math
from datetime import UTC, datetime

from pydantic import JsonValue

from sendwhy.events import EARLIEST, LATEST

# Seconds reach this in the year 5138, milliseconds did in 1973; microseconds are a thousand times more.
MILLISECONDS_FROM = 10**11


def told_time(value: JsonValue) -> datetime | None:
    """Meta's time: seconds as text or number, milliseconds at times; None where there is none that can be."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        seconds = float(value)
    except (ValueError, OverflowError):
        return _iso_time(value)
    if not math.isfinite(seconds):
        return None
    while seconds >= MILLISECONDS_FROM:
        seconds /= 1000
    return _in_bounds(datetime.fromtimestamp(seconds, UTC)) if seconds >= 0 else None


def _iso_time(value: JsonValue) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
        return None if moment is None or moment.tzinfo is None else _in_bounds(moment.astimezone(UTC))
    except (ValueError, OverflowError):
        return None


def _in_bounds(moment: datetime) -> datetime | None:
    return moment if EARLIEST <= moment <= LATEST else None
