"""The rules of money, on values alone."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from billing.decide import (
    INFERRED,
    Account,
    Ask,
    BelowZero,
    Cause,
    Charge,
    Entry,
    Kind,
    News,
    OriginKey,
    PriceRow,
    Quote,
    Tally,
    Told,
    adjust,
    alerts,
    calling_code_of,
    country_of,
    evaluate,
    fund,
    is_covered,
    price_list,
    price_of,
    settle,
    told_by,
    top_up,
)
from billing_desk import verdict_is_paid
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from sendwhy.events import (
    Origin,
    OriginKind,
    Price,
    Purpose,
    Resolved,
    SendRequested,
    Status,
    StatusUpdated,
    To,
    reason,
)
from sendwhy.reasons import ReasonCode, Recoverable, Service
from sendwhy.topics import Topic

NOW = datetime(2026, 11, 22, 10, tzinfo=UTC)
SENT, DELIVERED, FAILED, REJECTED = Told.SENT, Told.DELIVERED, Told.FAILED, Told.REJECTED


def charge(message_id: str = "m", credits: int = 1) -> Charge:
    return Charge(message_id, Price(credits=credits, category="marketing"))


def reserved(credits: int, *, left: int) -> tuple[Account, Charge]:
    """An account with `left` credits beside one reservation."""
    funding = fund(Account("w", balance=left + credits), [ask(charge(credits=credits))], {})
    [entry] = funding.entries
    assert entry.charge is not None
    return funding.account, entry.charge


def ask(charge: Charge, cause: str = "asked") -> Ask:
    return Ask(charge, Cause(cause, Topic.SEND_CONSENTED))


def kinds(entries: Sequence[Entry]) -> list[str]:
    return [entry.kind.value for entry in entries]


def news(*told: Told) -> list[News]:
    return [News("m", one, Cause(f"event-{position}", one)) for position, one in enumerate(told)]


@pytest.mark.parametrize(
    ("told", "booked", "paid"),
    [
        ([SENT], ["capture"], 3),
        ([DELIVERED], ["capture"], 3),
        ([SENT, DELIVERED, SENT, DELIVERED], ["capture"], 3),
        ([REJECTED], ["release"], 0),
        ([REJECTED, REJECTED], ["release"], 0),
        ([SENT, REJECTED], ["capture"], 3),
        ([REJECTED, SENT], ["release", "recapture"], 3),
        ([REJECTED, SENT, DELIVERED, REJECTED], ["release", "recapture"], 3),
        ([FAILED], ["release"], 0),
        ([SENT, FAILED], ["capture", "refund"], 0),
        ([FAILED, SENT], ["release"], 0),
        ([SENT, FAILED, FAILED], ["capture", "refund"], 0),
        ([SENT, FAILED, SENT], ["capture", "refund"], 0),
        ([SENT, FAILED, DELIVERED], ["capture", "refund", "recapture"], 3),
        ([FAILED, DELIVERED], ["release", "recapture"], 3),
        ([FAILED, SENT, DELIVERED], ["release", "recapture"], 3),
        ([SENT, DELIVERED, FAILED], ["capture"], 3),
        ([DELIVERED, FAILED], ["capture"], 3),
        ([REJECTED, SENT, FAILED], ["release", "recapture", "refund"], 0),
        ([REJECTED, FAILED, SENT], ["release"], 0),
        ([REJECTED, SENT, FAILED, DELIVERED], ["release", "recapture", "refund", "waive"], 0),
        ([FAILED, REJECTED, DELIVERED, DELIVERED], ["release", "recapture"], 3),
    ],
)
def test_what_each_order_of_events_books(told: list[Told], booked: list[str], paid: int) -> None:
    account, reservation = reserved(3, left=10)
    settlement = settle(account, {"m": reservation}, news(*told))
    assert kinds(settlement.entries) == booked
    assert settlement.account.balance == 13 - paid
    assert settlement.account.reserved == 0


def test_a_late_receipt_that_the_balance_does_not_cover_is_waived_and_stays_so() -> None:
    account, reservation = reserved(3, left=0)
    released = settle(account, {"m": reservation}, news(REJECTED))
    spent = fund(released.account, [ask(charge("other", credits=2))], {}).account
    late = settle(spent, released.changed, news(SENT))
    assert [(entry.kind, entry.amount) for entry in late.entries] == [(Kind.WAIVE, 0)]
    richer, _ = top_up(late.account, 100, reference="r", actor="a")
    assert settle(richer, late.changed, news(DELIVERED)).entries == []


def test_news_of_a_message_without_reservation_books_nothing() -> None:
    settlement = settle(Account("w", balance=5), {}, news(SENT, FAILED, REJECTED))
    assert (settlement.entries, settlement.changed, settlement.account.balance) == ([], {}, 5)


def status(value: Status, code: ReasonCode | None = None) -> StatusUpdated:
    return StatusUpdated(
        event_id=uuid4(),
        occurred_at=NOW,
        observed_at=NOW,
        message_id="m",
        workspace_id="w",
        service=Service.WEBHOOK_INGEST,
        status=value,
        reason=None if code is None else reason(code, "so"),
    )


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (status(Status.ACCEPTED), None),
        (status(Status.SENT), SENT),
        (status(Status.DELIVERED), DELIVERED),
        (status(Status.READ), DELIVERED),
        (status(Status.PLAYED), DELIVERED),
        (status(Status.FAILED), FAILED),
        (status(Status.FAILED, ReasonCode.RECIPIENT_NOT_ON_WHATSAPP), FAILED),
        *((status(Status.FAILED, code), None) for code in sorted(INFERRED)),
    ],
)
def test_only_what_meta_told_moves_money(event: StatusUpdated, told: Told | None) -> None:
    assert told_by(event) is told


def test_credits_are_given_in_order_of_arrival_while_they_last() -> None:
    asks = [ask(charge(name, credits), name) for name, credits in [("a", 2), ("b", 3), ("c", 1), ("d", 1)]]
    funding = fund(Account("w", balance=3), asks, {})
    assert [entry.cause.id for entry in funding.entries] == ["a", "c"]
    assert list(funding.refused) == ["b", "d"]
    assert (funding.account.balance, funding.account.reserved, funding.account.version) == (0, 3, 2)
    assert [entry.balance_after for entry in funding.entries] == [1, 0]


def test_a_refusal_carries_balance_price_and_shortfall() -> None:
    [refusal] = fund(Account("w", balance=1), [ask(charge(credits=5))], {}).refused.values()
    assert refusal.code is ReasonCode.INSUFFICIENT_CREDITS
    assert refusal.recoverable is Recoverable.AFTER_TOPUP
    assert refusal.evidence == {
        "balance": 1,
        "price": 5,
        "shortfall": 4,
        "currency": "credits",
        "scope": {"origin": {"kind": "", "id": None}, "funded": 0, "refused": 1},
    }
    assert refusal.detail.startswith("The balance is 1 credit and this message costs 5 (marketing): 4 short.")


def test_a_refusal_counts_its_campaign_and_no_other() -> None:
    def of(origin: str | None, name: str, credits: int) -> Ask:
        return ask(replace(charge(name, credits), origin_kind="campaign", origin_id=origin))

    before: dict[OriginKey, Tally] = {("campaign", "a"): Tally(7, 2), ("campaign", "b"): Tally(100, 100)}
    asks = [of("a", "1", 2), of("a", "2", 9), of("b", "3", 1), of("a", "4", 1), of("a", "5", 1), of(None, "6", 1)]
    funding = fund(Account("w", balance=4), asks, before)
    scopes = {name: refusal.evidence["scope"] for name, refusal in funding.refused.items()}
    assert scopes == {
        "2": {"origin": {"kind": "campaign", "id": "a"}, "funded": 8, "refused": 3},
        "5": {"origin": {"kind": "campaign", "id": "a"}, "funded": 9, "refused": 4},
        "6": {"origin": {"kind": "campaign", "id": None}, "funded": 0, "refused": 1},
    }
    assert funding.refused["5"].detail.endswith(
        " So far 9 messages of campaign a were funded and 4 refused, this one included."
    )
    told = fund(Account("w"), [of("a", "7", 1)], {("campaign", "a"): Tally(1, 0)}).refused["7"].detail
    assert told.startswith("The balance is 0 credits and")
    assert "1 message of campaign a was funded and 1 refused" in told
    assert funding.tallies == {
        ("campaign", "a"): Tally(2, 2),
        ("campaign", "b"): Tally(1, 0),
        ("campaign", None): Tally(0, 1),
    }


@given(balance=st.integers(0, 20), credits=st.integers(0, 20))
def test_a_message_is_funded_where_all_gates_pass(balance: int, credits: int) -> None:
    passed = all(gate.passed for gate in evaluate(charge(credits=credits).price, balance, ("api", None), Tally()))
    assert passed == (not fund(Account("w", balance=balance), [ask(charge(credits=credits))], {}).refused)


PRICES = price_list(
    [
        PriceRow("marketing", None, 2, NOW - timedelta(days=30)),
        PriceRow("marketing", None, 3, NOW - timedelta(days=1)),
        PriceRow("marketing", None, 9, NOW + timedelta(days=1)),
        PriceRow("marketing", "52", 7, NOW - timedelta(days=20)),
        PriceRow("utility", "52", 8, NOW - timedelta(days=20)),
        PriceRow("service", None, 0, NOW - timedelta(days=20)),
    ]
)


def request(phone: str = "+525512345678", **content: Any) -> SendRequested:
    template: dict[str, Any] = {"type": "template", "template": {"name": "t", "language": {"code": "en_US"}}}
    origin = Origin(kind=OriginKind.API)
    return SendRequested(
        message_id="m", workspace_id="w", to=To(phone=phone), origin=origin, content=content or template
    )


@pytest.mark.parametrize(
    ("category", "calling_code", "at", "credits"),
    [
        ("MARKETING", "49", NOW, 3),
        ("MARKETING", None, NOW, 3),
        ("MARKETING", "49", NOW - timedelta(days=2), 2),
        ("MARKETING", "49", NOW - timedelta(days=40), 1),
        ("MARKETING", "49", NOW + timedelta(days=1), 9),
        ("MARKETING", "52", NOW, 7),
        ("MARKETING", "52", NOW - timedelta(days=25), 2),
        ("UTILITY", "49", NOW, 1),
        ("AUTHENTICATION", "52", NOW, 1),
    ],
)
def test_the_most_specific_then_the_latest_price_counts(
    category: str, calling_code: str | None, at: datetime, credits: int
) -> None:
    quote = price_of(PRICES, request(), category=category, calling_code=calling_code, at=at)
    assert quote.price == Price(credits=credits, category=category.lower(), calling_code=calling_code)
    assert (1 if quote.row is None else quote.row.credits) == credits


@pytest.mark.parametrize("category", [None, "SOMETHING_NEW", "SERVICE_"])
@pytest.mark.parametrize(("calling_code", "dearest", "credits"), [("52", "utility", 8), ("49", "marketing", 3)])
def test_an_unknown_template_costs_the_dearest_category(
    category: str | None, calling_code: str, dearest: str, credits: int
) -> None:
    quote = price_of(PRICES, request(), category=category, calling_code=calling_code, at=NOW)
    assert quote.price == Price(credits=credits, category=dearest, calling_code=calling_code, assumed=True)
    assert quote.row is not None
    assert (quote.row.category, quote.row.credits) == (dearest, credits)


def test_content_that_is_no_template_is_service() -> None:
    text = request(type="text", text={"body": "hi"})
    quote = price_of(PRICES, text, category=None, calling_code="52", at=NOW)
    assert quote == Quote(Price(credits=0, category="service", calling_code="52"), PRICES["service", None][0])


@pytest.mark.parametrize(
    ("country", "calling_code", "found"),
    [
        ("CA", "1", "CA"),
        (None, "1", None),
        (None, "7", None),
        (None, "52", "MX"),
        (None, "800", None),
        (None, None, None),
    ],
)
def test_the_country_is_consents_else_the_codes_only_one(
    country: str | None, calling_code: str | None, found: str | None
) -> None:
    assert country_of(Resolved(country=country, purpose=Purpose.MARKETING), calling_code) == found
    if country is None:
        assert country_of(None, calling_code) == found


@pytest.mark.parametrize(
    ("resolved", "phone", "calling_code"),
    [
        (Resolved(calling_code="44", phone="+525512345678", purpose=Purpose.MARKETING), "x", "44"),
        (Resolved(phone="+525512345678", purpose=Purpose.MARKETING), "+14155550100", "52"),
        (Resolved(purpose=Purpose.MARKETING), "+14155550100", "1"),
        (None, "+380441234567", "380"),
        (None, "5512345678", None),
        (None, "+0", None),
        (None, "+²³", None),
        (None, "+", None),
    ],
)
def test_the_calling_code_is_consents_else_the_numbers(
    resolved: Resolved | None, phone: str, calling_code: str | None
) -> None:
    assert calling_code_of(resolved, request(phone)) == calling_code


def spend(account: Account, credits: int) -> Account:
    booked = adjust(account, -credits, why="test", actor="a")
    assert not isinstance(booked, BelowZero)
    return booked[0]


def test_low_balance_thresholds_are_reached_one_after_the_other_and_once() -> None:
    account, _ = top_up(Account("w"), 100, reference="r", actor="a")
    told: list[int | None] = []
    for step in (79, 1, 9, 1, -15, 15, 10):
        account = spend(account, step)
        told.append(account.low_balance_percent)
    assert told == [None, 20, 20, 10, 10, 10, 0]
    account, _ = top_up(account, 50, reference="r", actor="a")
    assert (account.low_balance_percent, account.last_top_up) == (None, 50)


def test_an_adjustment_never_goes_below_zero() -> None:
    assert adjust(Account("w", balance=5), -6, why="x", actor="a") == BelowZero(5, -6)


@given(told=st.lists(st.sampled_from(Told), max_size=8), repeats=st.integers(1, 2))
def test_neither_order_nor_repetition_changes_what_is_paid(told: list[Told], repeats: int) -> None:
    account, reservation = reserved(3, left=100)
    settlement = settle(account, {"m": reservation}, news(*told * repeats))
    # The balance always covers here; what is waived then is a second recapture, which no message gets.
    waived = Kind.WAIVE in kinds(settlement.entries)
    assert 103 - settlement.account.balance == (3 if verdict_is_paid(set(told)) and not waived else 0)
    assert not waived or {Kind.RECAPTURE, Kind.REFUND} <= settlement.changed["m"].booked


class Books(RuleBasedStateMachine):
    """Any mix of top-ups, adjustments, fundings and news, in any order and repetition: the ledger stays a ledger."""

    def __init__(self) -> None:
        super().__init__()
        self.account = Account("w")
        self.ledger: list[Entry] = []
        self.charges: dict[str, Charge] = {}
        self.tallies: dict[OriginKey, Tally] = {}
        self.told: dict[str, set[Told]] = {}
        self.reached: list[tuple[int, int]] = []
        self.top_ups = 0
        self.asked = 0

    def _take(self, account: Account, entries: Sequence[Entry]) -> None:
        self.reached += [(self.top_ups, alert.percent) for alert in alerts(self.account, entries)]
        self.account = account
        self.ledger += entries
        self.charges |= {entry.charge.message_id: entry.charge for entry in entries if entry.charge is not None}

    @rule(credits=st.integers(1, 20))
    def tops_up(self, credits: int) -> None:
        self.top_ups += 1
        account, entry = top_up(self.account, credits, reference="r", actor="a")
        self._take(account, [entry])

    @rule(credits=st.integers(-20, 20).filter(bool))
    def adjusts(self, credits: int) -> None:
        booked = adjust(self.account, credits, why="w", actor="a")
        if isinstance(booked, BelowZero):
            assert self.account.balance + credits < 0
        else:
            self._take(booked[0], [booked[1]])

    @rule(asked=st.lists(st.tuples(st.integers(0, 7), st.sampled_from(["black-friday", None])), min_size=1, max_size=5))
    def funds(self, asked: list[tuple[int, str | None]]) -> None:
        asks = [
            ask(replace(charge(f"m{self.asked + n}", credits), origin_kind="campaign", origin_id=origin))
            for n, (credits, origin) in enumerate(asked)
        ]
        self.asked += len(asks)
        covered = is_covered(self.account, asks)
        funding = fund(self.account, asks, {} if covered else self.tallies)
        assert not (covered and funding.refused)
        assert len(funding.entries) + len(funding.refused) == len(asks)
        self._take(funding.account, funding.entries)
        for origin, count in funding.tallies.items():
            self.tallies[origin] = self.tallies.get(origin, Tally()).plus(count)

    @rule(data=st.data())
    def is_told(self, data: st.DataObject) -> None:
        if not self.charges:
            return
        item = st.tuples(st.sampled_from(sorted(self.charges)), st.sampled_from(Told))
        told = data.draw(st.lists(item, max_size=6))
        settlement = settle(self.account, self.charges, [News(name, one, Cause("c", one)) for name, one in told])
        self._take(settlement.account, settlement.entries)
        self.charges |= settlement.changed
        for name, one in told:
            self.told.setdefault(name, set()).add(one)

    @invariant()
    def balance_is_the_sum_and_never_negative(self) -> None:
        total = 0
        for version, entry in enumerate(self.ledger, start=1):
            total += entry.amount
            assert entry.balance_after == total >= 0
            assert entry.version == version
        assert self.account.balance == total
        assert self.account.version == len(self.ledger)

    @invariant()
    def each_kind_at_most_once_a_message(self) -> None:
        booked = [(entry.charge.message_id, entry.kind) for entry in self.ledger if entry.charge is not None]
        assert len(booked) == len(set(booked))

    @invariant()
    def reserved_is_what_is_open(self) -> None:
        held = [one.price.credits for one in self.charges.values() if one.booked == {Kind.RESERVE}]
        assert self.account.reserved == sum(held)

    @invariant()
    def what_is_charged_follows_the_reading_rule(self) -> None:
        paid = Counter[str]()
        for entry in self.ledger:
            if entry.charge is not None:
                paid[entry.charge.message_id] -= entry.amount
        for name, one in self.charges.items():
            due = verdict_is_paid(self.told.get(name, set())) and Kind.WAIVE not in one.booked
            assert paid[name] == (one.price.credits if due else 0)
            assert one.is_charged == due

    @invariant()
    def every_message_is_in_the_tally_of_its_origin_once(self) -> None:
        assert sum(tally.funded for tally in self.tallies.values()) == len(self.charges)
        assert sum(tally.funded + tally.refused for tally in self.tallies.values()) == self.asked

    @invariant()
    def each_threshold_is_reached_once_a_top_up(self) -> None:
        assert len(self.reached) == len(set(self.reached))
        since = {percent for top_up, percent in self.reached if top_up == self.top_ups}
        assert self.account.low_balance_percent == min(since, default=None)
        assert since == {percent for percent in (20, 10, 0) if percent >= min(since, default=100)}


TestBooks: Callable[..., Any] = Books.TestCase
Books.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
