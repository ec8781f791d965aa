"""How far the projection is behind the log: for the gauge, and for "as of" on every page."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from sendwhy.metrics import Metric, Metrics
from sendwhy.topics import Topic

BEHIND_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class AsOf:
    at: datetime
    behind_seconds: float

    @property
    def is_behind(self) -> bool:
        return self.behind_seconds > BEHIND_SECONDS


class Freshness:
    """A topic without waiting records is up to date; one with some is as old as the last record that was applied."""

    def __init__(self, metrics: Metrics, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._metrics, self._now = metrics, now
        self._started = now()
        self._applied: dict[Topic, datetime] = {}

    def applied(self, topic: Topic, at: datetime) -> None:
        self._applied[topic] = at

    def as_of(self) -> AsOf:
        now = self._now()
        lag = self._metrics.told(Metric.CONSUMER_LAG)
        ages = [
            (now - self._applied.get(topic, self._started)).total_seconds()
            for topic in Topic
            if lag.get((topic.value,))
        ]
        behind = max(ages, default=0.0)
        return AsOf(now, max(behind, 0.0))

    async def measure(self) -> None:
        self._metrics.set(Metric.PROJECTION_LAG_SECONDS, self.as_of().behind_seconds)
