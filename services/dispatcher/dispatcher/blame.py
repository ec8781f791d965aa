"""Which message makes our own code fail. Pure.

A round that fails is tried again a few times, as whatever it is may pass. Then fewer and fewer messages are looked at,
until one alone fails: that one is put aside, and its neighbours go on.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from sendwhy.stage import PAUSE_MAX_SECONDS, TRIES_BEFORE_BLAME

AGAIN_FIRST = timedelta(minutes=1)
AGAIN_MAX = timedelta(hours=1)
ALL = 1024
Key = tuple[str, str]


def aside_until(since: datetime | None, now: datetime) -> datetime:
    """When a message that was put aside at `since` is looked at again, as another version may be able to handle it:
    after 1 min, then twice as long each time, 1 h at most."""
    return now + min(AGAIN_MAX, max(AGAIN_FIRST, now - (since or now)))


@dataclass(slots=True)
class Blame:
    """`most`: how many messages a round may look at."""

    most: int = ALL
    _failures: int = 0

    def passed(self) -> None:
        self.most = min(ALL, self.most * 2)
        if self.most == ALL:
            self._failures = 0

    def failed(self, looked_at: Collection[Key], *, is_known: bool = False) -> Key | None:
        """The guilty one, once it is found. `is_known`: one of these was put aside before, so nothing is hoped for."""
        self._failures = max(self._failures + 1, TRIES_BEFORE_BLAME if is_known else 0)
        if self._failures < TRIES_BEFORE_BLAME or not looked_at:
            return None
        self.most = max(1, len(looked_at) // 2)
        return next(iter(looked_at)) if len(looked_at) == 1 else None

    def pause(self, looked_at: Collection[Key]) -> float:
        """Seconds until the next round after one that failed."""
        if looked_at and self._failures >= TRIES_BEFORE_BLAME:
            return 0.0
        return float(min(PAUSE_MAX_SECONDS, 0.1 * 2 ** min(self._failures, 10)))
