"""Pace and throttles, pure: time is an argument (for paces, seconds of a clock that never goes back)."""

import sys
from collections import deque
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

PAIR_INTERVAL_SECONDS = 6.0
PAIR_BURST = 45
AVERAGE_SHARE = 0.98
CATCH_UP_SECONDS = 0.02
MINUTE = timedelta(minutes=1)
_MICROSECOND = timedelta(microseconds=1)
# So many tries in a row without a word of Meta's are no chance any more.
SILENT_MAX = 8
OUTAGE_FIRST = timedelta(seconds=2)
OUTAGE_MAX = timedelta(seconds=60)


@dataclass(slots=True)
class Pace:
    """GCRA: never more than `per_second` calls started in any one second.

    The average is 98 % of the limit; a call that comes late may catch up, by 2 % of a second at most. So in any second
    there are at most 1 + floor(1.02 * 0.98 * per_second) calls, which is at most `per_second` for every whole number.
    """

    per_second: float
    next_at: float

    @classmethod
    def start(cls, per_second: float, now: float) -> "Pace":
        """Begin with nothing saved up and one interval's wait: whoever takes over, or wakes from a freeze, adds nothing
        to what was sent just before."""
        pace = cls(per_second, 0.0)
        pace.next_at = now + pace.interval + CATCH_UP_SECONDS
        return pace

    @property
    def interval(self) -> float:
        return 1 / (self.per_second * AVERAGE_SHARE)

    def available(self, now: float) -> int:
        """How many may start at this moment."""
        saved = now + CATCH_UP_SECONDS - max(self.next_at, now)
        return int(saved / self.interval + 1e-9) + 1 if saved >= -1e-9 else 0

    def take(self, count: int, now: float) -> None:
        self.next_at = max(self.next_at, now) + count * self.interval

    def rest(self, seconds: float, now: float) -> None:
        """Nothing goes for so long: whoever counts on the other side counts differently."""
        self.next_at = max(self.next_at, now + seconds + CATCH_UP_SECONDS)

    def change(self, per_second: float, now: float) -> "Pace":
        """Another limit from now on: what was saved up is lost, a rest goes on."""
        changed = Pace.start(per_second, now)
        changed.next_at = max(changed.next_at, self.next_at)
        return changed

    def wait_seconds(self, now: float) -> float:
        """Until the next one may start; 0 if one may start now."""
        return max(0.0, self.next_at - CATCH_UP_SECONDS - now)


@dataclass(slots=True)
class Budget:
    """Calls to Meta at once, shared by the senders that one replica drives.

    Half of them is kept for all in even shares, the other half goes to whoever needs more: a sender that Meta keeps
    waiting can't take the calls of the others, and one alone can have all.
    """

    most: int
    _held: dict[str, int] = field(default_factory=dict)
    _senders: set[str] = field(default_factory=set)

    def join(self, sender: str) -> None:
        self._senders.add(sender)

    def leave(self, sender: str) -> None:
        """What it still holds, it gives back later."""
        self._senders.discard(sender)

    @property
    def used(self) -> int:
        return sum(self._held.values())

    def room(self, sender: str) -> int:
        """How many more this sender may take."""
        share = max(1, self.most // 2 // max(1, len(self._senders)))
        common = self.most - share * len(self._senders)
        beyond = sum(max(0, held - share) for held in self._held.values())
        kept = share - self._held.get(sender, 0)
        return max(0, min(self.most - self.used, max(0, kept) + max(0, common - beyond)))

    def take(self, sender: str, count: int) -> None:
        self._held[sender] = self._held.get(sender, 0) + count

    def give_back(self, sender: str, count: int) -> None:
        left = self._held.get(sender, 0) - count
        if left:
            self._held[sender] = left
        else:
            self._held.pop(sender, None)


@dataclass(slots=True)
class PairPace:
    """One message per 6 s to one person; up to 45 within 6 s borrow from the future, and then silence pays it back
    (Meta, "About the platform": 20 at once are about 2 minutes of silence). A call may start up to `slack` seconds
    after it was let go."""

    slack: float = 0.0
    _bursts: dict[str, tuple[float, float]] = field(default_factory=dict)
    _size_max: int = 100_000

    def wait_seconds(self, person: str, now: float) -> float:
        started, paid_at = self._bursts.get(person, (now, now))
        within = now + self.slack < started + PAIR_INTERVAL_SECONDS
        borrowing = within and paid_at - started < PAIR_BURST * PAIR_INTERVAL_SECONDS + self.slack
        return 0.0 if borrowing else max(0.0, paid_at - now)

    def take(self, person: str, now: float) -> None:
        started, paid_at = self._bursts.get(person, (now, now))
        if paid_at <= now:
            started, paid_at = now, now + self.slack
        self._bursts[person] = (started, paid_at + PAIR_INTERVAL_SECONDS)
        self._forget_the_paid(now)

    def copy(self) -> "PairPace":
        """For asking what would be, without taking anything."""
        return PairPace(self.slack, dict(self._bursts), self._size_max)

    def give_back(self, person: str) -> None:
        """A call that surely was not taken counts for nothing: else retries would wait for each other."""
        if person in self._bursts:
            started, paid_at = self._bursts[person]
            self._bursts[person] = (started, max(started, paid_at - PAIR_INTERVAL_SECONDS))

    def _forget_the_paid(self, now: float) -> None:
        if len(self._bursts) > self._size_max:
            self._bursts = {who: burst for who, burst in self._bursts.items() if burst[1] > now}


@dataclass(slots=True)
class LastMinute:
    """How many were sent in the last 60 s, by whole seconds of a clock that never goes back."""

    _seconds: deque[tuple[int, int]] = field(default_factory=deque)

    def add(self, count: int, now: float) -> None:
        self._seconds.append((int(now), count))
        self._forget(now)

    def count(self, now: float) -> int:
        self._forget(now)
        return sum(count for _, count in self._seconds)

    def _forget(self, now: float) -> None:
        while self._seconds and self._seconds[0][0] <= int(now) - 60:
            self._seconds.popleft()


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
    """What an operator allows a campaign, and what it has used. Every call counts, also one that Meta refuses.

    `per_minute`: never more in any 60 s; `next_slot_at` is the end of the time that is paid for. `per_day`: never more
    in any 24 h, from when it was set (a moving day, not a calendar's); `day_used` calls of that time, counted by
    minutes, so that a place becomes free up to a minute later than 24 h after its call.
    """

    per_minute: int | None
    per_day: int | None
    next_slot_at: datetime | None = None
    day_used: int = 0

    @property
    def limits(self) -> bool:
        return self.per_minute is not None or self.per_day is not None


def _spacing(per_minute: int) -> tuple[timedelta, int]:
    """The time that one call pays for, and how many may go at once: n calls take at least n - burst of these times, so
    that burst + (limit - burst) fit into a minute."""
    burst = max(1, per_minute // 60)
    return timedelta(microseconds=-(-MINUTE // _MICROSECOND // (per_minute - burst + 1))), burst


def throttle_room(throttle: Throttle, now: datetime) -> int:
    """How many calls a throttled campaign may make at this moment."""
    room = sys.maxsize
    if throttle.per_minute is not None:
        each, burst = _spacing(throttle.per_minute)
        saved = now + (burst - 1) * each - max(throttle.next_slot_at or now, now)
        room = saved // each + 1 if saved >= timedelta() else 0
    if throttle.per_day is not None:
        room = min(room, throttle.per_day - throttle.day_used)
    return max(0, room)


def throttle_opens_at(throttle: Throttle) -> datetime:
    """When the pace of the minute lets the next call go."""
    assert throttle.per_minute is not None
    assert throttle.next_slot_at is not None
    each, burst = _spacing(throttle.per_minute)
    return throttle.next_slot_at - (burst - 1) * each


def throttle_waits_for_minute(throttle: Throttle) -> bool:
    """Whether only the pace of the minute is in the way, so that it is known when the next call may go."""
    return throttle.next_slot_at is not None and (throttle.per_day is None or throttle.day_used < throttle.per_day)


def throttle_take(throttle: Throttle, now: datetime) -> Throttle:
    """The throttle after one call at this moment."""
    slot = throttle.next_slot_at
    if throttle.per_minute is not None:
        slot = max(slot or now, now) + _spacing(throttle.per_minute)[0]
    return replace(throttle, next_slot_at=slot, day_used=throttle.day_used + 1)


def throttle_within(throttle: Throttle, seconds: float, now: datetime) -> int:
    """How many calls it may make until so many seconds from now, without days in which a place becomes free."""
    room = throttle_room(throttle, now + timedelta(seconds=seconds))
    if throttle.per_minute is not None:
        each, burst = _spacing(throttle.per_minute)
        paid = max(throttle.next_slot_at or now, now)
        room = max(0, (now + timedelta(seconds=seconds) - paid) // each + burst)
    return room if throttle.per_day is None else max(0, min(room, throttle.per_day - throttle.day_used))
