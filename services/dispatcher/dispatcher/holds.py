"""Holds: Meta refuses to send for a number, a token, an account or a portfolio. One hold stands for all senders that it
concerns: it is told once, tried by one message at a time, and lifted as a whole. Pure; what is done with it in the
database is in holding.py.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sendwhy.events import Reason
from sendwhy.reasons import ReasonCode

from dispatcher.answers import HoldScope
from dispatcher.decide import Stops
from dispatcher.limits import outage_pause

PROBE_FIRST = timedelta(minutes=5)
PROBE_MAX = timedelta(hours=1)
# From the mark of a try to its end, at most; less than `PROBE_FIRST`, before which nobody is called.
TRY_LASTS = timedelta(minutes=4)
ANSWER = "Meta's answer"
WEBHOOK = "Meta's webhook on a message"
SILENCE = "nobody: Meta doesn't answer"


@dataclass(frozen=True, slots=True)
class Hold:
    """`until`: the end that Meta told; `probe_at`: from when on one message may try whether it still stands (None:
    never by itself); `strikes`: how many tries found that it does; `said_at`: Meta's time of the account event that
    told it, if one did; `replies_from`: until then a hold that spares replies stops them too, as Meta restricted both,
    each with its own end."""

    workspace_id: str
    scope: HoldScope
    scope_id: str
    cause: Reason
    said_by: str
    since: datetime
    until: datetime | None = None
    probe_at: datetime | None = None
    strikes: int = 0
    lifted_at: datetime | None = None
    stops: Stops = Stops.ALL
    said_at: datetime | None = None
    replies_from: datetime | None = None

    def stops_all(self, at: datetime) -> bool:
        return self.stops is Stops.ALL or (self.replies_from is not None and at < self.replies_from)

    def is_ended_by(self, at: datetime) -> bool:
        """Whether Meta's word of that moment, that the account may send again, ends this: not a payment's hold, and
        not what Meta told later."""
        return _is_ended_by(self.cause, self.said_at or self.since, at)


@dataclass(frozen=True, slots=True)
class Refusal:
    """What was told at `at`. `is_account_event`: Meta said it of the account itself, with its end or without one, and
    knows better than any answer to a call."""

    cause: Reason
    said_by: str
    at: datetime
    until: datetime | None = None
    is_account_event: bool = False
    stops: Stops = Stops.ALL
    replies_from: datetime | None = None

    def is_ended_by(self, at: datetime) -> bool:
        """As of a hold: where the lift came first, as webhooks keep no order."""
        return _is_ended_by(self.cause, self.at, at)


def _is_ended_by(cause: Reason, told_at: datetime, lifted_at: datetime) -> bool:
    return cause.code is ReasonCode.SENDER_NOT_AVAILABLE and told_at <= lifted_at


def probe_delay(strikes: int) -> timedelta:
    """Until a held sender is tried with one message: 5 min, then twice as long each time, 1 h at most."""
    return min(PROBE_MAX, PROBE_FIRST * (1 << min(strikes, 8)))


def after(known: Hold | None, name: tuple[str, HoldScope, str], told: Refusal, now: datetime) -> Hold | None:
    """The hold of that name after a refusal; None where that is no news."""
    stands = known is not None and known.lifted_at is None
    if known is not None and known.lifted_at is not None and told.at <= known.lifted_at:
        return None
    # Meta promises no order, and repeats what was not taken for 7 days.
    if told.is_account_event and known is not None and known.said_at is not None and told.at < known.said_at:
        return None
    since = known.since if known is not None and stands else told.at
    hold = Hold(
        *name, cause=_explained(told, name), said_by=told.said_by, since=since, until=told.until, stops=told.stops
    )
    if told.is_account_event:
        hold = replace(hold, probe_at=told.until, said_at=told.at, replies_from=told.replies_from)
        return None if stands and known == replace(hold, strikes=known.strikes if known else 0) else hold
    strikes = 0
    # A refusal while replies go is of a reply: now everything is held.
    if known is not None and stands and known.stops is Stops.ALL:
        # What was sent before the try is due tells nothing of now.
        if known.probe_at is None or known.probe_at > told.at:
            return None
        strikes = known.strikes + 1
    delay = outage_pause(strikes) if told.said_by == SILENCE else probe_delay(strikes)
    return replace(hold, strikes=strikes, probe_at=now + delay)


def after_taken_try(hold: Hold, now: datetime) -> Hold | None:
    """What stands of a hold after Meta took a message that tried it; None for nothing. What a webhook told of messages
    that Meta had taken only the try's own receipt ends: until that comes, the next one tries later."""
    if hold.said_by != WEBHOOK:
        return None
    strikes = hold.strikes + 1
    return replace(hold, strikes=strikes, probe_at=now + probe_delay(strikes))


def is_tried_by(hold: Hold, called_at: datetime, now: datetime) -> bool:
    """Whether a message that was called then was the last to try this hold."""
    if hold.probe_at is None:
        return False
    if hold.probe_at <= now:
        return called_at >= hold.probe_at
    return hold.strikes > 0 and called_at >= hold.probe_at - probe_delay(hold.strikes) - TRY_LASTS


def is_told_by_event(standing: Iterable[Hold], told: Refusal) -> bool:
    """Whether an answer only says what an account event told already, before a message may try that."""
    return any(
        one.said_at is not None
        and one.stops_all(told.at)
        and one.cause.code is told.cause.code
        and (one.probe_at is None or told.at < one.probe_at)
        for one in standing
    )


def is_news(known: Hold | None, hold: Hold) -> bool:
    """Whether people have to be told: not that a try found the same again."""
    if known is None or known.lifted_at is not None:
        return True
    return (known.cause.code, known.until, known.stops, known.replies_from) != (
        hold.cause.code,
        hold.until,
        hold.stops,
        hold.replies_from,
    )


def _explained(told: Refusal, name: tuple[str, HoldScope, str]) -> Reason:
    """The cause, with who said it and what is held; of a token nothing is told but that it is one."""
    _, scope, scope_id = name
    held = "token" if scope is HoldScope.TOKEN else f"{scope.held} {scope_id}"
    evidence = {**told.cause.evidence, "held": held, "said_by": told.said_by}
    return told.cause.model_copy(update={"evidence": evidence})
