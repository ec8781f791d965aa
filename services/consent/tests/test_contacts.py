"""Whose word undoes whose, and that the order of arrival doesn't matter."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from consent.contacts import Book, Change, Key, Mark, Origin, Word, standing
from consent.fields import Fields
from hypothesis import given
from hypothesis import strategies as st
from sendwhy.events import MarketingState

S = MarketingState
T0 = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)
NOW = datetime(2026, 11, 22, tzinfo=UTC)
PHONE, ID = "+525512345678", "shopify:7712"


def after(minutes: float) -> datetime:
    return T0 + timedelta(minutes=minutes)


def own(state: MarketingState, minutes: float, phone: str = PHONE, cause: str = "") -> Change:
    at = after(minutes).replace(microsecond=0)
    word = Word(state, at, "stop_reply", cause or f"wamid.{state}.{minutes}", own=True)
    return Change("w", word.proof or "", at, "meta", Origin.PERSON, None, Fields(phone=phone), word, firm=True)


def operator(state: MarketingState, minutes: float) -> Change:
    word = Word(state, after(minutes), "operator", "form 17")
    return Change("w", f"op.{state}.{minutes}", word.at, "op", Origin.OPERATOR, ID, Fields(), word, firm=True)


def told(origin: Origin, state: MarketingState | None, minutes: float, contact_id: str = ID) -> Change:
    word = Word(state, after(minutes), origin.value) if state else None
    cause = f"{origin}.{state}.{minutes}.{contact_id}"
    return Change("w", cause, after(minutes), "x", origin, contact_id, Fields(phone=PHONE), word)


def run(changes: Sequence[Change], book: Book | None = None) -> Book:
    book = book or Book(NOW)
    for change in changes:
        book.apply(change)
    book.changed()
    return book


def state_of(book: Book, contact_id: str = ID) -> MarketingState:
    return book.contacts[Key("w", contact_id)].word.state


PUT, IMPORT, SYNC, OPERATOR = Origin.PUT, Origin.IMPORT, Origin.SYNC, Origin.OPERATOR
SUB, UNSUB, NOT = S.SUBSCRIBED, S.UNSUBSCRIBED, S.NOT_SUBSCRIBED
RULES = [
    ("nobody said anything", [told(PUT, None, 0)], S.UNKNOWN),
    ("an import subscribes", [told(IMPORT, SUB, 0)], SUB),
    ("the latest telling holds", [told(IMPORT, SUB, 0), told(SYNC, NOT, 1)], NOT),
    ("STOP unsubscribes", [told(IMPORT, SUB, 0), own(UNSUB, 1)], UNSUB),
    ("an import doesn't undo STOP", [own(UNSUB, 1), told(IMPORT, SUB, 2)], UNSUB),
    ("a PUT doesn't undo STOP", [told(PUT, SUB, 0), own(UNSUB, 1), told(PUT, SUB, 2)], UNSUB),
    ("a sync doesn't undo STOP", [told(PUT, SUB, 0), own(UNSUB, 1), told(SYNC, SUB, 2)], UNSUB),
    ("a later START does", [told(PUT, SUB, 0), own(UNSUB, 1), own(SUB, 2)], SUB),
    ("an old START doesn't", [told(PUT, SUB, 0), own(UNSUB, 2), own(SUB, 1)], UNSUB),
    ("in one second STOP wins", [told(PUT, SUB, 0), own(UNSUB, 1), own(SUB, 1)], UNSUB),
    ("whichever comes first", [told(PUT, SUB, 0), own(SUB, 1), own(UNSUB, 1)], UNSUB),
    ("a START of the next second does", [told(PUT, SUB, 0), own(UNSUB, 1), own(SUB, 1 + 1 / 60)], SUB),
    ("an operator's word without proof doesn't", [told(PUT, SUB, 0), own(UNSUB, 1), told(OPERATOR, SUB, 2)], UNSUB),
    ("an operator's later proof undoes STOP", [told(PUT, SUB, 0), own(UNSUB, 1), operator(SUB, 2)], SUB),
    ("an operator's older proof doesn't", [told(PUT, SUB, 0), own(UNSUB, 2), operator(SUB, 1)], UNSUB),
    ("nor one of the same second", [told(PUT, SUB, 0), own(UNSUB, 1), operator(SUB, 1.01)], UNSUB),
    ("an operator's no is firm too", [told(PUT, SUB, 0), operator(UNSUB, 1), told(SYNC, SUB, 2)], UNSUB),
    ("an operator may change their mind", [told(PUT, SUB, 0), operator(UNSUB, 1), operator(SUB, 1.001)], SUB),
    ("a sync that never asked doesn't undo START", [told(PUT, NOT, 0), own(SUB, 1), told(SYNC, NOT, 2)], SUB),
    ("a plain no in the shop undoes START", [told(PUT, NOT, 0), own(SUB, 1), told(SYNC, UNSUB, 2)], UNSUB),
]


@pytest.mark.parametrize(("rule", "changes", "state"), RULES, ids=[rule for rule, _, _ in RULES])
def test_whose_word_undoes_whose(rule: str, changes: list[Change], state: MarketingState) -> None:
    assert state_of(run(changes)) == state


def test_a_stop_from_an_unknown_phone_is_remembered_for_whoever_comes_with_it() -> None:
    book = run([own(UNSUB, 1), told(IMPORT, SUB, 5)])
    assert state_of(book) == UNSUB
    assert len(book.contacts) == 2


def test_a_stop_reaches_every_contact_of_that_phone() -> None:
    book = run([told(IMPORT, SUB, 0), told(IMPORT, SUB, 0, "shopify:8"), own(UNSUB, 1)])
    assert (state_of(book), state_of(book, "shopify:8")) == (UNSUB, UNSUB)
    assert len(book.contacts) == 2


def test_versions_grow_with_every_change_and_stay_with_none() -> None:
    book = run([told(PUT, SUB, 0)])
    first = book.contacts[Key("w", ID)]
    again = Book(NOW + timedelta(days=1))
    again.load([first], book.memories)
    run([own(UNSUB, 1)], again)
    second = again.contacts[Key("w", ID)]
    third = Book(NOW + timedelta(days=2))
    third.load([second], again.memories)
    run([own(UNSUB, 1)], third)
    assert (first.version, second.version, third.contacts[Key("w", ID)].version) == (1, 2, 2)
    assert third.events() == again.events()


def test_older_fields_of_a_shop_dont_overwrite_newer_ones() -> None:
    new = replace(told(SYNC, None, 5), fields=Fields(phone="+12025550123"))
    assert run([new, told(SYNC, None, 1)]).contacts[Key("w", ID)].fields.phone == "+12025550123"


def test_a_new_phone_comes_without_the_old_ones_codes() -> None:
    old = replace(told(SYNC, None, 1), fields=Fields("5512345678", "MX", "52"))
    new = replace(told(SYNC, None, 2), fields=Fields(phone="+12025550123"))
    fields = run([old, new]).contacts[Key("w", ID)].fields
    assert (fields.phone, fields.calling_code, fields.e164) == ("+12025550123", None, "+12025550123")


ERASE = Change("w", "erase", after(10), "admin", Origin.ERASURE, ID)


def test_erasure_keeps_the_stop_and_refuses_a_reimport() -> None:
    book = run([told(PUT, SUB, 0), own(UNSUB, 1), ERASE])
    assert not book.contacts
    assert book.apply(told(IMPORT, SUB, 20)) is not None
    assert book.apply(told(IMPORT, SUB, 20, "shopify:other")) is not None
    assert book.apply(told(SYNC, SUB, 20)) is not None
    assert book.apply(own(UNSUB, 1)) is not None  # a replay
    assert not book.contacts
    assert book.apply(told(PUT, SUB, 21)) is None
    assert state_of(book) == UNSUB


SAID_YES = [own(SUB, 1), operator(SUB, 1)]


@pytest.mark.parametrize("yes", SAID_YES, ids=[change.cause for change in SAID_YES])
def test_a_yes_ends_with_an_erasure_also_where_it_is_heard_later(yes: Change) -> None:
    """Who comes back is a new acquaintance, and has agreed to nothing yet."""
    book = run([told(PUT, NOT, 0), yes, ERASE, own(SUB, 2), told(PUT, None, 21)])
    assert state_of(book) == S.UNKNOWN
    run([told(PUT, None, 22, "shopify:9")], book)
    assert state_of(book, "shopify:9") == S.UNKNOWN
    run([own(SUB, 30)], book)
    assert (state_of(book), state_of(book, "shopify:9")) == (SUB, SUB)


def test_a_contact_that_comes_back_continues_its_versions() -> None:
    book = run([told(PUT, SUB, 0)])
    version = book.contacts[Key("w", ID)].version
    later = Book(NOW)
    later.load(book.contacts.values(), book.memories)
    run([ERASE], later)
    assert later.erased[Key("w", ID)].version == version + 1
    last = Book(NOW)
    last.load([], later.memories)
    run([told(PUT, SUB, 30)], last)
    assert last.contacts[Key("w", ID)].version == version + 2


def test_a_repeated_erasure_tells_the_same_again() -> None:
    book = run([told(PUT, SUB, 0), ERASE])
    again = Book(NOW)
    again.load([], book.memories)
    run([ERASE], again)
    assert again.erased[Key("w", ID)].to_event() == book.erased[Key("w", ID)].to_event()


words = st.builds(
    lambda state, minutes, source, is_own: Word(state, after(minutes).replace(microsecond=0), source, None, is_own),
    st.sampled_from(S),
    st.integers(0, 5),
    st.sampled_from(["a", "b"]),
    st.booleans(),
)
changes = st.one_of(
    st.builds(own, st.sampled_from([SUB, UNSUB]), st.integers(0, 5)),
    st.builds(operator, st.sampled_from([SUB, UNSUB]), st.integers(0, 5)),
    st.builds(told, st.sampled_from([PUT, IMPORT, SYNC]), st.sampled_from(S), st.integers(0, 5)),
)


@given(st.lists(changes, max_size=7).flatmap(lambda drawn: st.tuples(st.just(drawn), st.permutations(drawn))))
def test_any_order_ends_in_the_same_state(orders: tuple[list[Change], list[Change]]) -> None:
    known = told(PUT, None, 0)
    one, other = run([known, *orders[0]]), run([known, *orders[1]])
    assert [contact.word for contact in one.contacts.values()] == [contact.word for contact in other.contacts.values()]
    assert {mark: memory.word for mark, memory in one.memories.items()} == {
        mark: memory.word for mark, memory in other.memories.items()
    }


@given(st.lists(changes, max_size=7))
def test_a_batch_is_as_good_as_one_by_one(drawn: list[Change]) -> None:
    together = run([told(PUT, None, 0), *drawn])
    one_by_one = Book(NOW)
    for change in [told(PUT, None, 0), *drawn]:
        book = Book(NOW)
        book.load(one_by_one.contacts.values(), one_by_one.memories)
        one_by_one = run([change], book)
    assert {key: contact.word for key, contact in together.contacts.items()} == {
        key: contact.word for key, contact in one_by_one.contacts.items()
    }


@given(words, words)
def test_a_firm_no_only_yields_to_firm_words(firm: Word, said: Word) -> None:
    stood = standing(firm, said)
    assert firm.state != UNSUB or stood == firm


def test_marks_reach_the_generated_contact() -> None:
    marks = Book(NOW).marks_for([own(UNSUB, 1)])
    assert {mark.kind for mark in marks} == {"phone", "contact"}
    assert Mark("w", "phone", "525512345678") in marks
