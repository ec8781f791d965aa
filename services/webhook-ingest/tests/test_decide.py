"""Whose an element is, the ladder, and what silence means."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import permutations
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ingest_webhooks import (
    APP,
    AT,
    NUMBER,
    OTHER_APP,
    PHONE,
    T0,
    USER,
    WABA,
    WORKSPACE,
    body,
    callback,
    delivery,
    status,
    statuses,
    value,
)
from sendwhy.events import Status, StatusUpdated
from sendwhy.reasons import ReasonCode
from webhook_ingest.decide import (
    Change,
    Message,
    MessageKey,
    Owner,
    Seen,
    Sender,
    Shown,
    Sorted,
    Standing,
    StatusKey,
    Verdict,
    accounts_needed,
    changes_of,
    climb,
    followed,
    is_to_be_saved,
    joined,
    judge_statuses,
    owner_of,
    risen,
    sort_out,
)
from webhook_ingest.elements import StatusTold
from webhook_ingest.fragments import read
from webhook_ingest.silence import Awaited, silence

OURS = Sender(NUMBER, WORKSPACE, WABA, APP)
THEIRS = Sender("415566778899002", "globex", "77", OTHER_APP)
# A number of their own, put with our account.
CLAIM = replace(THEIRS, waba_id=WABA, is_proven=False)
APPS = frozenset({APP, OTHER_APP})
SENDERS = {OURS.sender_id: OURS, THEIRS.sender_id: THEIRS}
LINKING = status("delivered", recipient_user_id=USER)
ACCOUNTS = {OURS.waba_id: [OURS], THEIRS.waba_id: [THEIRS]}


@pytest.mark.parametrize(
    ("number", "waba", "signer", "senders", "owner"),
    [
        (NUMBER, WABA, APP, [OURS], Owner(Standing.OWN, WORKSPACE)),
        (NUMBER, WABA, OTHER_APP, [OURS], Owner(Standing.FOREIGN)),
        (NUMBER, "77", OTHER_APP, [OURS, THEIRS], Owner(Standing.FOREIGN)),
        (NUMBER, WABA, APP, [], Owner(Standing.UNKNOWN)),
        (NUMBER, WABA, APP, [replace(OURS, app_id=None)], Owner(Standing.UNKNOWN)),
        ("99999999", WABA, APP, [OURS], Owner(Standing.UNKNOWN)),
        ("99999999", WABA, OTHER_APP, [OURS], Owner(Standing.FOREIGN)),
        (None, WABA, APP, [OURS], Owner(Standing.OWN)),
        (None, WABA, OTHER_APP, [OURS], Owner(Standing.FOREIGN)),
        (None, WABA, APP, [OURS, replace(OURS, sender_id="99999998", app_id=OTHER_APP)], Owner(Standing.OWN)),
        (None, WABA, OTHER_APP, [OURS, CLAIM], Owner(Standing.UNKNOWN)),
        (None, "", APP, [], Owner(Standing.UNKNOWN)),
    ],
)
def test_a_secret_speaks_only_for_its_own(
    number: str | None, waba: str, signer: str, senders: Sequence[Sender], owner: Owner
) -> None:
    sender = next((one for one in senders if one.sender_id == number), None)
    of_account = [one for one in senders if one.waba_id == waba]
    assert owner_of(number, signer, sender, of_account, only_app=False) == owner


def test_the_only_app_speaks_for_numbers_whose_app_nobody_told() -> None:
    owner = owner_of(NUMBER, APP, replace(OURS, app_id=None), [], only_app=True)
    assert owner == Owner(Standing.OWN, WORKSPACE)


def sort(raw: bytes, signer: str = APP, offset: int = 0) -> Sorted:
    place = delivery(raw, offset, signer)
    elements = [(place, element) for element in read(place).elements]
    needed = {waba: ACCOUNTS[waba] for waba in accounts_needed(elements, SENDERS) & ACCOUNTS.keys()}
    result = sort_out(elements, SENDERS, needed, APPS)
    assert result == sort_out(elements, SENDERS, ACCOUNTS, APPS)
    return result


def events_of(verdict: Verdict) -> list[StatusUpdated]:
    return [StatusUpdated.model_validate_json(record.value or b"") for record in verdict.publish]


class Book:
    """A store of messages and statuses in memory, as the tables are one."""

    def __init__(self, *messages: Message) -> None:
        self.rows = {message.key: message for message in messages}
        self.seen: dict[StatusKey, Seen] = {}
        self.joined: set[StatusKey] = set()

    @property
    def messages(self) -> dict[MessageKey, Message]:
        return risen(self.rows, self.seen)

    def post(self, raw: bytes, offset: int = 0, replayed_at: datetime | None = None) -> list[StatusUpdated]:
        verdict = self.judge(raw, offset, replayed_at)
        before = self.messages
        self.rows |= {
            key: message
            for key, message in verdict.messages.items()
            if key not in before or is_to_be_saved(before[key], message)
        }
        self.seen |= verdict.seen
        # What was told of others is not looked for (`parsing.apply`).
        assert all(self.messages[key[:2]].is_told_of for key in self.seen)
        return events_of(verdict) + self._join(verdict)

    def judge(self, raw: bytes, offset: int = 0, replayed_at: datetime | None = None) -> Verdict:
        return judge_statuses(sort(raw, offset=offset).told, self.messages, self.seen, replayed_at=replayed_at)

    def accept(self, message_id: str = "m-1") -> list[StatusUpdated]:
        """The dispatcher's word: which message the wamid is."""
        before = self.rows.get(KEY, Message(*KEY))
        self.rows[KEY] = replace(before, workspace_id=WORKSPACE, message_id=message_id, rank=max(before.rank, 0))
        return self._join(Verdict(identified=[KEY]))

    def _join(self, verdict: Verdict) -> list[StatusUpdated]:
        told = []
        for key, seen in self.seen.items():
            if key[:2] in verdict.identified and seen.body is not None and key not in self.joined:
                self.joined.add(key)
                message = self.messages[key[:2]]
                event = StatusUpdated.model_validate_json(seen.body)
                told.append(joined(event, key[3], message.workspace_id or "", message.message_id or ""))
        return told


KNOWN = Message(NUMBER, "wamid.A", WORKSPACE, "m-1", rank=0)
KEY = (NUMBER, "wamid.A")


def test_callback_data_names_the_message() -> None:
    book = Book()
    (event,) = book.post(statuses(status("sent", **callback("m-1"))))
    assert (event.message_id, event.workspace_id, event.sender_id) == ("m-1", WORKSPACE, NUMBER)
    assert book.messages[KEY].message_id == "m-1"


def test_callback_data_of_another_workspace_is_not_believed() -> None:
    (event,) = Book().post(statuses(status("sent", **callback("m-1", "globex"))))
    assert (event.message_id, event.workspace_id) == (None, WORKSPACE)


def test_the_wamid_names_the_message() -> None:
    (event,) = Book(KNOWN).post(statuses(status("sent")))
    assert (event.message_id, event.workspace_id) == ("m-1", WORKSPACE)


def test_one_element_with_callback_data_names_its_neighbours() -> None:
    events = Book().post(statuses(status("sent"), status("read", **callback("m-1"))))
    assert [event.message_id for event in events] == ["m-1", "m-1"]


def test_a_status_stands_once_and_its_own_record_repeats_it() -> None:
    book = Book(KNOWN)
    first = book.post(statuses(status("sent"), status("sent", timestamp=str(T0 + 1))), offset=5)
    assert len(first) == 1
    assert book.post(statuses(status("sent")), offset=6) == []
    assert book.post(statuses(status("sent")), offset=5) == first


@pytest.mark.parametrize("order", list(permutations([5, 6, 7])))
def test_what_a_record_said_first_is_said_again_wherever_it_stands_in_the_batch(order: tuple[int, ...]) -> None:
    """The process died between its commit and Kafka; which record comes first, when all are read again, is chance."""
    book = Book(KNOWN)
    first = book.post(statuses(status("delivered")), offset=6)
    again = [told for offset in order for told in sort(statuses(status("delivered")), offset=offset).told]
    verdict = judge_statuses(again, book.messages, book.seen)
    assert events_of(verdict) == first
    assert verdict.seen == {}


def test_a_record_repeats_what_it_said_while_the_message_was_unknown() -> None:
    book = Book()
    first = book.post(statuses(status("sent")), offset=5)
    book.post(statuses(status("read", **callback("m-1"))), offset=6)
    assert book.post(statuses(status("sent")), offset=5) == first
    assert first[0].message_id is None


def test_foreign_elements_are_kept_whole_and_not_applied() -> None:
    result = sort(statuses(status("read")), signer=OTHER_APP)
    assert (result.told, result.reports, result.unclaimed) == ([], {}, {})
    ((_, origin),) = result.foreign
    assert json.loads(origin.alone())["entry"][0]["changes"][0]["value"]["statuses"] == [status("read")]


def test_a_foreign_apps_receipt_tells_nothing_of_a_person() -> None:
    assert sort(statuses(LINKING), signer=OTHER_APP).reports == {}


def test_of_a_person_is_told_by_number_phone_and_user_id_whatever_the_message() -> None:
    def told(*changes: dict[str, Any], **place: Any) -> set[UUID]:
        return set(sort(statuses(*({**LINKING, **change} for change in changes), **place)).reports)

    (name,) = told({}, {"id": "wamid.B", "timestamp": str(T0 + 1)}, {"status": "read"})
    assert name not in told({"recipient_id": "447700900143"}, {"recipient_user_id": "GB.8"})


def test_what_is_kept_of_an_unknown_number_names_the_person_by_both() -> None:
    result = sort(statuses(LINKING, number="99999999", waba="5"))
    ((entry,),) = result.unclaimed.values()
    assert result.reports == {}
    ((again,),) = [read(delivery(entry.body)).elements]
    assert isinstance(again, StatusTold)
    assert again.link == (f"+{PHONE}", USER)


def test_an_unknown_number_names_no_workspace() -> None:
    ((entry,),) = sort(statuses(status("read", **callback("m-1")), number="99999999", waba="5")).unclaimed.values()
    assert isinstance(entry.event, StatusUpdated)
    assert (entry.event.message_id, entry.event.workspace_id, entry.event.sender_id) == (None, None, "99999999")


TOLD = st.lists(st.sampled_from(["sent", "delivered", "read", "played", "failed"]), min_size=1, max_size=8)


@given(TOLD, st.data())
def test_any_order_and_any_repeats_end_in_the_same(told: list[str], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(told + data.draw(st.lists(st.sampled_from(told), max_size=8))))
    calm, storm = Book(KNOWN), Book(KNOWN)
    for offset, name in enumerate(told):
        calm.post(statuses(status(name)), offset)
    said = [
        event.event_id for offset, name in enumerate(shuffled) for event in storm.post(statuses(status(name)), offset)
    ]
    assert storm.messages == calm.messages
    assert len(said) == len(set(said)) == len(set(told))


@given(st.lists(st.sampled_from(list(Status)[1:]), max_size=10))
def test_the_ladder_only_climbs(told: list[Status]) -> None:
    message = KNOWN
    for name in told:
        climbed = climb(message, name, AT)
        assert climbed.rank >= message.rank
        assert climbed.failed >= message.failed
        message = climbed
    assert message.failed == (Status.FAILED in told)


@given(TOLD)
def test_a_batch_and_its_split_end_in_the_same(told: list[str]) -> None:
    whole, split = Book(KNOWN), Book(KNOWN)
    at_once = whole.post(statuses(*map(status, told)))
    one_by_one = [event for name in told for event in split.post(statuses(status(name)), offset=told.index(name))]
    assert whole.messages == split.messages
    assert {event.event_id for event in at_once} == {event.event_id for event in one_by_one}


# What Meta may say of one message: several devices, with and without callback data, price, cause or time.
VARIANTS = st.builds(
    lambda name, more: {"id": "wamid.A", "status": name, "recipient_id": "447700900142", **more},
    st.sampled_from(["sent", "delivered", "read", "played", "failed"]),
    st.fixed_dictionaries(
        {},
        optional={
            "timestamp": st.sampled_from([str(T0), T0 + 1, str((T0 + 2) * 1000), "soon"]),
            "biz_opaque_callback_data": st.just("sw1:acme:m-1"),
            "pricing": st.sampled_from([{"category": "marketing"}, {"category": "utility"}, None]),
            "conversation": st.just({"id": "c"}),
            "errors": st.sampled_from([[{"code": 131026}], [{"code": 131047}], [{"code": 999999}], []]),
            "of_tomorrow": st.just(True),
        },
    ),
)
ACCEPTED_NOW = None


@settings(max_examples=300, deadline=None)
@given(st.lists(VARIANTS, min_size=1, max_size=8), st.data())
def test_any_history_in_any_order_with_any_repeats_ends_in_the_same(
    told: list[dict[str, Any]], data: st.DataObject
) -> None:
    """Also with the send's own answer anywhere in between: the message is known before, while, or after."""
    steps: list[dict[str, Any] | None] = [*told, ACCEPTED_NOW]
    calm, storm = Book(), Book()
    shuffled = data.draw(st.permutations(steps + data.draw(st.lists(st.sampled_from(steps), max_size=8))))

    def play(book: Book, history: Sequence[dict[str, Any] | None]) -> dict[UUID, tuple[Any, ...]]:
        said: dict[UUID, tuple[Any, ...]] = {}
        for offset, step in enumerate(history):
            for event in book.accept() if step is None else book.post(statuses(step), offset):
                if event.message_id is not None:
                    assert event.event_id not in said
                    said[event.event_id] = event.status, event.reason, event.pricing, event.conversation, event.extra
        return said

    assert play(storm, shuffled) == play(calm, steps)
    assert storm.messages == calm.messages


@given(st.lists(VARIANTS, min_size=1, max_size=8), st.integers(1, 7))
def test_batches_cut_anywhere_end_in_the_same(told: list[dict[str, Any]], cut: int) -> None:
    whole, split = Book(KNOWN), Book(KNOWN)
    at_once = whole.post(statuses(*told))
    in_two = [*split.post(statuses(*told[:cut]), 0), *split.post(statuses(*told[cut:]), 1)]
    assert whole.messages == split.messages
    assert {event.event_id for event in at_once} == {event.event_id for event in in_two}


@given(st.lists(VARIANTS, min_size=1, max_size=8))
def test_a_replay_of_what_stands_says_nothing(told: list[dict[str, Any]]) -> None:
    book = Book(KNOWN)
    for offset, step in enumerate(told):
        book.post(statuses(step), offset)
    before = dict(book.messages), dict(book.seen)
    for offset, step in enumerate(told):
        assert book.post(statuses(step), offset, replayed_at=LATER) == []
    assert (book.messages, book.seen) == before


LATER = AT + timedelta(days=3)
UNDELIVERABLE = status("failed", errors=[{"code": 131026}])


def as_of_old(book: Book, code: str) -> None:
    """Make the one stored reading that of a parser which understood less."""
    ((key, seen),) = book.seen.items()
    book.seen = {(*key[:3], b"of old"): replace(seen, reason=code)}


def test_a_better_parser_corrects_the_reason_once() -> None:
    book = Book(KNOWN)
    (first,) = book.post(statuses(UNDELIVERABLE), 5)
    as_of_old(book, "META_ERROR")
    verdict = book.judge(statuses(UNDELIVERABLE), 5, LATER)
    changes = changes_of(book.messages, book.seen, verdict)
    assert [(change.before, change.after) for change in changes.values()] == [
        (Shown("failed", "META_ERROR"), Shown("failed", "RECIPIENT_NOT_ON_WHATSAPP"))
    ]
    assert dict(verdict.applied) == {("failed", "corrected"): 1}
    assert not verdict.failed
    (better,) = book.post(statuses(UNDELIVERABLE), 5, LATER)
    assert (better.reason, better.occurred_at, better.observed_at) == (first.reason, first.occurred_at, LATER)
    assert book.post(statuses(UNDELIVERABLE), 5, LATER + timedelta(days=1)) == []
    # After a restored backup the record is read again as usual, and says the correction word for word.
    assert book.post(statuses(UNDELIVERABLE), 5) == [better]


@pytest.mark.parametrize(
    ("message", "told", "before", "after"),
    [
        (KNOWN, [status("sent")], Shown("accepted"), Shown("sent")),
        (replace(KNOWN, rank=1), [status("read")], Shown("sent"), Shown("read")),
        (replace(KNOWN, rank=1), [UNDELIVERABLE], Shown("sent"), Shown("failed", "RECIPIENT_NOT_ON_WHATSAPP")),
        (replace(KNOWN, rank=2), [UNDELIVERABLE], None, None),
        (replace(KNOWN, rank=1, failed=True), [status("delivered")], Shown("failed"), Shown("delivered")),
        (
            replace(KNOWN, rank=1, silence="NO_DELIVERY_RECEIPT"),
            [status("delivered")],
            Shown("failed", "NO_DELIVERY_RECEIPT"),
            Shown("delivered"),
        ),
        (
            Message(*KEY, rank=1),
            [status("read", **callback("m-1"))],
            Shown(),
            Shown("read"),
        ),
        (replace(KNOWN, rank=3), [status("sent"), status("delivered")], None, None),
    ],
)
def test_what_a_replay_changes(
    message: Message, told: list[dict[str, Any]], before: Shown | None, after: Shown | None
) -> None:
    book = Book(message)
    changes = changes_of(book.messages, book.seen, book.judge(statuses(*told), 5, LATER))
    assert [(change.before, change.after) for change in changes.values()] == ([(before, after)] if before else [])


@pytest.mark.parametrize(
    ("ranks", "after"), [((2, 3), Shown("read")), ((3, 2), Shown("read")), ((3, 3), Shown("read"))]
)
def test_two_batches_of_a_dry_run_are_one_change(ranks: tuple[int, int], after: Shown) -> None:
    first, then = (
        Change(replace(KNOWN, rank=rank), Shown("sent"), Shown({2: "delivered", 3: "read"}[rank])) for rank in ranks
    )
    both = followed(followed(None, first), then)
    assert (both.before, both.after) == (Shown("sent"), after)


def awaited(day: int, rank: int, *, failed: bool = False, due: bool = True) -> Awaited:
    at = AT + timedelta(days=day)
    deadline = at + timedelta(hours=1) if due else AT + timedelta(days=900)
    return Awaited(f"wamid.{day}", rank, failed, at, deadline, at if rank >= 2 else None)


BLOCKED, SILENT = ReasonCode.RECIPIENT_PROBABLY_BLOCKED_SENDER, ReasonCode.NO_DELIVERY_RECEIPT


@pytest.mark.parametrize(
    ("ranks", "judged", "code", "silent_messages"),
    [
        ([2, 1, 1, 1], 3, BLOCKED, 3),
        ([3, 1, 1, 1, 1], 4, BLOCKED, 4),
        ([2, 1, 1, 1], 2, SILENT, 2),
        ([2, 1, 1, 1], 1, SILENT, 1),
        ([1, 1, 1, 1], 3, SILENT, 4),
        ([2, 1, 1, 2, 1], 4, SILENT, 1),
        ([2, 1, 1, 1, 2], 3, SILENT, 0),
        ([2, 0, 0, 0], 3, SILENT, 0),
        ([2, 1, 1, 0], 3, SILENT, 2),
        ([2, 1, 1, 1, 0], 4, SILENT, 3),
        ([1], 0, SILENT, 1),
    ],
)
def test_what_silence_means(ranks: list[int], judged: int, code: ReasonCode, silent_messages: int) -> None:
    history = [awaited(day, rank) for day, rank in enumerate(ranks)]
    why = silence(history[judged], history, AT + timedelta(days=99), 3)
    assert why.code is code
    assert (why.evidence["inferred"], why.evidence["silent_messages"]) == (True, silent_messages)


def test_messages_that_failed_or_are_not_due_prove_no_block() -> None:
    history = [awaited(0, 2), awaited(1, 1, failed=True), awaited(2, 1, due=False), awaited(3, 1), awaited(4, 1)]
    assert silence(history[4], history, AT + timedelta(days=99), 3).code is SILENT


def test_a_block_is_told_with_its_evidence() -> None:
    history = [awaited(day, rank) for day, rank in enumerate([2, 1, 1, 1])]
    evidence = silence(history[3], history, AT + timedelta(days=99), 3).evidence
    assert evidence["last_delivered_at"] == AT.isoformat()
    assert evidence["silent_since"] == (AT + timedelta(days=1)).isoformat()


def report(name: str, waba: str, signer: str, **beside: Any) -> Sorted:
    told = {"message_template_name": "a", "message_template_language": "en", "event": "PAUSED"}
    return sort(body({**beside, **told}, field=name, waba=waba), signer)


def test_for_a_status_of_a_known_number_its_account_with_all_its_numbers_is_not_looked_up() -> None:
    place = delivery(statuses(status("sent")), 0, APP)
    elements = [(place, element) for element in read(place).elements]
    assert accounts_needed(elements, SENDERS) == set()
    assert accounts_needed(elements, {}) == {WABA}


@pytest.mark.parametrize("number", [THEIRS.sender_id, "99999999", None])
@pytest.mark.parametrize("name", ["message_template_status_update", "account_update"])
def test_a_number_of_ones_own_opens_no_door_to_another_account(name: str, number: str | None) -> None:
    beside = {"metadata": {"phone_number_id": number}} if number else {}
    result = report(name, WABA, OTHER_APP, **beside)
    assert not result.reports
    assert len(result.foreign) == 1


def test_of_an_account_whose_app_nobody_told_no_report_is_believed_but_the_only_apps() -> None:
    place = delivery(body({"event": "DISABLED_UPDATE"}, field="account_update"), 0, OTHER_APP)
    untold = replace(OURS, app_id=None)
    known = ({NUMBER: untold}, {WABA: [untold]})
    elements = [(place, element) for element in read(place).elements]
    assert not sort_out(elements, *known, APPS).reports
    assert len(sort_out(elements, *known, frozenset({OTHER_APP})).reports) == 1


def test_a_number_that_has_moved_to_an_account_that_nobody_knows_still_speaks() -> None:
    moved = value(errors=[{"code": 130429}])
    ((told,),) = sort(body(moved, waba="88")).reports.values()
    assert getattr(told[1], "sender_id", None) == NUMBER
