"""How long nobody calls after Meta refused for the sum of calls: those of an app, of an account, or of a number. Pure.

Who calls on spends more of a budget that is counted by the hour (meta-cloud-api.md, 1.2: 4, 80007, 80008, 613), so
that all numbers that share it rest, as long as Meta asks and longer with each refusal after a rest. A number's pace
(130429) is over within a second, unless Meta asks for more. Known to one replica: the others learn it by a refusal.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from sendwhy.values import value_class

FIRST_SECONDS = 5.0
MOST_SECONDS = 300.0


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


@dataclass(slots=True)
class Rests:
    """The rests of one replica, by the names of `Shares`: until when (seconds of a clock that never goes back), and how
    many came one after the other."""

    _until: dict[str, float] = field(default_factory=dict)
    _strikes: dict[str, int] = field(default_factory=dict)

    def refused(self, shares: Shares, code: int | None, asked_seconds: float, now: float) -> None:
        """`asked_seconds`: Meta's Retry-After, bounded. Who was out when a rest began doesn't make it grow."""
        shared = BUDGETS.get(code) if code is not None else None
        name = shares.named(shared or Shared.NUMBER)
        seconds = asked_seconds
        if shared is not None and self._until.get(name, 0.0) <= now:
            strikes = self._strikes.get(name, 0)
            self._strikes[name] = strikes + 1
            seconds = max(seconds, min(MOST_SECONDS, FIRST_SECONDS * 2.0 ** min(strikes, 10)))
        self._until[name] = max(self._until.get(name, 0.0), now + seconds)

    def taken(self, shares: Shares, now: float) -> None:
        """A call went through after the rest: there is budget again."""
        for name in shares.all:
            if name in self._until and self._until[name] <= now:
                del self._until[name]
                self._strikes.pop(name, None)

    def wait_seconds(self, shares: Shares, now: float) -> float:
        return max(0.0, *(self._until.get(name, 0.0) - now for name in shares.all))
