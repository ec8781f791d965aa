"""What billing decides: prices, reservations, and what each later event books. Values in, values out.

A message's charge only moves forward: it notes the highest receipt and whether Meta told of a failure, so a repeated
or late event books nothing twice. What is charged in the end follows the contract's reading rule: delivered or better
beats a failure, any receipt beats a rejection, and a failure that Meta told beats a mere `sent`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from enum import StrEnum
from functools import lru_cache

from phonenumbers import COUNTRY_CODE_TO_REGION_CODE
from sendwhy import plain
from sendwhy.events import Evidence, Gate, Price, Reason, Resolved, SendRequested, Status, StatusUpdated, reason
from sendwhy.reasons import ReasonCode
from sendwhy.values import value_class

from billing.pricing import DELIVERED, NO_RECEIPT, SENT, Difference, MetaPricing, differences

DEFAULT_CREDITS = 1
TEMPLATE_CATEGORIES = ("marketing", "utility", "authentication")
NO_TEMPLATE = "service"
LOW_BALANCE_PERCENTS = (20, 10, 0)
# Concluded from silence, not told by Meta: a receipt may still come, and no money goes back.
INFERRED = frozenset({ReasonCode.NO_DELIVERY_RECEIPT, ReasonCode.RECIPIENT_PROBABLY_BLOCKED_SENDER})


class Kind(StrEnum):
    """The kinds of ledger entries; those of a message stand in the ledger at most once each."""

    RESERVE = "reserve"
    CAPTURE = "capture"
    RELEASE = "release"
    REFUND = "refund"
    RECAPTURE = "recapture"
    WAIVE = "waive"
    TOP_UP = "top_up"
    ADJUSTMENT = "adjustment"


_SIGN = {Kind.RESERVE: -1, Kind.CAPTURE: 0, Kind.RELEASE: 1, Kind.REFUND: 1, Kind.RECAPTURE: -1, Kind.WAIVE: 0}
_OPEN = frozenset({Kind.RESERVE})


class Told(StrEnum):
    """What an event says of a message, as far as money goes."""

    SENT = "sent"
    DELIVERED = "delivered"
    FAILED = "failed"
    REJECTED = "rejected"


RECEIPTS = {Told.SENT: SENT, Told.DELIVERED: DELIVERED}


@value_class
class PriceRow:
    """`credits` a message of `category`, to one calling code or (None) to all that have no row of their own."""

    category: str
    calling_code: str | None
    credits: int
    valid_from: datetime


AnyResolved = Resolved | plain.Resolved
PriceList = Mapping[tuple[str, str | None], Sequence[PriceRow]]


def price_list(rows: Iterable[PriceRow]) -> PriceList:
    """Rows by category and calling code, the latest first."""
    grouped: dict[tuple[str, str | None], list[PriceRow]] = {}
    for row in sorted(rows, key=lambda row: row.valid_from, reverse=True):
        grouped.setdefault((row.category, row.calling_code), []).append(row)
    return grouped


@lru_cache(1024)
def price(credits: int, category: str, calling_code: str | None, assumed: bool) -> Price:
    """A price list gives few different ones, and each message reads its own several times."""
    return Price(credits=credits, category=category, calling_code=calling_code, assumed=assumed)


@value_class
class Quote:
    """A price, and the row that gave it; None: there is none, and the default counts."""

    price: Price
    row: PriceRow | None


def _row(prices: PriceList, category: str, calling_code: str | None, at: datetime) -> PriceRow | None:
    for code in (calling_code, None):
        for row in prices.get((category, code), ()):
            if row.valid_from <= at:
                return row
    return None


def _quote(prices: PriceList, category: str, calling_code: str | None, at: datetime, *, assumed: bool) -> Quote:
    row = _row(prices, category, calling_code, at)
    credits = DEFAULT_CREDITS if row is None else row.credits
    return Quote(price(credits, category, calling_code, assumed), row)


def price_of(
    prices: PriceList,
    request: SendRequested | plain.Request,
    *,
    category: str | None,
    calling_code: str | None,
    at: datetime,
) -> Quote:
    """The price at `at`. `category` is the template's in Meta's capitals, None where the template is not known.

    An unknown template, or a category that Meta has invented since, costs the dearest one, marked as assumed.
    """
    known = NO_TEMPLATE if request.template_id is None else (category or "").lower()
    if known == NO_TEMPLATE or known in TEMPLATE_CATEGORIES:
        return _quote(prices, known, calling_code, at, assumed=False)
    guesses = [_quote(prices, name, calling_code, at, assumed=True) for name in TEMPLATE_CATEGORIES]
    return max(guesses, key=lambda quote: quote.price.credits)


def calling_code_of(resolved: AnyResolved | None, request: SendRequested | plain.Request) -> str | None:
    """The calling code that consent found, else that of the international number."""
    if resolved is not None and resolved.calling_code is not None:
        return resolved.calling_code
    phone = (resolved.phone if resolved is not None else None) or request.to.phone or ""
    digits = phone[1:4] if phone.startswith("+") and phone[1:].isascii() and phone[1:].isdigit() else ""
    # Calling codes are prefix-free, so at most one length fits.
    return next((digits[:n] for n in range(1, len(digits) + 1) if int(digits[:n]) in COUNTRY_CODE_TO_REGION_CODE), None)


def country_of(resolved: AnyResolved | None, calling_code: str | None) -> str | None:
    """The country that consent found, else the only one that has this calling code."""
    if resolved is not None and resolved.country is not None:
        return resolved.country
    regions = COUNTRY_CODE_TO_REGION_CODE.get(int(calling_code), ()) if calling_code is not None else ()
    return regions[0] if len(regions) == 1 and regions[0].isalpha() else None


@value_class
class Account:
    """A workspace's account. `version` is that of its last ledger entry, `reserved` what is held but not captured."""

    workspace_id: str
    balance: int = 0
    reserved: int = 0
    version: int = 0
    last_top_up: int | None = None
    low_balance_percent: int | None = None


@value_class
class Charge:
    """One message's money: its price, the kinds already booked, the highest receipt, whether Meta told of a failure.

    `row` is what gave the price, while the charge is being made; `meta` what Meta told of its own price, if anything.
    """

    message_id: str
    price: Price
    origin_kind: str | None = None
    origin_id: str | None = None
    booked: frozenset[Kind] = frozenset()
    receipt: int = NO_RECEIPT
    failed: bool = False
    country: str | None = None
    row: PriceRow | None = None
    meta: MetaPricing | None = None

    @property
    def is_charged(self) -> bool:
        paid = (Kind.RESERVE in self.booked) + (Kind.RECAPTURE in self.booked)
        returned = (Kind.RELEASE in self.booked) + (Kind.REFUND in self.booked)
        return paid > returned

    def differences(self) -> frozenset[Difference]:
        """Where Meta's pricing differs from this charge, as it stands now."""
        return differences(
            self.meta, category=self.price.category, credits=self.price.credits, is_charged=self.is_charged
        )


@value_class
class Cause:
    """What led to an entry: the event's id, its topic (with `/` and the status of a status.updated), and the code of
    the reason that it carries. Over HTTP: the reference or reason given, and top_up or adjustment."""

    id: str
    kind: str
    reason: str | None = None


@value_class
class Entry:
    """A ledger entry to be."""

    workspace_id: str
    version: int
    kind: Kind
    amount: int
    balance_after: int
    cause: Cause
    charge: Charge | None = None
    actor: str | None = None


@value_class
class Alert:
    """A threshold of the last top-up that the entry of this version reached first."""

    workspace_id: str
    version: int
    percent: int
    balance: int
    last_top_up: int


def _low_balance(balance: int, last_top_up: int | None, told: int | None) -> int | None:
    """The lowest threshold reached since the last top-up: each is told once, whatever comes back in between."""
    if last_top_up is None or balance * 100 > LOW_BALANCE_PERCENTS[0] * last_top_up:
        return told
    reached = [percent for percent in LOW_BALANCE_PERCENTS if balance * 100 <= percent * last_top_up]
    return min(reached if told is None else [told, *reached])


def alerts(before: Account, entries: Iterable[Entry]) -> list[Alert]:
    """The thresholds that these entries reached, one after the other, on the account as it was before them."""
    found: list[Alert] = []
    top_up, told = before.last_top_up, before.low_balance_percent
    for entry in entries:
        if entry.kind is Kind.TOP_UP:
            top_up, told = entry.amount, None
        low = _low_balance(entry.balance_after, top_up, told)
        if top_up is not None and low is not None and low != told:
            found += [
                Alert(entry.workspace_id, entry.version, percent, entry.balance_after, top_up)
                for percent in LOW_BALANCE_PERCENTS
                if percent >= low and (told is None or percent < told)
            ]
        told = low
    return found


def _book(
    account: Account, kind: Kind, amount: int, cause: Cause, *, held: int = 0, charge: Charge | None = None
) -> tuple[Account, Entry]:
    balance, version = account.balance + amount, account.version + 1
    low = _low_balance(balance, account.last_top_up, account.low_balance_percent)
    booked = Account(account.workspace_id, balance, account.reserved + held, version, account.last_top_up, low)
    return booked, Entry(account.workspace_id, version, kind, amount, balance, cause, charge)


def _noted(
    charge: Charge,
    *,
    booked: frozenset[Kind] | None = None,
    receipt: int | None = None,
    failed: bool | None = None,
    meta: MetaPricing | None = None,
) -> Charge:
    """The charge with what is given; `dataclasses.replace` takes five times as long."""
    return Charge(
        charge.message_id,
        charge.price,
        charge.origin_kind,
        charge.origin_id,
        charge.booked if booked is None else booked,
        charge.receipt if receipt is None else receipt,
        charge.failed if failed is None else failed,
        charge.country,
        charge.row,
        charge.meta if meta is None else meta,
    )


def _book_charge(account: Account, charge: Charge, kind: Kind, cause: Cause) -> tuple[Account, Charge, Entry]:
    credits = charge.price.credits
    held = credits if kind is Kind.RESERVE else -credits if kind in (Kind.CAPTURE, Kind.RELEASE) else 0
    charge = _noted(charge, booked=charge.booked | {kind})
    account, entry = _book(account, kind, _SIGN[kind] * credits, cause, held=held, charge=charge)
    return account, charge, entry


def top_up(account: Account, credits: int, *, reference: str, actor: str) -> tuple[Account, Entry]:
    """Credits bought; the thresholds of a low balance start anew."""
    renewed = replace(account, last_top_up=credits, low_balance_percent=None)
    account, entry = _book(renewed, Kind.TOP_UP, credits, Cause(reference, Kind.TOP_UP))
    return account, replace(entry, actor=actor)


@value_class
class BelowZero:
    """A refused adjustment: the balance doesn't cover it."""

    balance: int
    credits: int


def adjust(account: Account, credits: int, *, why: str, actor: str) -> tuple[Account, Entry] | BelowZero:
    if account.balance + credits < 0:
        return BelowZero(account.balance, credits)
    account, entry = _book(account, Kind.ADJUSTMENT, credits, Cause(why, Kind.ADJUSTMENT))
    return account, replace(entry, actor=actor)


OriginKey = tuple[str, str | None]


@value_class
class Tally:
    """How many messages of one origin of a workspace were funded and refused so far."""

    funded: int = 0
    refused: int = 0

    def plus(self, other: "Tally") -> "Tally":
        return Tally(self.funded + other.funded, self.refused + other.refused)


def evaluate(price: Price, balance: int, origin: OriginKey, tally: Tally) -> list[Gate]:
    """All gates of billing for one message: there is one, whether the balance covers the price. `tally` is that of its
    origin before this message."""
    evidence = _evidence(price, balance) | {
        "category": price.category,
        "calling_code": price.calling_code,
        "assumed": price.assumed,
    }
    if balance >= price.credits:
        return [Gate(gate="credits", passed=True, evidence=evidence | _scope(origin, tally))]
    refusal = _insufficient(price, balance, origin, tally)
    return [Gate(gate="credits", passed=False, reason=refusal, evidence=evidence | _scope(origin, tally))]


def _evidence(price: Price, balance: int) -> Evidence:
    shortfall = max(0, price.credits - balance)
    return {"balance": balance, "price": price.credits, "shortfall": shortfall, "currency": "credits"}


def _scope(origin: OriginKey, tally: Tally) -> Evidence:
    kind, name = origin
    return {"scope": {"origin": {"kind": kind, "id": name}, "funded": tally.funded, "refused": tally.refused}}


def _insufficient(price: Price, balance: int, origin: OriginKey, tally: Tally) -> Reason:
    counted = replace(tally, refused=tally.refused + 1)
    kind, name = origin
    noun, verb = ("message", "was") if counted.funded == 1 else ("messages", "were")
    detail = (
        f"The balance is {balance} credit{'' if balance == 1 else 's'} and this message costs {price.credits}"
        f" ({price.category}{', assumed' if price.assumed else ''}): {price.credits - balance} short."
        f" So far {counted.funded} {noun} of {kind}{'' if name is None else f' {name}'} {verb} funded"
        f" and {counted.refused} refused, this one included."
    )
    return reason(ReasonCode.INSUFFICIENT_CREDITS, detail, _evidence(price, balance) | _scope(origin, counted))


@value_class
class Ask:
    """A message that wants to be funded, and what asks."""

    charge: Charge
    cause: Cause


@value_class
class Funding:
    """One workspace's batch: the account after it, what was booked, the refused messages with their reasons, and how
    many of each origin in it were funded and refused."""

    account: Account
    entries: list[Entry]
    refused: dict[str, Reason]
    tallies: dict[OriginKey, Tally]


def fund(account: Account, asks: Iterable[Ask], tallies: Mapping[OriginKey, Tally]) -> Funding:
    """Reserve in order of arrival; what the balance doesn't cover is refused, and a cheaper one after it may pass.
    `tallies`, those before the batch, are told in refusals, and not asked for where `is_covered`."""
    entries: list[Entry] = []
    refused: dict[str, Reason] = {}
    counts: dict[OriginKey, Tally] = {}
    for ask in asks:
        charge = ask.charge
        origin = origin_of(charge)
        count = counts.get(origin) or Tally()
        # The whole gate is only worth making where it fails.
        failing = None
        if account.balance < charge.price.credits:
            tally = (tallies.get(origin) or Tally()).plus(count)
            failing = next(gate for gate in evaluate(charge.price, account.balance, origin, tally) if not gate.passed)
        if failing is not None and failing.reason is not None:
            refused[charge.message_id] = failing.reason
            counts[origin] = Tally(count.funded, count.refused + 1)
            continue
        account, _, entry = _book_charge(account, charge, Kind.RESERVE, ask.cause)
        counts[origin] = Tally(count.funded + 1, count.refused)
        entries.append(entry)
    return Funding(account, entries, refused, counts)


def is_covered(account: Account, asks: Iterable[Ask]) -> bool:
    """Whether `fund` refuses none of them."""
    return sum(ask.charge.price.credits for ask in asks) <= account.balance


def origin_of(charge: Charge) -> OriginKey:
    return charge.origin_kind or "", charge.origin_id


def told_by(event: StatusUpdated | plain.Receipt) -> Told | None:
    """What a status means for the money; None for `accepted` and for failures that are inferred."""
    if event.status is Status.ACCEPTED:
        return None
    if event.status is Status.SENT:
        return Told.SENT
    if event.status is not Status.FAILED:
        return Told.DELIVERED
    return None if event.reason is not None and event.reason.code in INFERRED else Told.FAILED


@value_class
class News:
    """What an event told of a message, and, where Meta told it, of its price."""

    message_id: str
    told: Told
    cause: Cause
    meta: MetaPricing | None = None


def react(charge: Charge, told: Told, balance: int) -> tuple[Charge, Kind | None]:
    """The charge with `told` noted, and what is to be booked for it, if anything."""
    if told is Told.REJECTED:
        return charge, Kind.RELEASE if charge.booked == _OPEN else None
    if told is Told.FAILED:
        return _noted(charge, failed=True), _on_failure(charge)
    receipt = RECEIPTS[told]
    if receipt <= charge.receipt:
        return charge, None
    charge = _noted(charge, receipt=receipt)
    return charge, _on_receipt(charge, balance)


def _on_failure(charge: Charge) -> Kind | None:
    if charge.failed or not charge.is_charged or charge.receipt == DELIVERED:
        return None
    return Kind.RELEASE if charge.booked == _OPEN else Kind.REFUND


def _on_receipt(charge: Charge, balance: int) -> Kind | None:
    if charge.booked == _OPEN:
        return Kind.CAPTURE
    # In Kafka a `sent` may come after the failure that followed it at Meta: that message has failed all the same.
    beaten = charge.failed and charge.receipt < DELIVERED
    if charge.is_charged or beaten or Kind.WAIVE in charge.booked:
        return None
    covered = balance >= charge.price.credits and Kind.RECAPTURE not in charge.booked
    return Kind.RECAPTURE if covered else Kind.WAIVE


def _with_pricing(charge: Charge, meta: MetaPricing | None) -> Charge:
    """The pricing that came with the highest receipt stands: Meta charges for delivered messages."""
    if meta is None or (charge.meta is not None and charge.meta.receipt > meta.receipt):
        return charge
    return _noted(charge, meta=meta)


@value_class
class Settlement:
    """One workspace's batch of news: the account after it, what was booked, and the charges that changed."""

    account: Account
    entries: list[Entry]
    changed: dict[str, Charge]


def settle(account: Account, charges: Mapping[str, Charge], news: Iterable[News]) -> Settlement:
    """Apply news in order of arrival; messages without a charge are not ours to book."""
    entries: list[Entry] = []
    changed: dict[str, Charge] = {}
    for item in news:
        before = changed.get(item.message_id) or charges.get(item.message_id)
        if before is None:
            continue
        charge, kind = react(_with_pricing(before, item.meta), item.told, account.balance)
        if kind is not None:
            account, charge, entry = _book_charge(account, charge, kind, item.cause)
            entries.append(entry)
        if charge != before:
            changed[item.message_id] = charge
    return Settlement(account, entries, changed)
