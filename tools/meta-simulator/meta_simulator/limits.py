"""Meta's two sending rates. Times are seconds on any steady clock."""

from collections import OrderedDict
from dataclasses import dataclass, field

PAIR_SECONDS = 6.0
PAIR_BURST = 45
PAIRS_KEPT = 100_000


@dataclass(slots=True)
class Throughput:
    """Messages per second of one number; a quiet second may be made up for in the next."""

    per_second: float
    tokens: float = field(init=False)
    at: float = 0.0

    def __post_init__(self) -> None:
        self.tokens = self.per_second

    def take(self, now: float) -> bool:
        self.tokens = min(self.per_second, self.tokens + (now - self.at) * self.per_second)
        self.at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class PairRate:
    """One message per 6 s from a number to a person.

    Up to 45 may go within 6 s, but they borrow from the future: 20 at once are followed by 2 minutes
    of silence (Meta, "About the platform").
    """

    def __init__(self) -> None:
        self._bursts: dict[tuple[str, str], tuple[float, int]] = {}
        self._tidy_at = PAIRS_KEPT

    def take(self, number_id: str, to: str, now: float) -> bool:
        pair = (number_id, to)
        start, count = self._bursts.get(pair, (now, 0))
        if now < start + PAIR_SECONDS:
            if count >= PAIR_BURST:
                return False
            self._bursts[pair] = (start, count + 1)
        elif now < start + count * PAIR_SECONDS:
            return False
        else:
            self._bursts[pair] = (now, 1)
        if len(self._bursts) > self._tidy_at:
            self._forget_paid(now)
        return True

    def _forget_paid(self, now: float) -> None:
        self._bursts = {
            pair: (start, count) for pair, (start, count) in self._bursts.items() if start + count * PAIR_SECONDS > now
        }
        self._tidy_at = max(PAIRS_KEPT, 2 * len(self._bursts))


class UniqueRecipients:
    """People reached outside a window in the last 24 h, for one portfolio: each counts from the last time."""

    def __init__(self) -> None:
        self._since: OrderedDict[str, float] = OrderedDict()

    def count(self, now: float) -> int:
        day_ago = now - 86_400
        while self._since and next(iter(self._since.values())) <= day_ago:
            self._since.popitem(last=False)
        return len(self._since)

    def take(self, to: str, limit: int | None, now: float) -> bool:
        reached = self.count(now)
        if limit is not None and to not in self._since and reached >= limit:
            return False
        self._since[to] = now
        self._since.move_to_end(to)
        return True
