"""A campaign over time: how far it is, when it ends at its pace, and what became of what left at which time. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

BARS_MAX = 48
# The pace of a campaign is that of these last minutes.
PACE_OVER = timedelta(minutes=5)
_WIDTHS = tuple(
    timedelta(seconds=seconds)
    for seconds in (1, 5, 15, 60, 300, 900, 3600, 3 * 3600, 12 * 3600, 86400, 7 * 86400, 30 * 86400)
)
_EPOCH = datetime(2024, 1, 1, tzinfo=UTC)
_GOT = ("delivered", "read")


@dataclass(frozen=True, slots=True)
class Rates:
    """Shares between 0 and 1; None where nothing is there to share. `delivered`: of those that have ended, that is
    sent, delivered, read or failed; `read`: of the delivered ones; `failed`: of those that have ended."""

    delivered: float | None
    read: float | None
    failed: float | None


def rates_of(by_status: Mapping[str, int]) -> Rates:
    got = sum(by_status.get(status, 0) for status in _GOT)
    ended = got + by_status.get("sent", 0) + by_status.get("failed", 0)
    return Rates(
        delivered=got / ended if ended else None,
        read=by_status.get("read", 0) / got if got else None,
        failed=by_status.get("failed", 0) / ended if ended else None,
    )


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` messages of `total` have left; the others go at `per_minute`, the last of them about `ends_at`. None:
    nothing left in the last minutes, so that nobody can tell."""

    done: int
    total: int
    per_minute: float | None = None
    ends_at: datetime | None = None

    @property
    def to_go(self) -> int:
        return self.total - self.done


def progress_of(
    done: int, total: int, left_lately: int, started_at: datetime, now: datetime, throttle: "Throttle | None" = None
) -> Progress:
    """`left_lately`: how many left within PACE_OVER before `now`."""
    to_go = total - done
    minutes = max(min(PACE_OVER, now - started_at).total_seconds(), 1) / 60
    if not to_go or not left_lately:
        return Progress(done, total)
    throttle = throttle or Throttle()
    per_minute = min(left_lately / minutes, throttle.per_minute or float("inf"))
    ends_in = timedelta(minutes=to_go / per_minute)
    if throttle.per_day:
        left_today = max(throttle.per_day - throttle.slots_today, 0)
        days = -(-max(to_go - left_today, 0) // throttle.per_day)
        ends_in = max(ends_in, timedelta(days=days))
    return Progress(done, total, per_minute, now + min(ends_in, timedelta(days=3650)))


@dataclass(frozen=True, slots=True)
class Throttle:
    per_minute: int | None = None
    per_day: int | None = None
    slots_today: int = 0


@dataclass(frozen=True, slots=True)
class Bar:
    """What left from `since` to before `until`, by what it is now."""

    since: datetime
    until: datetime
    by_status: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.by_status.values())

    @property
    def rates(self) -> Rates:
        return rates_of(self.by_status)


def width_of(span: timedelta) -> timedelta:
    """The narrowest width, of those that people count in, with which a span has at most BARS_MAX bars."""
    return next((width for width in _WIDTHS if span < width * (BARS_MAX - 1)), _WIDTHS[-1])


def bars_of(counts: Mapping[datetime, Mapping[str, int]], width: timedelta) -> Sequence[Bar]:
    """Bars from the first to the last that has something, those between them too."""
    if not counts:
        return ()
    first, last = min(counts), max(counts)
    several = min(round((last - first) / width) + 1, 10 * BARS_MAX)
    starts = [first + step * width for step in range(several)]
    return [Bar(start, start + width, counts.get(start, {})) for start in starts]


def bin_origin() -> datetime:
    """Where bars of every width begin: a Monday, in UTC."""
    return _EPOCH


BAR_STEP, CHART_HEIGHT = 10.0, 100.0
# From the ground up: what went best stands on it, what failed on top.
STACK = ("read", "delivered", "sent", "sending", "failed")


@dataclass(frozen=True, slots=True)
class Rect:
    """A status' share of a bar, in units of an SVG that is CHART_HEIGHT high and BAR_STEP wide for each bar."""

    status: str
    x: float
    y: float
    height: float


def stacked(bars: Sequence[Bar]) -> Sequence[Rect]:
    """The bars as drawn: the highest fills the height."""
    most = max((bar.total for bar in bars), default=0)
    found = []
    for number, bar in enumerate(bars):
        y = CHART_HEIGHT
        for status in STACK:
            height = bar.by_status.get(status, 0) * CHART_HEIGHT / most if most else 0.0
            if height:
                y -= height
                found.append(Rect(status, number * BAR_STEP + 1, round(y, 2), round(height, 2)))
    return found


def statuses_in(bars: Sequence[Bar]) -> list[str]:
    """Those that occur, as they are stacked."""
    return [status for status in STACK if any(bar.by_status.get(status) for bar in bars)]
