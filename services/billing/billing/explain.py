"""Why a message was charged, or not: its entries as sentences. Values in, values out."""

from collections.abc import Sequence
from enum import StrEnum

from sendwhy.events import Moment, Reason, Wire
from sendwhy.reasons import CATALOGUE, ReasonCode
from sendwhy.topics import Topic

from billing.decide import DEFAULT_CREDITS, INFERRED, Kind
from billing.pricing import Difference, MetaPricing
from billing.store import LedgerEntry


class State(StrEnum):
    RESERVED = "reserved"
    CAPTURED = "captured"
    RELEASED = "released"
    REFUNDED = "refunded"
    RECAPTURED = "recaptured"
    WAIVED = "waived"
    NOT_CHARGED = "not_charged"


_INFERRED = ", ".join(sorted(CATALOGUE[code].title for code in INFERRED))
_STATES = {
    Kind.RESERVE: State.RESERVED,
    Kind.CAPTURE: State.CAPTURED,
    Kind.RELEASE: State.RELEASED,
    Kind.REFUND: State.REFUNDED,
    Kind.RECAPTURE: State.RECAPTURED,
    Kind.WAIVE: State.WAIVED,
}
_RECEIPT_WORDS = {
    "sent": "it was sent",
    "delivered": "it was delivered",
    "read": "it was read",
    "played": "it was played",
}


class PriceRowAnswer(Wire):
    """A row of the price list as it was then. `calling_code` null: for all that have no row of their own."""

    category: str
    calling_code: str | None
    credits: int
    valid_from: Moment


class PriceAnswer(Wire):
    """`assumed`: the template's category was not known, the dearest one was taken. `default`: no row of the price list
    covered it; null where that was not noted yet. `row`: the row that gave it."""

    credits: int
    category: str
    calling_code: str | None
    country: str | None
    assumed: bool
    default: bool | None
    row: PriceRowAnswer | None
    explanation: str


class CauseAnswer(Wire):
    """The event that led to an entry: its topic (`kind`), for status.updated the status, its id, and the code of the
    reason that it carries. `kind` is null for entries from before this was noted."""

    kind: str | None
    status: str | None
    id: str
    reason: str | None


class EntryAnswer(Wire):
    """One ledger entry of the message; `amount` in credits, below 0 where they were taken."""

    entry_id: int
    kind: Kind
    amount: int
    at: Moment
    cause: CauseAnswer
    explanation: str


class MetaAnswer(Wire):
    """What Meta's webhooks said of its own price: never an amount."""

    category: str | None
    type: str | None
    pricing_model: str | None
    billable: bool | None
    told_with: str


class ChargeAnswer(Wire):
    """`credits`: what the message costs as things stand. `refusal`: why it was not funded, with the figures."""

    workspace_id: str
    message_id: str
    state: State
    credits: int
    summary: str
    origin_kind: str | None
    origin_id: str | None
    price: PriceAnswer | None
    entries: list[EntryAnswer]
    refusal: Reason | None
    meta_pricing: MetaAnswer | None
    pricing_differences: list[Difference]


def charge_answer(
    workspace_id: str, entries: Sequence[LedgerEntry], meta: MetaPricing | None, found: Sequence[Difference]
) -> ChargeAnswer:
    """The charge of a message from its ledger entries, the first first; there is at least its `reserve`."""
    first, last = entries[0], entries[-1]
    state = _STATES[last.kind]
    credits = -sum(entry.amount for entry in entries)
    return ChargeAnswer(
        workspace_id=workspace_id,
        message_id=first.message_id or "",
        state=state,
        credits=credits,
        summary=_summary(state, first.price or 0),
        origin_kind=first.origin_kind,
        origin_id=first.origin_id,
        price=_price(first, "costs" if state is State.RESERVED else "cost"),
        entries=[_entry(entry) for entry in entries],
        refusal=None,
        meta_pricing=None if meta is None else _meta(meta),
        pricing_differences=sorted(found),
    )


def refused_answer(workspace_id: str, message_id: str, refusal: Reason | None) -> ChargeAnswer:
    """A message that was not funded; without `refusal` where the person it was for has been erased."""
    why = "" if refusal is None else f" {refusal.detail}"
    return ChargeAnswer(
        workspace_id=workspace_id,
        message_id=message_id,
        state=State.NOT_CHARGED,
        credits=0,
        summary=f"This message costs nothing: it was refused for lack of credits, and nothing was taken.{why}",
        origin_kind=None,
        origin_id=None,
        price=None,
        entries=[],
        refusal=refusal,
        meta_pricing=None,
        pricing_differences=[],
    )


def amount_of(credits: int) -> str:
    return f"{credits} credit{'' if credits == 1 else 's'}"


def _summary(state: State, price: int) -> str:
    cost = amount_of(price)
    are, were = ("is", "was") if price == 1 else ("are", "were")
    return {
        State.RESERVED: f"{cost} {are} held for this message: kept once Meta tells that it was sent, given back if Meta"
        " tells that it failed, or if nobody knows whether it was sent. A failure that is only concluded from silence"
        f" ({_INFERRED}) gives nothing back: it may have arrived.",
        State.CAPTURED: f"This message costs {cost}.",
        State.RECAPTURED: f"This message costs {cost}: a receipt came after they had been given back.",
        State.RELEASED: f"This message costs nothing: {cost} {were} held and given back.",
        State.REFUNDED: f"This message costs nothing: {cost} {were} charged and given back.",
        State.WAIVED: f"This message costs nothing: {cost} had been given back before its receipt came, and"
        " nothing was taken again.",
        State.NOT_CHARGED: "This message costs nothing.",
    }[state]


def _price(entry: LedgerEntry, cost: str) -> PriceAnswer:
    category, credits = entry.category or "", entry.price or 0
    row = None
    if entry.price_valid_from is not None:
        row = PriceRowAnswer(
            category=category,
            calling_code=entry.price_calling_code,
            credits=credits,
            valid_from=entry.price_valid_from,
        )
    return PriceAnswer(
        credits=credits,
        category=category,
        calling_code=entry.calling_code,
        country=entry.country,
        assumed=bool(entry.assumed),
        default=row is None if _tells_its_price(entry) else None,
        row=row,
        explanation=_price_sentence(entry, row, cost),
    )


def _tells_its_price(entry: LedgerEntry) -> bool:
    """Old entries don't tell which row gave it, nor do those that `rewind` takes from what was funded."""
    return entry.cause_kind not in (None, Topic.SEND_FUNDED)


def _price_sentence(entry: LedgerEntry, row: PriceRowAnswer | None, cost: str) -> str:
    to = f" to +{entry.calling_code}" if entry.calling_code else ""
    article = "An" if entry.category == "authentication" else "A"
    text = f"{article} {entry.category} message{to} {cost} {amount_of(entry.price or 0)}"
    if row is not None:
        whom = "all countries without their own" if row.calling_code is None else f"+{row.calling_code}"
        text += f" by the price of {row.category} for {whom}, valid from {row.valid_from:%Y-%m-%d %H:%M} UTC."
    elif not _tells_its_price(entry):
        text += "."
    else:
        text += f", since no price covered it: {amount_of(DEFAULT_CREDITS)} is the default."
    if entry.assumed:
        text += " The template's category was not known then, so the dearest one was assumed."
    return text


def _entry(entry: LedgerEntry) -> EntryAnswer:
    kind, _, status = (entry.cause_kind or "").partition("/")
    return EntryAnswer(
        entry_id=entry.entry_id,
        kind=entry.kind,
        amount=entry.amount,
        at=entry.at,
        cause=CauseAnswer(kind=kind or None, status=status or None, id=entry.cause, reason=entry.cause_reason),
        explanation=_sentence(entry, status),
    )


def _sentence(entry: LedgerEntry, status: str) -> str:
    cost = amount_of(entry.price or 0)
    was = "was" if entry.price == 1 else "were"
    told = _RECEIPT_WORDS.get(status, "it went out")
    title = _title(entry.cause_reason)
    because = f" ({title})" if title else ""
    if entry.kind is Kind.RELEASE:
        return f"The {cost} held {was} given back: {_why_released(entry, status)}{because}."
    return {
        Kind.RESERVE: f"{cost} {was} taken off the balance and held, before the message went on to be sent.",
        Kind.CAPTURE: f"The {cost} held became the charge: Meta told that {told}.",
        Kind.REFUND: f"{cost} {was} given back: Meta told that the message failed after all{because}.",
        Kind.RECAPTURE: f"{cost} {was} taken again: Meta told that {told}, after they had been given back.",
        Kind.WAIVE: f"Nothing was taken: Meta told that {told} after {cost} had been given back, but the balance didn't"
        " cover the price again, or the message had been charged again once before.",
    }[entry.kind]


def _why_released(entry: LedgerEntry, status: str) -> str:
    if entry.cause_reason == ReasonCode.SEND_OUTCOME_UNKNOWN:
        return "nobody knows whether the message was sent"
    return "Meta told that the message failed" if status == "failed" else "the message was not sent"


def _title(code: str | None) -> str | None:
    known = None if code is None else CATALOGUE.get(ReasonCode(code)) if code in set(ReasonCode) else None
    return code if known is None else known.title


def _meta(meta: MetaPricing) -> MetaAnswer:
    return MetaAnswer(
        category=meta.category,
        type=meta.type,
        pricing_model=meta.model,
        billable=meta.billable,
        told_with="sent" if meta.receipt == 1 else "delivered",
    )


def difference_sentence(kind: Difference, credits: int, category: str, meta_category: str | None) -> str:
    """One sentence for a person on a difference between Meta's pricing and our charge."""
    return {
        Difference.CATEGORY: f"We priced it as {category}, Meta as {meta_category}.",
        Difference.CHARGED_BUT_FREE: f"We charged {amount_of(credits)}, for Meta it was free.",
        Difference.BILLED_BUT_NOT_CHARGED: f"Meta bills it, and we gave {amount_of(credits)} back.",
    }[kind]
