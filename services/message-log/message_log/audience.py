"""What becomes of many requests together, from what the services answered about each: the first gate that doesn't let
one pass is its outcome. Pure.

A call of POST /v1/evaluate takes 1,000 requests and counts within itself only, so what one takes from the next is
counted here: credits by the price that billing names for each, on the balance that its first answer tells; new people
by the dispatcher's own count within each call. The slots of a throttle, and the pace to one person, begin anew with
each call.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from sendwhy.events import Gate
from sendwhy.reasons import ReasonCode, Service

from message_log.view import read_moment

# The pace to one person is a matter of seconds, and only the replica that drives the number knows it.
_MAY_BE_UNKNOWN = frozenset({"pair"})


class Outcome(StrEnum):
    """`unknown`: a service could not be asked or can't tell. `broken`: no request. `repeated`: the file has its id
    before. `used`: its id stands for an earlier message. `excluded`: a message that is not sent again from here."""

    GOES = "goes"
    WAITS = "waits"
    FAILS = "fails"
    UNKNOWN = "unknown"
    BROKEN = "broken"
    REPEATED = "repeated"
    USED = "used"
    EXCLUDED = "excluded"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`why`: a reason's code, what it waits for, the service that can't tell, or why it is excluded. `cause`: the
    reason's code of a wait. `credits`: what it would take if it went, 0 where it can't go. `field`: what is wrong in a
    broken line."""

    outcome: Outcome
    why: str | None = None
    cause: str | None = None
    service: str | None = None
    detail: str = ""
    field: str | None = None
    until: datetime | None = None
    credits: int = 0

    @property
    def group(self) -> str:
        return group_name(self.outcome, self.why, self.cause)


def group_name(outcome: str, why: str | None, cause: str | None) -> str:
    """fails.CUSTOMER_IS_NOT_OPTED_IN, waits.hold.META_PAYMENT_ISSUE, goes."""
    return ".".join(part for part in (outcome, why, cause) if part)


@dataclass(frozen=True, slots=True)
class Answers:
    """What was answered about one request; None by a service that wasn't asked about it, `faults` says why not.
    `address`: the person's number or, where none is known, their WhatsApp user id."""

    consent: Sequence[Gate] | None
    billing: Sequence[Gate] | None = None
    dispatcher: Sequence[Gate] | None = None
    address: str | None = None
    is_template: bool = True
    faults: Mapping[Service, str] = field(default_factory=dict)

    def gates(self, name: str) -> Mapping[str, Any]:
        """The evidence of a gate; empty where it wasn't told."""
        every = (*(self.consent or ()), *(self.billing or ()), *(self.dispatcher or ()))
        return next((gate.evidence for gate in every if gate.gate == name), {})

    def stop(self, service: Service) -> Verdict | None:
        """What the service's first gate that isn't passed comes to; None where it lets the request pass."""
        told = {Service.CONSENT: self.consent, Service.BILLING: self.billing, Service.DISPATCHER: self.dispatcher}
        gates = told[service]
        if gates is None:
            return Verdict(Outcome.UNKNOWN, service, service=service, detail=self.faults.get(service, ""))
        closed = next((verdict for gate in gates if (verdict := _closed(gate, service)) is not None), None)
        if closed is not None:
            return closed
        untold = next((gate for gate in gates if gate.passed is None and gate.gate not in _MAY_BE_UNKNOWN), None)
        if untold is None and gates:
            return None
        detail = f"The gate {untold.gate} can’t tell." if untold else "It named no gate."
        return Verdict(Outcome.UNKNOWN, service, service=service, detail=detail)


def _closed(gate: Gate, service: Service) -> Verdict | None:
    """A gate that rejects or holds. A hold has no reason: its evidence tells what for, and why."""
    waits_for = gate.evidence.get("waits_for")
    if gate.passed is not True and isinstance(waits_for, str):
        cause, until = gate.evidence.get("cause"), read_moment(gate.evidence.get("until"))
        return Verdict(Outcome.WAITS, waits_for, str(cause) if cause else None, service, until=until)
    if gate.passed is False:
        reason = gate.reason
        if reason is None:
            return Verdict(Outcome.UNKNOWN, service, service=service, detail=f"The gate {gate.gate} gave no reason.")
        return Verdict(Outcome.FAILS, reason.code, service=service, detail=reason.detail)
    return None


@dataclass(slots=True)
class People:
    """The messaging limit of a portfolio: `used` when it was first told, `taken` by those who were judged since."""

    limit: int
    used: int
    taken: int = 0

    @property
    def left(self) -> int:
        return max(0, self.limit - self.used - self.taken)


@dataclass(slots=True)
class Count:
    """What requests take from each other, in their order. `holds_credits`: whether one that waits takes its credits, as
    it would if it were asked for now. `portfolios` by sender id."""

    holds_credits: bool = True
    portfolios: dict[str, str] = field(default_factory=dict)
    balance: int | None = None
    spent: int = 0
    people: dict[str, People] = field(default_factory=dict)
    _reached: set[tuple[str | None, str]] = field(default_factory=set)
    _kept_out: set[tuple[str | None, str]] = field(default_factory=set)

    def judge(self, piece: Sequence[Answers]) -> list[Verdict]:
        """One verdict for each of a piece that the services were asked about in one call, in their order."""
        for one in piece:
            place, tier = self._place(one), one.gates("tier")
            if place is not None:
                self.people.setdefault(place, People(tier["limit"], tier["used"]))
        flags = self._new_people(piece)
        return [self._judge(one, counts) for one, counts in zip(piece, flags, strict=True)]

    def _judge(self, one: Answers, counts: bool) -> Verdict:
        consent = one.stop(Service.CONSENT)
        if consent is not None:
            return consent
        later, price = one.stop(Service.DISPATCHER), self._price(one)
        if price is not None and price > self.left:
            needed = 0 if later is not None and later.outcome is Outcome.FAILS else price
            detail = f"{self.left:,} credits would be left by then, and this message costs {price:,}."
            return Verdict(
                Outcome.FAILS, ReasonCode.INSUFFICIENT_CREDITS, service=Service.BILLING, detail=detail, credits=needed
            )
        if later is not None and later.outcome is Outcome.FAILS:
            # Its credits come back at once.
            return later
        unknown = one.stop(Service.BILLING) if price is None else None
        if unknown is not None or (later is not None and later.outcome is Outcome.UNKNOWN):
            return unknown or later  # type: ignore[return-value]
        # The dispatcher counts somebody anew whom a call before has reached, and once only whom it had room for itself.
        person = (self._place(one), one.address or "")
        is_new = (counts or person in self._kept_out) and person not in self._reached
        full = None if later is not None else self._full(one, is_new)
        if full is not None:
            self._kept_out.add(person)
        return self._take(one, later or full, price or 0, is_new)

    def _take(self, one: Answers, wait: Verdict | None, price: int, is_new: bool) -> Verdict:
        if wait is None or self.holds_credits:
            self.spent += price
        if wait is not None:
            return replace(wait, credits=price)
        place = self._place(one)
        if is_new and place is not None:
            self.people[place].taken += 1
            self._reached.add((place, one.address or ""))
        return Verdict(Outcome.GOES, credits=price)

    @property
    def left(self) -> int:
        return max(0, (self.balance or 0) - self.spent)

    def _price(self, one: Answers) -> int | None:
        told = one.gates("credits") if one.billing is not None else {}
        price, balance = told.get("price"), told.get("balance")
        if not isinstance(price, int) or not isinstance(balance, int):
            return None
        if self.balance is None:
            self.balance = balance
        return price

    def _full(self, one: Answers, is_new: bool) -> Verdict | None:
        """The wait for room in the limit that the pieces before have filled, which the dispatcher can't know."""
        place = self._place(one)
        if not is_new or place is None or self.people[place].left:
            return None
        return Verdict(Outcome.WAITS, "tier", ReasonCode.MESSAGING_LIMIT_REACHED, Service.DISPATCHER)

    def _place(self, one: Answers) -> str | None:
        """The portfolio whose limit the request counts for; None for no limit."""
        tier = one.gates("tier")
        limit, used = tier.get("limit"), tier.get("used")
        if not isinstance(limit, int) or not isinstance(used, int):
            return None
        sender = str(one.gates("sender").get("sender_id"))
        return self.portfolios.get(sender, sender)

    def _new_people(self, piece: Sequence[Answers]) -> list[bool]:
        """Whether each counts for a limit: where it does, the next one of the portfolio is told of one more. Of the
        last one nobody is told; a template counts then."""
        flags: list[bool] = []
        later: dict[str, int] = {}
        for one in reversed(piece):
            place = self._place(one)
            if place is None:
                flags.append(False)
                continue
            used = one.gates("tier")["used"]
            flags.append(later[place] > used if place in later else one.is_template)
            later[place] = used
        return list(reversed(flags))


def credits_needed(groups: Sequence[tuple[str, str | None, int]]) -> int:
    """What it would take to let all go that only credits can stop; of (outcome, why, credits) by group."""
    return sum(
        credits
        for outcome, why, credits in groups
        if outcome in (Outcome.GOES, Outcome.WAITS) or why == ReasonCode.INSUFFICIENT_CREDITS
    )
