"""What a row of an import changes: nothing where it says what already stands."""

from collections.abc import Mapping
from uuid import uuid4

import pytest
from consent.contacts import Book, Contact, Key, Person, Word
from consent.fields import Fields
from consent.import_changes import Cause, apply_to, change_of, marks_of_refused, name_of, news
from consent.import_columns import ImportRow
from consent.import_csv import NumberedRow, RefusedRow
from consent_desk import NOON, PHONE, at
from hypothesis import given
from hypothesis import strategies as st
from sendwhy.events import MarketingState

YES, NO, STOPPED = MarketingState.SUBSCRIBED, MarketingState.NOT_SUBSCRIBED, MarketingState.UNSUBSCRIBED
CAUSE = Cause("acme", b"\x01" * 32, "tester")
IMPORTED = Word(YES, NOON, "import", "form 1")
FIRM_NO, FIRM_YES = Word(STOPPED, at(1), "stop_reply", own=True), Word(YES, at(1), "start_reply", own=True)


def row(number: int, cells: Mapping[str, str] | None = None) -> NumberedRow:
    return NumberedRow(number, (), ImportRow.model_validate({"contact_id": "c-1"} | dict(cells or {})))


def contact(*, firm: Word | None = None, told: Word | None = IMPORTED, name: str | None = "Inés") -> Contact:
    fields = Fields(PHONE, None, None, None, name)
    key, uid = Key("acme", "c-1"), uuid4()
    return Contact(key, fields, firm, told, 3, NOON, NOON, NOON, uid, Person(uid, firm, told))


SAME = {"phone": PHONE, "name": "Inés", "marketing_state": "SUBSCRIBED", "proof": "form 1"}
CASES = [
    ("a new contact", None, SAME, True, True),
    ("all the same", contact(), SAME, False, False),
    ("fewer cells, none of them new", contact(), {"name": "Inés"}, False, False),
    ("only the id", contact(), {}, False, False),
    ("another name", contact(), SAME | {"name": "Ines"}, True, False),
    ("another state", contact(), SAME | {"marketing_state": "UNSUBSCRIBED"}, False, True),
    ("another proof", contact(), SAME | {"proof": "form 2"}, False, True),
    ("another source", contact(), SAME | {"source": "checkout"}, False, True),
    ("told otherwise in between", contact(told=Word(NO, at(2), "api")), SAME, False, True),
    ("never told of consent", contact(told=None), SAME, False, True),
    ("a firm no, heard already", contact(firm=FIRM_NO), SAME, False, False),
    ("a firm yes after the same no", contact(firm=FIRM_YES, told=Word(STOPPED, NOON, "import")),
     {"marketing_state": "UNSUBSCRIBED"}, False, True),
    ("no yes heard after the shop's no undid a firm one", contact(firm=FIRM_YES, told=Word(STOPPED, at(2), "shopify")),
     {"marketing_state": "NOT_SUBSCRIBED"}, False, False),
    ("no yes heard after the shop's no alone", contact(told=Word(STOPPED, at(2), "shopify")),
     {"marketing_state": "NOT_SUBSCRIBED"}, False, True),
]  # fmt: skip


@pytest.mark.parametrize(
    ("stands", "cells", "has_fields", "has_word"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_only_news_is_applied(stands: Contact | None, cells: dict[str, str], has_fields: bool, has_word: bool) -> None:
    new = news(change_of(row(2, cells), CAUSE, at(60)), stands)
    told = (False, False) if new is None else (new.fields != Fields(), new.word is not None)
    assert told == (has_fields, has_word)


def rows(*, share_phones: bool) -> st.SearchStrategy[list[NumberedRow]]:
    cells = st.fixed_dictionaries(
        {"contact_id": st.sampled_from(["c-1", "c-2", "c-3"])},
        optional={
            "phone": st.sampled_from([PHONE, "+525587654321"]),
            "name": st.sampled_from(["Ana", "Bo"]),
            "marketing_state": st.sampled_from([*MarketingState]),
            "proof": st.sampled_from(["form 1", "form 2"]),
        },
    )

    def row_of(number: int, told: dict[str, str]) -> NumberedRow:
        if "phone" in told and not share_phones:
            told = told | {"phone": told["phone"][:-1] + told["contact_id"][-1]}
        return row(number, told)

    return st.lists(cells, max_size=8).map(lambda all_: [row_of(number, told) for number, told in enumerate(all_, 2)])


@given(rows(share_phones=False))
def test_the_last_row_on_a_contact_wins(batch: list[NumberedRow]) -> None:
    book = Book(NOON)
    apply_to(book, batch, CAUSE, NOON)
    for key, stands in book.contacts.items():
        own = [one.row for one in batch if one.row.contact_id == key.contact_id]
        assert stands.fields.name == next((one.name for one in reversed(own) if one.name), None)
        assert stands.fields.phone == next((one.phone for one in reversed(own) if one.phone), None)
        state = next((one.marketing_state for one in reversed(own) if one.marketing_state), None)
        assert stands.word.state == (state or MarketingState.UNKNOWN)


@given(rows(share_phones=True))
def test_a_second_time_nothing_is_written_that_was_not_undone_by_the_file_itself(batch: list[NumberedRow]) -> None:
    last = list({one.row.contact_id: one for one in batch}.values())
    first = Book(NOON)
    apply_to(first, last, CAUSE, NOON)
    first.changed()
    again = Book(at(60))
    again.load(first.contacts.values(), {})
    outcome = apply_to(again, last, CAUSE, at(60))
    assert (outcome.unchanged, again.changed(), len(again.history)) == (len(last), [], 0)


def test_the_cause_is_the_files_the_rows_and_the_contacts_version() -> None:
    one = change_of(row(7), CAUSE, NOON, 3)
    assert one.cause == change_of(row(7), CAUSE, at(9), 3).cause == f"import/{'01' * 16}/7/3"
    others = [change_of(row(8), CAUSE, NOON, 3), change_of(row(7), Cause("acme", b"\x02" * 32, "t"), NOON, 3)]
    assert one.cause not in [other.cause for other in (*others, change_of(row(7), CAUSE, NOON, 4))]


@pytest.mark.parametrize(
    ("told", "marks"),
    [
        ({"contact_id": "c-1", "phone": PHONE}, [("contact", "c-1"), ("phone", "525512345678")]),
        ({"phone": "55 1234 5678", "phone_calling_code": "52"}, [("phone", "525512345678")]),
        ({"contact_id": "c" * 5000, "phone": "5" * 5000}, []),
        ({"phone": "12"}, []),
        ({}, []),
    ],
)
def test_whom_a_refused_row_speaks_of(told: dict[str, str], marks: list[tuple[str, str]]) -> None:
    found = marks_of_refused("acme", RefusedRow(2, (), "", "", told))
    assert [(mark.kind, mark.value) for mark in found] == marks


def test_names_of_ids_fit_a_databases_integer() -> None:
    named = {name_of(f"c-{i}") for i in range(1000)}
    assert len(named) == 1000
    assert all(-(2**63) <= name < 2**63 for name in named)
