"""Whose an element is, the ladder, and what silence means."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ingest_webhooks import APP, AT, NUMBER, OTHER_APP, WABA, WORKSPACE, callback, delivery, status, statuses
from sendwhy.events import Status, StatusUpdated
from sendwhy.reasons import ReasonCode
from webhook_ingest.decide import (
    Message,
    Owner,
    Seen,
    Sender,
    Sorted,
    Standing,
    StatusKey,
    climb,
    judge_statuses,
    owner_of,
    sort_out,
)
from webhook_ingest.fragments import read
from webhook_ingest.silence import Awaited, silence

OURS = Sender(NUMBER, WORKSPACE, WABA, APP)
THEIRS = Sender("415566778899002", "globex", "77", OTHER_APP)
APPS = frozenset({APP, OTHER_APP})
BY_ID = {NUMBER: [OURS], WABA: [OURS], THEIRS.sender_id: [THEIRS], THEIRS.waba_id: [THEIRS]}


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
        (None, "", APP, [], Owner(Standing.UNKNOWN)),
    ],
)
def test_a_secret_speaks_only_for_its_own(
    number: str | None, waba: str, signer: str, senders: Sequence[Sender], owner: Owner
) -> None:
    assert owner_of(number, waba, signer, senders, only_app=False) == owner


def test_the_only_app_speaks_for_numbers_whose_app_nobody_told() -> None:
    owner = owner_of(NUMBER, WABA, APP, [replace(OURS, app_id=None)], only_app=True)
    assert owner == Owner(Standing.OWN, WORKSPACE)


def sort(raw: bytes, signer: str = APP, offset: int = 0) -> Sorted:
    place = delivery(raw, offset, signer)
    return sort_out([(place, element) for element in read(place).elements], BY_ID, APPS)


class Book:
    """A store of messages and statuses in memory, as the tables are one."""

    def __init__(self, *messages: Message) -> None:
        self.messages = {message.key: message for message in messages}
        self.seen: dict[StatusKey, Seen] = {}

    def post(self, raw: bytes, offset: int = 0) -> list[StatusUpdated]:
        verdict = judge_statuses(sort(raw, offset=offset).told, self.messages, self.seen)
        self.messages |= verdict.messages
        self.seen |= verdict.seen
        return [event for _, event in verdict.events]


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
    first = book.post(statuses(status("sent"), status("sent")), offset=5)
    assert len(first) == 1
    assert book.post(statuses(status("sent")), offset=6) == []
    assert book.post(statuses(status("sent")), offset=5) == first


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


def test_an_unknown_number_names_no_workspace() -> None:
    (entry,) = sort(statuses(status("read", **callback("m-1")), number="99999999", waba="5")).unclaimed.values()
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
