"""The dispatcher's time of day."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

APART_AT_MOST = timedelta(seconds=2)


class SteadyClock:
    """UTC that no jump of the machine's clock moves: the time when it was made, and the monotonic seconds since then.

    What it says is written down, as when a message may go again, and holds for replicas whose clocks are right; so it
    follows PostgreSQL's clock where the two are further apart than by what a question takes.
    """

    def __init__(
        self,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monotonic = monotonic
        self._at, self._since = wall(), monotonic()

    def __call__(self) -> datetime:
        return self._at + timedelta(seconds=self._monotonic() - self._since)

    def heard(self, at: datetime) -> None:
        """PostgreSQL's time, just now."""
        if abs(at - self()) > APART_AT_MOST:
            self._at, self._since = at, self._monotonic()


# One for the process: drivers, stages, timers and pages agree.
utc_now = SteadyClock()
