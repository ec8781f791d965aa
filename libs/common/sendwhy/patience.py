"""How long something that failed is tried again before one record is held guilty. Pure."""

PAUSE_MAX_SECONDS = 10.0
# About 6 s: a bug is given the time to be something that passes before its record is put aside.
TRIES_BEFORE_BLAME = 5


def pause_after(failures: int) -> float:
    """Seconds until the next try after so many failures in a row: twice as long each time, up to PAUSE_MAX_SECONDS."""
    return float(min(PAUSE_MAX_SECONDS, 0.1 * 2 ** min(failures, 10)))
