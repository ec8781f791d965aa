"""What billing decides: prices, reservations, and what each later event books. Values in, values out.

A message's charge only moves forward: it notes the highest receipt and whether Meta told of a failure, so a repeated
or late event books nothing twice. What is charged in the end follows the contract's reading rule: delivered or better
beats a failure, any receipt beats a rejection, and a failure that Meta told beats a mere `sent`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from phonenumbers import COUNTRY_CODE_TO_REGION_CODE
from sendwhy.events import Evidence, Gate, Price, Reason, Resolved, SendRequested, Status, StatusUpdated, reason
from sendwhy.reasons import ReasonCode

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


NO_RECEIPT, SENT, DELIVERED = 0, 1, 2
_RECEIPT = {Told.SENT: SENT, Told.DELIVERED: DELIVERED}


@dataclass(frozen=True, slots=True)
class PriceRow:
    """`credits` a message of `category`, to one calling code or (None) to all that have no row of their own."""

    category: str
    calling_code: str | None
    credits: int
    valid_from: datetime


PriceList = Mapping[tuple[str, str | None], Sequence[PriceRow]]


def price_list(rows: Iterable[PriceRow]) -> PriceList:
    """Rows by category and calling code, the latest first."""
    grouped: dict[tuple[str, str | None], list[PriceRow]] = {}
    for row in sorted(rows, key=lambda row: row.valid_from, reverse=True):
        grouped.setdefault((row.category, row.calling_code), []).append(row)
    return grouped


def _credits(prices: PriceList, category: str, calling_code: str | None, at: datetime) -> int:
    for code in (calling_code, None):
        for row in prices.get((category, code), ()):
            if row.valid_from <= at:
                return row.credits
    return DEFAULT_CREDITS


def price_of(
    prices: PriceList, request: SendRequested, *, category: str | None, calling_code: str | None, at: datetime
) -> Price:
    """The price at `at`. `category` is the template's in Meta's capitals, None where the template is not known.

    An unknown template, or a category that Meta has invented since, costs the dearest one, marked as assumed.
    """
    known = NO_TEMPLATE if request.content["type"] != "template" else (category or "").lower()
    if known == NO_TEMPLATE or known in TEMPLATE_CATEGORIES:
        return Price(
            credits=_credits(prices, known, calling_code, at),
            category=known,
            calling_code=calling_code,
        )
    dearest = max(TEMPLATE_CATEGORIES, key=lambda name: _credits(prices, name, calling_code, at))
    return Price(
        credits=_credits(prices, dearest, calling_code, at),
        category=dearest,
        calling_code=calling_code,
        assumed=True,
    )


def calling_code_of(resolved: Resolved | None, request: SendRequested) -> str | None:
    """The calling code that consent found, else that of the international number."""
    if resolved is not None and resolved.calling_code is not None:
        return resolved.calling_code
    phone = (resolved.phone if resolved is not None else None) or request.to.phone or ""
    digits = phone[1:4] if phone.startswith("+") and phone[1:].isascii() and phone[1:].isdigit() else ""
    # Calling codes are prefix-free, so at most one length fits.
    return next((digits[:n] for n in range(1, len(digits) + 1) if int(digits[:n]) in COUNTRY_CODE_TO_REGION_CODE), None)


@dataclass(frozen=True, slots=True)
class Account:
    """A workspace's account. `version` is that of its last ledger entry, `reserved` what is held but not captured."""

    workspace_id: str
    balance: int = 0
    reserved: int = 0
    version: int = 0
    last_top_up: int | None = None
    low_balance_percent: int | None = None


@dataclass(frozen=True, slots=True)
class Charge:
    """One message's money: its price, the kinds already booked, the highest receipt, whether Meta told of a failure."""

    message_id: str
    price: Price
    origin_kind: str | None = None
    origin_id: str | None = None
    booked: frozenset[Kind] = frozenset()
    receipt: int = NO_RECEIPT
    failed: bool = False

    @property
    def is_charged(self) -> bool:
        paid = (Kind.RESERVE in self.booked) + (Kind.RECAPTURE in self.booked)
        returned = (Kind.RELEASE in self.booked) + (Kind.REFUND in self.booked)
        return paid > returned


@dataclass(frozen=True, slots=True)
class Entry:
    """A ledger entry to be. `cause` is the event's id, or the reference or reason given over HTTP."""

    workspace_id: str
    version: int
    kind: Kind
    amount: int
    balance_after: int
    cause: str
    charge: Charge | None = None
    actor: str | None = None


def _low_balance(balance: int, last_top_up: int | None, told: int | None) -> int | None:
    """The lowest threshold reached since the last top-up: each is told once, whatever comes back in between."""
    if last_top_up is None or balance * 100 > LOW_BALANCE_PERCENTS[0] * last_top_up:
        return told
    reached = [percent for percent in LOW_BALANCE_PERCENTS if balance * 100 <= percent * last_top_up]
    return min(reached if told is None else [told, *reached])


def _book(
    account: Account, kind: Kind, amount: int, cause: str, *, held: int = 0, charge: Charge | None = None
) -> tuple[Account, Entry]:
    balance, version = account.balance + amount, account.version + 1
    low = _low_balance(balance, account.last_top_up, account.low_balance_percent)
    booked = Account(account.workspace_id, balance, account.reserved + held, version, account.last_top_up, low)
    return booked, Entry(account.workspace_id, version, kind, amount, balance, cause, charge)


def _book_charge(account: Account, charge: Charge, kind: Kind, cause: str) -> tuple[Account, Charge, Entry]:
    credits = charge.price.credits
    held = credits if kind is Kind.RESERVE else -credits if kind in (Kind.CAPTURE, Kind.RELEASE) else 0
    charge = replace(charge, booked=charge.booked | {kind})
    account, entry = _book(account, kind, _SIGN[kind] * credits, cause, held=held, charge=charge)
    return account, charge, entry


def top_up(account: Account, credits: int, *, reference: str, actor: str) -> tuple[Account, Entry]:
    """Credits bought; the thresholds of a low balance start anew."""
    renewed = replace(account, last_top_up=credits, low_balance_percent=None)
    account, entry = _book(renewed, Kind.TOP_UP, credits, reference)
    return account, replace(entry, actor=actor)


@dataclass(frozen=True, slots=True)
class BelowZero:
    """A refused adjustment: the balance doesn't cover it."""

    balance: int
    credits: int


def adjust(account: Account, credits: int, *, why: str, actor: str) -> tuple[Account, Entry] | BelowZero:
    if account.balance + credits < 0:
        return BelowZero(account.balance, credits)
    account, entry = _book(account, Kind.ADJUSTMENT, credits, why)
    return account, replace(entry, actor=actor)


def evaluate(price: Price, balance: int) -> list[Gate]:
    """All gates of billing for one message: there is one, whether the balance covers the price."""
    shortfall = max(0, price.credits - balance)
    money: Evidence = {"balance": balance, "price": price.credits, "shortfall": shortfall, "currency": "credits"}
    terms: Evidence = {"category": price.category, "calling_code": price.calling_code, "assumed": price.assumed}
    refusal = None if shortfall == 0 else _insufficient(price, balance, money)
    return [Gate(gate="credits", passed=refusal is None, reason=refusal, evidence=money | terms)]


def _insufficient(price: Price, balance: int, money: Evidence) -> Reason:
    detail = (
        f"The balance is {balance} credits and this message costs {price.credits}"
        f" ({price.category}{', assumed' if price.assumed else ''}): {price.credits - balance} short."
    )
    return reason(ReasonCode.INSUFFICIENT_CREDITS, detail, money)


@dataclass(frozen=True, slots=True)
class Ask:
    """A message that wants to be funded; `cause` is the id of the event that asks."""

    charge: Charge
    cause: str


@dataclass(frozen=True, slots=True)
class Funding:
    """One workspace's batch: the account after it, what was booked, and the refused messages with their reasons."""

    account: Account
    entries: list[Entry]
    refused: dict[str, Reason]


def fund(account: Account, asks: Iterable[Ask]) -> Funding:
    """Reserve in order of arrival; what the balance doesn't cover is refused, and a cheaper one after it may pass."""
    entries: list[Entry] = []
    refused: dict[str, Reason] = {}
    for ask in asks:
        failing = next((gate for gate in evaluate(ask.charge.price, account.balance) if gate.reason is not None), None)
        if failing is not None and failing.reason is not None:
            refused[ask.charge.message_id] = failing.reason
            continue
        account, _, entry = _book_charge(account, ask.charge, Kind.RESERVE, ask.cause)
        entries.append(entry)
    return Funding(account, entries, refused)


def told_by(event: StatusUpdated) -> Told | None:
    """What a status means for the money; None for `accepted` and for failures that are inferred."""
    if event.status is Status.ACCEPTED:
        return None
    if event.status is Status.SENT:
        return Told.SENT
    if event.status is not Status.FAILED:
        return Told.DELIVERED
    return None if event.reason is not None and event.reason.code in INFERRED else Told.FAILED


@dataclass(frozen=True, slots=True)
class News:
    """What an event told of a message; `cause` is the event's id."""

    message_id: str
    told: Told
    cause: str


def react(charge: Charge, told: Told, balance: int) -> tuple[Charge, Kind | None]:
    """The charge with `told` noted, and what is to be booked for it, if anything."""
    if told is Told.REJECTED:
        return charge, Kind.RELEASE if charge.booked == _OPEN else None
    if told is Told.FAILED:
        return replace(charge, failed=True), _on_failure(charge)
    receipt = _RECEIPT[told]
    if receipt <= charge.receipt:
        return charge, None
    charge = replace(charge, receipt=receipt)
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


@dataclass(frozen=True, slots=True)
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
        charge, kind = react(before, item.told, account.balance)
        if kind is not None:
            account, charge, entry = _book_charge(account, charge, kind, item.cause)
            entries.append(entry)
        if charge != before:
            changed[item.message_id] = charge
    return Settlement(account, entries, changed)
