"""Records that turn out to be one person, those that turn out not to be, and what their phones went through."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from consent.contacts import Book, Change, Contact, Entry, EntryKind, Key, Mark, Memory, Origin, Word, latest_told
from consent.fields import FieldChange, Fields
from consent.phones import Ground
from consent.suggestions import judge
from hypothesis import given, settings
from hypothesis import strategies as st
from sendwhy.events import MarketingState

T0 = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)
SUB, UNSUB, NOT = MarketingState.SUBSCRIBED, MarketingState.UNSUBSCRIBED, MarketingState.NOT_SUBSCRIBED
P, Q, USER = "+525512345678", "+12025550123", "MX.118"
SHOP, CRM = "shopify:7712", "crm:55"


def after(minutes: float) -> datetime:
    return T0 + timedelta(minutes=minutes)


def told(contact_id: str, minutes: float, state: MarketingState | None = None, origin: Origin = Origin.SYNC) -> Change:
    word = Word(state, after(minutes), origin) if state else None
    return Change(
        "w", f"{origin}/{contact_id}/{minutes}/{state}", after(minutes), "shop", origin, contact_id, word=word
    )


def put(contact_id: str, minutes: float, state: MarketingState | None = None, **fields: object) -> Change:
    change = told(contact_id, minutes, state, Origin.PUT)
    return replace(change, by="alice", fields=Fields(**fields))  # type: ignore[arg-type]


def sync(contact_id: str, minutes: float, state: MarketingState | None = None, **fields: object) -> Change:
    return replace(told(contact_id, minutes, state), fields=Fields(**fields))  # type: ignore[arg-type]


def said(state: MarketingState, minutes: float, phone: str | None = None, user: str | None = None) -> Change:
    word = Word(state, after(minutes), "stop_reply", f"wamid.{state}.{minutes}.{phone}.{user}", own=True)
    fields = Fields(phone=phone, user_id=user)
    return Change("w", word.proof or "", after(minutes), "meta", Origin.PERSON, None, fields, word, firm=True)


def message(minutes: float, phone: str = P, user: str = USER) -> Change:
    fields = Fields(phone=phone, user_id=user)
    return Change("w", f"wamid.{minutes}", after(minutes), "meta", Origin.LINK, None, fields)


def run(*changes: Change, book: Book | None = None) -> Book:
    """One batch for each change, as if every one came alone."""
    book = book or Book(after(-1))
    for change in changes:
        following = Book(max(change.at, book.now))
        following.load(book.contacts.values(), book.memories)
        following.history.update(book.history)
        following.apply(change)
        following.changed()
        book = following
    return book


def at(book: Book, contact_id: str) -> Contact:
    return book.contacts[Key("w", contact_id)]


def state(book: Book, contact_id: str) -> MarketingState:
    return at(book, contact_id).word.state


def persons(book: Book) -> int:
    return len({contact.person.id for contact in book.contacts.values()})


def entries(book: Book, contact_id: str, kind: EntryKind) -> list[Entry]:
    return [entry for entry in book.history.values() if entry.key.contact_id == contact_id and entry.kind == kind]


SAME_PERSON = [
    ("the same phone", [put(SHOP, 0, phone=P), put(CRM, 1, phone="+52 1 55 1234 5678")]),
    ("the same user id", [put(SHOP, 0, user_id=USER), put(CRM, 1, phone=P, user_id=USER)]),
    ("an external id that is a contact", [put(SHOP, 0, phone=P), put(CRM, 1, external_ids=(SHOP,))]),
    ("the same external id", [put(SHOP, 0, external_ids=("erp:1",)), put(CRM, 1, external_ids=("erp:1",))]),
    ("a message with phone and user id", [put(SHOP, 0, phone=P), put(CRM, 1, user_id=USER), message(2)]),
    ("a phone corrected by a sync", [put(SHOP, 0, phone=P), sync(CRM, 1, phone=Q), sync(CRM, 2, phone=P)]),
]


@pytest.mark.parametrize(("why", "changes"), SAME_PERSON, ids=[why for why, _ in SAME_PERSON])
def test_records_that_share_an_identity_are_one_person(why: str, changes: Sequence[Change]) -> None:
    book = run(*changes)
    assert persons(book) == 1
    assert at(book, CRM).person.id == at(book, SHOP).uid, "the older one's id survives"
    assert len(entries(book, CRM, EntryKind.MERGED)) == 1
    assert entries(book, SHOP, EntryKind.MERGED)[0].others == (CRM,)


def test_records_that_share_nothing_are_two() -> None:
    book = run(put(SHOP, 0, phone="+551134567890"), put(CRM, 1, phone="+5511934567890"), put("c", 2))
    assert persons(book) == 3


def test_a_merger_says_by_what() -> None:
    book = run(put(SHOP, 0, phone=P), put(CRM, 1, user_id=USER), message(2))
    (merged,) = entries(book, CRM, EntryKind.MERGED)
    assert merged.note == "a message carried both the phone number and the WhatsApp user id"
    assert merged.cause.startswith("wamid.2/")
    (filled,) = entries(book, CRM, EntryKind.PHONE)
    assert (filled.cause, filled.fields) == ("wamid.2", (FieldChange("phone", None, P),))


def test_the_latest_telling_of_all_records_holds() -> None:
    book = run(put(SHOP, 0, SUB, phone=P), put(CRM, 1, NOT, phone=P))
    assert (state(book, SHOP), state(book, CRM)) == (NOT, NOT)
    book = run(sync(SHOP, 2, SUB, phone=P), book=book)
    assert (state(book, SHOP), state(book, CRM)) == (SUB, SUB)
    assert [entry.stood.state for entry in entries(book, CRM, EntryKind.CONSENT)] == [NOT, SUB]


def test_a_list_that_never_heard_a_yes_takes_back_no_no_of_another_one() -> None:
    """Else two noes would bring back the yes that the first of them undid."""
    book = run(put(SHOP, 0, NOT, phone=P), said(SUB, 1, phone=P), sync(SHOP, 2, UNSUB, phone=P))
    assert state(book, SHOP) == UNSUB
    book = run(put(CRM, 3, NOT, phone=P), sync("erp:1", 4, MarketingState.UNKNOWN, phone=P), book=book)
    assert (state(book, SHOP), state(book, CRM), state(book, "erp:1")) == (UNSUB, UNSUB, UNSUB)
    book = run(sync("erp:1", 5, SUB, phone=P), book=book)
    assert (state(book, SHOP), state(book, CRM)) == (SUB, SUB)


def test_a_state_that_another_record_changed_gets_a_new_version() -> None:
    before = run(put(SHOP, 0, SUB, phone=P))
    book = run(put(CRM, 1, UNSUB, phone=P), book=before)
    assert at(book, SHOP).version > at(before, SHOP).version
    assert Key("w", SHOP) in book.touched, "what waits under its id is recalled"


def test_a_stop_under_a_user_id_alone_reaches_the_record_with_the_phone() -> None:
    book = run(put(SHOP, 0, SUB, phone=P), message(1), said(UNSUB, 2, user=USER))
    assert (state(book, SHOP), len(book.contacts)) == (UNSUB, 1)


def test_a_stop_of_a_stranger_joins_when_a_message_carries_both() -> None:
    book = run(put(SHOP, 0, SUB, phone=P), said(UNSUB, 1, user=USER))
    assert (state(book, SHOP), len(book.contacts)) == (SUB, 2)
    book = run(message(2), book=book)
    assert (state(book, SHOP), persons(book)) == (UNSUB, 1)


def test_who_wrote_before_they_were_a_contact_is_known_by_their_user_id_too() -> None:
    book = run(message(0), put(SHOP, 1, SUB, phone=P), said(UNSUB, 2, user=USER))
    assert (state(book, SHOP), len(book.contacts)) == (UNSUB, 1)
    book = run(message(0), sync(SHOP, 1, SUB, phone=Q), sync(SHOP, 2, phone=P), said(UNSUB, 3, user=USER))
    assert state(book, SHOP) == UNSUB


def test_a_user_id_that_was_learnt_by_a_number_goes_with_it() -> None:
    book = run(put(SHOP, 0, SUB, phone=P), put(CRM, 0, SUB, phone=P), message(1))
    assert {at(book, name).fields.user_id for name in (SHOP, CRM)} == {USER}
    book = run(sync(SHOP, 2, phone=Q), book=book)
    assert (at(book, SHOP).fields.user_id, at(book, CRM).fields.user_id, persons(book)) == (None, USER, 2)
    book = run(said(UNSUB, 3, user=USER), message(4, Q, "US.7"), book=book)
    assert (state(book, SHOP), state(book, CRM), at(book, SHOP).fields.user_id) == (SUB, UNSUB, "US.7")
    assert at(run(sync(SHOP, 5, phone=P), book=book), SHOP).fields.user_id == USER


@pytest.mark.parametrize(
    ("given", "learnt", "left"),
    [
        ({}, message(1), None),
        ({"user_id": "US.7"}, message(1), "US.7"),
        ({"user_id": USER}, message(1, Q), USER),
        ({}, said(SUB, 1, P, USER), None),
    ],
)
def test_a_number_that_is_taken_away_takes_its_own_user_id_along(
    given: dict[str, str], learnt: Change, left: str | None
) -> None:
    without = replace(put(SHOP, 2), kept=frozenset({"user_id"}))
    book = run(put(SHOP, 0, SUB, phone=P, **given), learnt, without)
    assert (at(book, SHOP).fields.phone, at(book, SHOP).fields.user_id) == (None, left)
    assert book.memories.get(Mark("w", "phone", P.removeprefix("+")), Memory()).user_id is None


def test_a_user_id_that_is_given_with_another_number_stays() -> None:
    book = run(put(SHOP, 0, SUB, phone=P), message(1), put(SHOP, 2, phone=Q, user_id=USER))
    assert at(book, SHOP).fields.user_id == USER


def test_what_was_told_before_an_erasure_brings_no_user_id_back() -> None:
    erase = Change("w", "erase", after(2), "admin", Origin.ERASURE, SHOP)
    book = run(put(SHOP, 0, phone=P), message(0), erase, put(SHOP, 3, phone=P), message(1), message(2))
    assert at(book, SHOP).fields.user_id is None
    assert {memory.user_id for memory in book.memories.values()} == {None}
    assert at(run(message(4), book=book), SHOP).fields.user_id == USER


def test_nothing_is_noted_of_somebody_erased() -> None:
    erase = Change("w", "erase", after(1), "admin", Origin.ERASURE, SHOP)
    book = run(message(0), put(SHOP, 0, phone=P), erase, message(2))
    assert {memory.user_id for memory in book.memories.values()} == {None}


def test_a_corrected_phone_leaves_without_the_other_ones_consent() -> None:
    book = run(put(SHOP, 0, NOT, phone=P), put(CRM, 1, SUB, phone=P))
    assert state(book, SHOP) == SUB
    book = run(sync(SHOP, 2, phone=Q), book=book)
    assert (state(book, SHOP), state(book, CRM), persons(book)) == (NOT, SUB, 2)
    (parted,) = entries(book, SHOP, EntryKind.PARTED)
    assert parted.others == (CRM,)
    assert len(entries(book, CRM, EntryKind.PARTED)) == 1


def test_a_start_of_the_other_one_doesnt_go_along_either() -> None:
    linked = [put(SHOP, 0, NOT, phone=P), put(CRM, 1, NOT, phone=Q, external_ids=(SHOP,)), said(SUB, 2, phone=P)]
    book = run(*linked)
    assert state(book, CRM) == SUB
    book = run(put(CRM, 3, phone=Q), book=book)
    assert (state(book, SHOP), state(book, CRM)) == (SUB, NOT)


def test_ones_own_start_and_stop_go_along_to_a_new_number() -> None:
    book = run(put(SHOP, 0, NOT, phone=P), said(SUB, 1, phone=P), sync(SHOP, 2, phone=Q))
    assert state(book, SHOP) == SUB
    book = run(put(SHOP, 0, SUB, phone=P), said(UNSUB, 1, phone=P), sync(SHOP, 2, SUB, phone=Q))
    assert state(book, SHOP) == UNSUB


def test_a_stop_stays_with_every_record_that_it_reached() -> None:
    book = run(said(UNSUB, 0, phone=P), put(SHOP, 1, SUB, phone=P), sync(SHOP, 2, SUB, phone=Q))
    assert state(book, SHOP) == UNSUB


def test_those_who_stay_behind_may_fall_apart() -> None:
    book = run(put("crm:1", 0, SUB), put("crm:2", 1, NOT), put(SHOP, 2, external_ids=("crm:1", "crm:2")))
    assert (persons(book), state(book, "crm:1")) == (1, NOT)
    book = run(put(SHOP, 3), book=book)
    assert (persons(book), state(book, "crm:1"), state(book, "crm:2")) == (3, SUB, NOT)


WRONG_NUMBERS = [sync(CRM, 3, phone=P), put(CRM, 3, phone=P), replace(sync(CRM, 3, phone=P), origin=Origin.IMPORT)]


@pytest.mark.parametrize("wrong", WRONG_NUMBERS, ids=[change.origin for change in WRONG_NUMBERS])
def test_a_list_that_makes_two_people_one_undoes_nobodys_stop(wrong: Change) -> None:
    apart = [put(SHOP, 0, SUB, phone=P), put(CRM, 0, SUB, phone=Q), said(UNSUB, 1, phone=P), said(SUB, 2, phone=Q)]
    book = run(*apart, wrong)
    assert (persons(book), state(book, SHOP), state(book, CRM)) == (1, UNSUB, UNSUB)
    book = run(put("new", 4, SUB, phone=P), book=book)
    assert state(book, "new") == UNSUB
    book = run(sync(CRM, 5, phone=Q), book=book)
    assert (state(book, SHOP), state(book, CRM)) == (UNSUB, UNSUB), "a no stays with every record that it reached"
    book = run(said(SUB, 6, phone=P), said(SUB, 7, phone=Q), book=book)
    assert (state(book, SHOP), state(book, "new"), state(book, CRM)) == (SUB, SUB, SUB)


def test_a_stop_of_nobodys_contact_is_not_undone_by_a_list() -> None:
    book = run(put(CRM, 0, SUB, phone=Q), said(SUB, 2, phone=Q), said(UNSUB, 1, phone=P))
    (generated,) = [key.contact_id for key in book.contacts if key.contact_id != CRM]
    book = run(Change("w", "erase", after(3), "admin", Origin.ERASURE, generated), book=book)
    book = run(put(CRM, 4, SUB, phone=P), book=book)
    assert state(book, CRM) == UNSUB


def test_meta_knows_that_two_are_one_and_then_their_later_word_counts() -> None:
    book = run(put(SHOP, 0, SUB, phone=P), said(UNSUB, 1, phone=P), put(CRM, 0, user_id=USER), said(SUB, 2, user=USER))
    book = run(message(3), book=book)
    assert (persons(book), state(book, SHOP), state(book, CRM)) == (1, SUB, SUB)


def test_a_person_is_erased_with_all_their_records() -> None:
    book = run(put(SHOP, 0, SUB, phone=P), put(CRM, 1, NOT, phone=P), put("c", 1, phone=Q))
    book = run(Change("w", "erase", after(2), "admin", Origin.ERASURE, CRM), book=book)
    assert {key.contact_id for key in book.contacts} == {"c"}


def test_a_customer_that_the_shop_deletes_leaves_the_others_one_person() -> None:
    book = run(put(SHOP, 0, SUB, phone=P), put(CRM, 1, NOT, phone=P), put("erp:1", 1, phone=P))
    book = run(Change("w", "delete", after(2), "shop", Origin.DELETED, SHOP), book=book)
    assert (persons(book), state(book, CRM), at(book, CRM).person.id) == (1, NOT, at(book, CRM).uid)
    book = run(sync("later", 3, SUB, phone=P), book=book)
    assert at(book, "later").person.id == at(book, CRM).uid, "the phone is in use, so nobody was erased by it"


@pytest.mark.parametrize("origin", [Origin.IMPORT, Origin.SYNC])
def test_an_erased_persons_number_comes_back_on_no_other_record(origin: Origin) -> None:
    book = run(put(SHOP, 0, SUB, phone=P), put(CRM, 0, phone=Q))
    book = run(Change("w", "erase", after(1), "admin", Origin.ERASURE, SHOP), book=book)
    refused = Book(after(2))
    refused.load(book.contacts.values(), book.memories)
    assert "erased" in (refused.apply(replace(sync(CRM, 2, phone=P), origin=origin)) or "")
    assert at(refused, CRM).fields.phone == Q


# --- the phone's own history ---


def test_a_correction_by_hand_that_a_sync_overwrote_is_shown_as_such() -> None:
    book = run(sync(SHOP, 0, phone=P), put(SHOP, 1, phone=Q), sync(SHOP, 2, phone=P))
    first, fixed, overwritten = entries(book, SHOP, EntryKind.PHONE)
    assert (first.by, first.fields, first.overwrote) == ("shop", (FieldChange("phone", None, P),), None)
    assert (fixed.by, fixed.fields, fixed.overwrote) == ("alice", (FieldChange("phone", P, Q),), None)
    assert overwritten.fields == (FieldChange("phone", Q, P),)
    assert overwritten.overwrote is not None
    assert (overwritten.overwrote.by, overwritten.overwrote.at) == ("alice", after(1))


def test_only_another_number_overwrites_a_correction() -> None:
    book = run(sync(SHOP, 0, phone=P), put(SHOP, 1, phone=Q), sync(SHOP, 2, phone=Q, country_code="US"))
    assert [entry.overwrote for entry in entries(book, SHOP, EntryKind.PHONE)] == [None, None, None]
    book = run(put(SHOP, 3, phone=P), sync(SHOP, 0.5, phone=Q), book=book)
    assert at(book, SHOP).fields.phone == P, "a sync that is older than the correction"


def test_a_put_says_nothing_of_what_it_keeps() -> None:
    first = put(SHOP, 0, phone=P, user_id=USER, external_ids=(CRM,), name="Inés")
    again = replace(put(SHOP, 1, phone=P), kept=frozenset({"user_id", "external_ids"}))
    fields = at(run(first, again), SHOP).fields
    assert (fields.user_id, fields.external_ids, fields.name) == (USER, (CRM,), None)


def test_an_accepted_calling_code_outlives_a_sync_of_the_same_phone() -> None:
    national = sync(SHOP, 0, phone="5512345678", address_country="MX")
    accepted = Change("w", "s", after(1), "alice", Origin.SUGGESTION, SHOP, Fields(calling_code="52"))
    book = run(national, accepted, replace(national, at=after(2), cause="again"))
    assert at(book, SHOP).fields.e164 == P
    book = run(sync(SHOP, 3, phone="5587654321", address_country="MX"), book=book)
    assert at(book, SHOP).fields.e164 is None
    assert entries(book, SHOP, EntryKind.PHONE)[-1].overwrote is not None


NATIONAL = at(run(sync(SHOP, 0, phone="5512345678", address_country="MX")), SHOP)
READABLE = at(run(sync(SHOP, 0, phone=P)), SHOP)
OPEN = at(run(sync(SHOP, 0, phone="525512345678")), SHOP)


@pytest.mark.parametrize(
    ("contact", "shop", "phone", "ground", "fields", "refusal"),
    [
        (NATIONAL, None, P, Ground.ADDRESS_COUNTRY, Fields(calling_code="52"), None),
        (NATIONAL, "US", P, Ground.ADDRESS_COUNTRY, Fields(calling_code="52"), None),
        (NATIONAL, None, P, Ground.SHOP_COUNTRY, None, "the suggestion has changed since it was shown"),
        (NATIONAL, None, Q, Ground.ADDRESS_COUNTRY, None, "the suggestion has changed since it was shown"),
        (OPEN, None, P, Ground.DIGITS, Fields(calling_code="52"), None),
        (READABLE, None, P, Ground.ADDRESS_COUNTRY, None, None),
        (READABLE, None, Q, Ground.ADDRESS_COUNTRY, None, "nothing is suggested for this contact any more"),
    ],
)
def test_only_what_was_shown_is_accepted(
    contact: Contact, shop: str | None, phone: str, ground: Ground, fields: Fields | None, refusal: str | None
) -> None:
    judged = judge(contact, shop, phone, ground)
    assert (judged.fields, judged.refusal) == (fields, refusal)


# --- order ---

KNOWN = [put(SHOP, 0, phone=P), put(CRM, 0, user_id=USER), put("erp:1", 0, phone=Q, external_ids=(CRM,))]
states = st.sampled_from(list(MarketingState))
minutes = st.integers(0, 5)
changes = st.one_of(
    st.builds(said, st.sampled_from([SUB, UNSUB]), minutes, st.sampled_from([P, Q])),
    st.builds(said, st.sampled_from([SUB, UNSUB]), minutes, st.none(), st.just(USER)),
    st.builds(told, st.sampled_from([SHOP, CRM, "erp:1"]), minutes, states),
    st.builds(message, minutes),
)


def outcome(book: Book) -> dict[str, tuple[Word, UUID, str | None]]:
    return {
        key.contact_id: (replace(contact.word, proof=None), contact.person.id, contact.fields.user_id)
        for key, contact in book.contacts.items()
    }


@settings(max_examples=60)
@given(st.lists(changes, max_size=6).flatmap(lambda drawn: st.tuples(st.just(drawn), st.permutations(drawn))))
def test_any_order_makes_the_same_people_with_the_same_consent(orders: tuple[list[Change], list[Change]]) -> None:
    assert outcome(run(*KNOWN, *orders[0])) == outcome(run(*KNOWN, *orders[1]))


@settings(max_examples=60)
@given(st.lists(changes, max_size=6))
def test_a_repeat_of_everything_changes_nothing(drawn: list[Change]) -> None:
    once = run(*KNOWN, *drawn)
    again = run(*drawn, book=once)
    assert outcome(again) == outcome(once)


moves = st.builds(
    lambda name, minutes, state, phone, others: put(name, minutes, state, phone=phone, external_ids=others),
    st.sampled_from([SHOP, CRM, "erp:1", "erp:2"]),
    minutes,
    states | st.none(),
    st.sampled_from([P, Q, None]),
    st.sampled_from([(), (), (SHOP,), ("x",)]),
)


def groups_of(book: Book) -> list[list[Contact]]:
    """Records that share an identity, directly or through others."""
    groups: list[list[Contact]] = []
    for contact in book.contacts.values():
        near = [group for group in groups if any(set(one.marks) & set(contact.marks) for one in group)]
        groups = [group for group in groups if group not in near] + [
            [contact, *(one for group in near for one in group)]
        ]
    return groups


@settings(max_examples=100)
@given(st.lists(moves | changes, max_size=8))
def test_whatever_happens_a_person_is_the_records_that_share_an_identity(drawn: list[Change]) -> None:
    book = run(*drawn)
    groups = groups_of(book)
    assert persons(book) == len(groups)
    for group in groups:
        told_words = [one.told for one in group if one.told]
        firm_words = [one.firm for one in group if one.firm]
        (person,) = {one.person for one in group}
        assert person.id in {one.uid for one in group}
        assert person.told == latest_told(*told_words)
        assert not firm_words or person.firm is not None
        assert person.firm is None or person.firm.weight >= max(
            (one.weight for one in firm_words), default=person.firm.weight
        )
