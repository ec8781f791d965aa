"""How long nobody calls after Meta refused for the sum of calls: those of an app, of an account, or of a number. Pure.

Who calls on spends more of a budget that is counted by the hour (meta-cloud-api.md, 1.2: 4, 80007, 80008, 613), so
that all numbers that share it rest, as long as Meta asks and longer with each refusal after a rest. A number's pace
(130429) is over within a second, unless Meta asks for more. Known to one replica: the others learn it by a refusal.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from sendwhy.events import MetaError, Moment, Wire
from sendwhy.values import value_class

FIRST_SECONDS = 5.0
MOST_SECONDS = 300.0
# After a rest it takes a moment until the next calls are answered, and a longer rest begins or this one is over.
TRIED_WITHIN_SECONDS = 60.0


class Shared(StrEnum):
    """By whom a budget of calls is shared."""

    NUMBER = "number"
    ACCOUNT = "account"
    APP = "app"


BUDGETS: Mapping[int, Shared] = {
    4: Shared.APP,
    80007: Shared.ACCOUNT,
    80008: Shared.ACCOUNT,
    # Meta doesn't say whose calls it counts.
    613: Shared.NUMBER,
}


@value_class
class Shares:
    """What a number shares with others of its workspace: whoever names another's app or account may not stop it."""

    number: str
    account: str
    app: str

    @classmethod
    def of(cls, workspace_id: str, sender_id: str, waba_id: str, app_id: str | None, token_tag: str | None) -> "Shares":
        """A token is one app's, whose name we may not know."""
        app = f"app/{app_id}" if app_id is not None else f"token/{token_tag or sender_id}"
        return cls(f"number/{sender_id}", f"{workspace_id}/account/{waba_id}", f"{workspace_id}/{app}")

    def named(self, shared: Shared) -> str:
        return {Shared.NUMBER: self.number, Shared.ACCOUNT: self.account, Shared.APP: self.app}[shared]

    @property
    def all(self) -> tuple[str, ...]:
        return self.number, self.account, self.app


class Rest(Wire):
    """What messages of a number wait for while nobody calls: whose calls were too many (`limit`), what Meta said, since
    its first refusal, and until when nobody calls."""

    limit: Shared
    meta: MetaError | None
    since: Moment
    until: Moment

    def kept_waiting(self, at: datetime) -> bool:
        """Whether it was what let nothing go at that moment."""
        return self.since <= at < self.until + timedelta(seconds=TRIED_WITHIN_SECONDS)


@value_class
class Series:
    """Rests one after the other, by seconds of a clock that never goes back."""

    limit: Shared
    meta: MetaError | None
    since: float
    until: float
    strikes: int = 0

    def is_of(self, now: float) -> bool:
        """Whether it lets nothing go now, or did until just now."""
        return now < self.until + TRIED_WITHIN_SECONDS

    def told(self, now: float, at: datetime) -> Rest:
        """By the time of day; `at` is now."""
        since, until = (at + timedelta(seconds=one - now) for one in (self.since, self.until))
        return Rest(limit=self.limit, meta=self.meta, since=since, until=until)


@dataclass(slots=True)
class Rests:
    """The rests of one replica, by the names of `Shares`, until a call goes through."""

    _known: dict[str, Series] = field(default_factory=dict)

    def refused(self, shares: Shares, meta: MetaError | None, asked_seconds: float, now: float) -> None:
        """`asked_seconds`: Meta's Retry-After, bounded. Who was out when a rest began doesn't make it grow."""
        code = meta.code if meta is not None else None
        shared = BUDGETS.get(code) if code is not None else None
        limit = shared or Shared.NUMBER
        name = shares.named(limit)
        known = self._known.get(name) or Series(limit, meta, now, now)
        seconds, strikes = asked_seconds, known.strikes
        if shared is not None and known.until <= now:
            seconds = max(seconds, min(MOST_SECONDS, FIRST_SECONDS * 2.0 ** min(strikes, 10)))
            strikes += 1
        if now + seconds > known.until:
            since = known.since if known.is_of(now) else now
            self._known[name] = Series(limit, meta, since, now + seconds, strikes)

    def taken(self, shares: Shares, now: float) -> None:
        """A call went through after the rest: there is budget again."""
        for name in shares.all:
            if name in self._known and self._known[name].until <= now:
                del self._known[name]

    def wait_seconds(self, shares: Shares, now: float) -> float:
        return max((one.until - now for one in self._of(shares) if one.until > now), default=0.0)

    def standing(self, shares: Shares, now: float) -> Series | None:
        """Of those that let nothing go now, or until just now, the one that ends last."""
        standing = [one for one in self._of(shares) if one.until > one.since and one.is_of(now)]
        return max(standing, key=lambda one: one.until, default=None)

    def _of(self, shares: Shares) -> list[Series]:
        return [self._known[name] for name in shares.all if name in self._known] if self._known else []
