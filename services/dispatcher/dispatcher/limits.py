"""Pace and throttles, pure: time is an argument (for paces, seconds of a clock that never goes back)."""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

PAIR_INTERVAL_SECONDS = 6.0
PAIR_BURST = 45
BURST_SHARE = 0.05
DAY = timedelta(hours=24)
# So many tries in a row without a word of Meta's are no chance any more.
SILENT_MAX = 8
OUTAGE_FIRST = timedelta(seconds=2)
OUTAGE_MAX = timedelta(seconds=60)


@dataclass(slots=True)
class Pace:
    """GCRA: never more than `per_second` messages in any one second.

    The average is 95 % of the limit and the burst 5 %, so that even a saved-up burst stays within the limit.
    `start` begins with nothing saved up: a driver that takes over, or wakes from a freeze, adds no burst to what was
    sent before.
    """

    interval: float
    tolerance: float
    next_at: float

    @classmethod
    def start(cls, per_second: float, now: float) -> "Pace":
        interval = 1 / (per_second * (1 - BURST_SHARE))
        burst = max(1, int(per_second * BURST_SHARE))
        tolerance = (burst - 1) * interval
        return cls(interval, tolerance, now + tolerance)

    def available(self, now: float) -> int:
        """How many may go at this moment."""
        saved = now + self.tolerance - max(self.next_at, now)
        return int(saved / self.interval + 1e-9) + 1 if saved >= -1e-9 else 0

    def take(self, count: int, now: float) -> None:
        self.next_at = max(self.next_at, now) + count * self.interval

    def rest(self, seconds: float, now: float) -> None:
        """Nothing goes for so long: whoever counts on the other side counts differently."""
        self.next_at = max(self.next_at, now + seconds + self.tolerance)

    def wait_seconds(self, now: float) -> float:
        """Until the next one may go; 0 if one may go now."""
        return max(0.0, self.next_at - self.tolerance - now)


@dataclass(slots=True)
class PairPace:
    """One message per 6 s to one person; up to 45 within 6 s borrow from the future, and then silence pays it back
    (Meta, "About the platform": 20 at once are about 2 minutes of silence)."""

    _bursts: dict[str, tuple[float, float]] = field(default_factory=dict)
    _size_max: int = 100_000

    def wait_seconds(self, person: str, now: float) -> float:
        started, paid_at = self._bursts.get(person, (now, now))
        borrowing = now < started + PAIR_INTERVAL_SECONDS and paid_at - started < PAIR_BURST * PAIR_INTERVAL_SECONDS
        return 0.0 if borrowing else max(0.0, paid_at - now)

    def take(self, person: str, now: float) -> None:
        started, paid_at = self._bursts.get(person, (now, now))
        if paid_at <= now:
            started = paid_at = now
        self._bursts[person] = (started, paid_at + PAIR_INTERVAL_SECONDS)
        self._forget_the_paid(now)

    def give_back(self, person: str) -> None:
        """A call that surely was not taken counts for nothing: else retries would wait for each other."""
        if person in self._bursts:
            started, paid_at = self._bursts[person]
            self._bursts[person] = (started, max(started, paid_at - PAIR_INTERVAL_SECONDS))

    def _forget_the_paid(self, now: float) -> None:
        if len(self._bursts) > self._size_max:
            self._bursts = {who: burst for who, burst in self._bursts.items() if burst[1] > now}


@dataclass(slots=True)
class Circuit:
    """Whether anybody answers at the other end. A try that may have been taken is never made again, so an outage must
    cost a handful of messages, not a campaign: after `SILENT_MAX` in a row the sender is held for `outage_pause`, and
    then tried with one message at a time."""

    is_open: bool = False
    _silent: int = 0

    def note(self, *, answered: bool) -> None:
        """A try has ended: Meta said something of its own, or it did not."""
        self._silent = 0 if answered else self._silent + 1
        self.is_open = not answered and (self.is_open or self._silent >= SILENT_MAX)

    def close(self) -> None:
        """The hold is stored, and stands instead."""
        self.is_open = False

    def suspect(self) -> None:
        """A sender that comes out of a hold is held again at the first silent try."""
        self._silent = max(self._silent, SILENT_MAX - 1)


def outage_pause(strikes: int) -> timedelta:
    """Until the next message is tried: 2 s, then twice as long each time, a minute at most."""
    return min(OUTAGE_MAX, OUTAGE_FIRST * (1 << min(strikes, 8)))


@dataclass(frozen=True, slots=True)
class Throttle:
    """What an operator allows a campaign, and how much of it is given away."""

    per_minute: int | None
    per_day: int | None
    next_slot_at: datetime | None
    day_start: datetime | None
    day_count: int


def next_slot(throttle: Throttle, now: datetime) -> tuple[datetime, Throttle]:
    """The next free moment for one message, and the throttle after it was given away."""
    slot = max(now, throttle.next_slot_at or now)
    start, count = throttle.day_start, throttle.day_count
    if throttle.per_day is not None:
        if start is None or slot >= start + DAY:
            start, count = slot, 0
        elif count >= throttle.per_day:
            start, count = start + DAY, 0
            slot = max(slot, start)
        count += 1
    interval = timedelta(minutes=1) / throttle.per_minute if throttle.per_minute else timedelta()
    return slot, replace(throttle, next_slot_at=slot + interval, day_start=start, day_count=count)
