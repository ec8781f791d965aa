"""The judge says nothing of a good run, and names the invariant that each spoiled one breaks."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from history import (
    Checked,
    Entry,
    FaultBegan,
    FaultEnded,
    History,
    Journal,
    Lag,
    Note,
    Record,
    Recovered,
    Sender,
    WebhookEnded,
)
from judge import RULES, judge
from made import TOKEN, WORKSPACE, Making, good_run, moment, phone_of

Spoil = Callable[[Making], None]
E = TypeVar("E", bound=Entry)


def _of(run: Making, kind: type[E]) -> E:
    return next(one for one in run.entries if isinstance(one, kind))


def _replaced(run: Making, topic: str, index: int, **changes: object) -> None:
    """The event with other fields, in its place."""
    record = run.topics[topic][index]
    event = json.loads(record.value or b"") | changes
    run.topics[topic][index] = dataclasses.replace(record, value=json.dumps(event).encode())


def _again(run: Making, topic: str, index: int, **changes: object) -> None:
    """The event once more, with other fields."""
    event = json.loads(run.topics[topic][index].value or b"") | changes
    run.publish(topic, 200, json.dumps(event).encode())


def _index(run: Making, topic: str, *texts: str) -> int:
    return next(
        number
        for number, record in enumerate(run.topics[topic])
        if all(text in (record.value or b"").decode() for text in texts)
    )


def _shown(number: int, **changes: object) -> Spoil:
    def spoil(run: Making) -> None:
        next(one for one in run.messages if one["message_id"] == f"m{number}").update(changes)

    return spoil


def _call_again(run: Making) -> None:
    run.call(1, 13)


def _refused_after_taken(run: Making) -> None:
    run.call(1, 13, answer={"error": {"code": 131056}}, status=400)


def _cut_off_tail(run: Making) -> None:
    run.topics["send.requested"] = run.topics["send.requested"][:-1]


def _nothing_came_of_it(run: Making) -> None:
    run.topics["send.rejected"].pop(_index(run, "send.rejected", "NOT_OPTED_IN"))
    _shown(3, status="sending", reason=None)(run)


def _two_rejections(run: Making) -> None:
    run.reject(3, 12, "INSUFFICIENT_CREDITS", "billing")


def _no_accepted(run: Making) -> None:
    run.topics["status.updated"].pop(_index(run, "status.updated", '"m1"', "accepted"))


def _waits_for_nothing(run: Making) -> None:
    _shown(5, waiting={"cause": None, "since": None, "until": None})(run)


def _waits_too_long(run: Making) -> None:
    _shown(5, waiting={"cause": "RATE_LIMIT_EXCEEDED", "since": moment(11), "until": moment(290)})(run)


def _booked_twice(run: Making) -> None:
    run.book("capture", 0, "m1")


def _released_too(run: Making) -> None:
    run.book("release", 1, "m1")


def _not_released(run: Making) -> None:
    run.book("recapture", -1, "m6")


def _not_captured(run: Making) -> None:
    entry = next(one for one in run.ledger if one["message_id"] == "m1" and one["kind"] == "capture")
    run.ledger.remove(entry)
    for one in run.ledger:
        one["version"] -= one["version"] > entry["version"]


def _below_zero(run: Making) -> None:
    run.book("adjustment", -300)


def _gap(run: Making) -> None:
    run.ledger.pop()


def _top_up_twice(run: Making) -> None:
    run.book("top_up", 100)


def _silent_top_up(run: Making) -> None:
    run.topics["account.updated"].pop()


def _funded_for_free(run: Making) -> None:
    request = run.request(9, 50)
    run.tell("send.consented", 51, "m9", request=request)
    run.tell("send.funded", 52, "m9", request=request)
    run.show(9, "waiting", waiting={"cause": "RATE_LIMIT_EXCEEDED", "since": moment(52), "until": moment(900)})


def _lost_webhook(run: Making) -> None:
    run.topics["webhook.received"].pop(0)


def _altered_webhook(run: Making) -> None:
    record = run.topics["webhook.received"][0]
    run.topics["webhook.received"][0] = dataclasses.replace(record, value=(record.value or b"") + b" ")


def _believed_forgery(run: Making) -> None:
    _of(run, WebhookEnded).status = 200


def _untold_element(run: Making) -> None:
    run.topics["status.updated"].pop(_index(run, "status.updated", '"m4"', '"failed"'))


def _untold_message(run: Making) -> None:
    run.topics["message.received"].pop()


def _dead(run: Making, **changes: object) -> None:
    record = run.topics["dead.letters"][0]
    run.topics["dead.letters"][0] = dataclasses.replace(record, **changes)  # type: ignore[arg-type]


def _dead_without_bytes(run: Making) -> None:
    _dead(run, value=b"")


def _dead_without_error(run: Making) -> None:
    headers = tuple(one for one in run.topics["dead.letters"][0].headers if one[0] != "error")
    _dead(run, headers=headers)


def _no_dead_letter(run: Making) -> None:
    del run.topics["dead.letters"]


def _good_one_dead(run: Making) -> None:
    first = run.topics["send.requested"][0]
    headers = {"service": "consent", "topic": "send.requested", "partition": "0", "offset": "0", "error": "unreadable"}
    run.publish("dead.letters", 60, first.value, headers=headers)


def _token_in_log(run: Making) -> None:
    run.texts["logs/dispatcher~1.log"] += f"ClientError: https://graph/?access_token={TOKEN}\n"


def _phone_in_log(run: Making) -> None:
    phone = phone_of(1)
    run.texts["logs/consent~1.log"] = f"contact {phone[:3]} {phone[3:5]} {phone[5:9]}-{phone[9:]} imported\n"


def _token_in_dead_letter(run: Making) -> None:
    kept = tuple(one for one in run.topics["dead.letters"][0].headers if one[0] != "error")
    headers = (*kept, ("error", TOKEN.encode()))
    _dead(run, headers=headers)


def _other_content(run: Making) -> None:
    _again(run, "send.rejected", _index(run, "send.rejected", "NOT_OPTED_IN"), occurred_at=moment(12))


def _other_id(run: Making) -> None:
    _again(run, "send.funded", 0, event_id="1b671a64-40d5-491e-99b0-da01ff1f3341")


def _other_id_of_a_status(run: Making) -> None:
    index = _index(run, "status.updated", '"m1"', '"delivered"')
    _again(run, "status.updated", index, event_id="1b671a64-40d5-491e-99b0-da01ff1f3341", observed_at=moment(90))


def _rejected_and_taken(run: Making) -> None:
    run.reject(1, 12, "EXPIRED_BEFORE_SENDING", "dispatcher")


def _called_once_given_up(run: Making) -> None:
    next(one for one in run.calls if one["biz_opaque_callback_data"].endswith("m6"))["at"] = moment(50)


def _called_unfunded(run: Making) -> None:
    run.call(3, 12)


def _called_before_funded(run: Making) -> None:
    run.calls[0]["at"] = moment(5)


def _status_without_call(run: Making) -> None:
    run.calls.pop(0)


def _call_of_nobody(run: Making) -> None:
    run.call(1, 13)
    run.calls[-1]["biz_opaque_callback_data"] = None


def _calls(run: Making, count: int, seconds: float, *, to: str | None = None) -> None:
    for number in range(count):
        run.fund(100 + number, 150)
        run.call(100 + number, 160 + number * seconds / count)
        run.calls[-1]["to"] = to or run.calls[-1]["to"]


def _too_fast(run: Making) -> None:
    _calls(run, 190, 1)


def _given_up_too_early(run: Making) -> None:
    index = _index(run, "status.updated", '"m1"', '"accepted"')
    _replaced(run, "status.updated", index, receipt_deadline=moment(9_000))
    told = {"service": "webhook-ingest", "status": "failed", "reason": {"code": "NO_DELIVERY_RECEIPT"}}
    _again(run, "status.updated", index, event_id="given up", receipt_deadline=None, **told)


def _too_fast_for_long(run: Making) -> None:
    _calls(run, 1300, 10)


def _too_many_to_one(run: Making) -> None:
    _calls(run, 60, 20, to="525512340001")


def _too_many_people(run: Making) -> None:
    _of(run, Sender).messaging_limit = 3


def _call_after_stop(run: Making) -> None:
    run.fund(9, 30, origin="campaign")
    run.call(9, 42)
    run.calls[-1]["to"] = phone_of(8)[1:]


def _resubscribed(run: Making) -> None:
    index = _index(run, "contact.updated", "UNSUBSCRIBED")
    record = run.topics["contact.updated"][index]
    state = json.loads(record.value or b"") | {"marketing_state": "SUBSCRIBED", "version": 9, "event_id": "x"}
    run.publish("contact.updated", 40, json.dumps(state).encode())


def _unknown_for_nothing(run: Making) -> None:
    run.entries = [one for one in run.entries if not isinstance(one, FaultBegan | FaultEnded)]


def _never_recovered(run: Making) -> None:
    _of(run, Recovered).lag_zero_seconds = None


def _found_by_the_rig(run: Making) -> None:
    run.enter(150, Checked(invariant="I13", what="tables", count=9, violations=["inbound differs"]))


MUTATIONS: list[tuple[str, Spoil]] = [
    ("I1", _cut_off_tail),
    ("I1", _nothing_came_of_it),
    ("I1", _two_rejections),
    ("I1", _no_accepted),
    ("I1", _waits_for_nothing),
    ("I1", _waits_too_long),
    ("I2", _call_again),
    ("I2", _refused_after_taken),
    ("I3", _booked_twice),
    ("I3", _released_too),
    ("I3", _not_released),
    ("I3", _not_captured),
    ("I3", _below_zero),
    ("I3", _gap),
    ("I3", _top_up_twice),
    ("I3", _silent_top_up),
    ("I3", _funded_for_free),
    ("I4", _lost_webhook),
    ("I4", _altered_webhook),
    ("I4", _believed_forgery),
    ("I4", _untold_element),
    ("I4", _untold_message),
    ("I5", _dead_without_bytes),
    ("I5", _dead_without_error),
    ("I5", _no_dead_letter),
    ("I5", _good_one_dead),
    ("I6", _token_in_log),
    ("I6", _phone_in_log),
    ("I6", _token_in_dead_letter),
    ("I7", _other_content),
    ("I7", _other_id),
    ("I7", _other_id_of_a_status),
    ("I8", _shown(1, status="delivered")),
    ("I8", _shown(2, status="failed")),
    ("I8", _shown(4, status="sent")),
    ("I9", _rejected_and_taken),
    ("I9", _called_once_given_up),
    ("I9", _given_up_too_early),
    ("I10", _called_unfunded),
    ("I10", _called_before_funded),
    ("I10", _status_without_call),
    ("I10", _call_of_nobody),
    ("I11", _too_fast),
    ("I11", _too_fast_for_long),
    ("I11", _too_many_to_one),
    ("I11", _too_many_people),
    ("I12", _call_after_stop),
    ("I12", _resubscribed),
    ("I13", _found_by_the_rig),
    ("I14", _never_recovered),
    ("I15", _unknown_for_nothing),
]


def test_a_good_run_has_no_violation_and_nothing_unseen() -> None:
    verdict = judge(good_run().history())
    assert [str(one) for one in verdict.violations] == []
    assert verdict.unseen == []


@pytest.mark.parametrize(("invariant", "spoil"), MUTATIONS)
def test_each_spoiled_run_breaks_its_invariant(invariant: str, spoil: Spoil) -> None:
    run = good_run()
    spoil(run)
    assert invariant in judge(run.history()).red


def test_lag_and_a_rebuilt_log_that_differs_are_found() -> None:
    history = good_run().history()
    history.lags = [*(history.lags or []), Lag(group="sendwhy-x", topic="t", partition=3, committed=None, end=7)]
    assert history.rebuilt is not None
    history.rebuilt["messages"][WORKSPACE][0]["status"] = "sent"
    assert judge(history).red == ["I5", "I13"]


def test_every_invariant_is_broken_by_some_mutation() -> None:
    assert {name for name, *_ in RULES} == {invariant for invariant, _ in MUTATIONS}


def test_an_empty_run_says_that_nothing_was_looked_at() -> None:
    verdict = judge(History(run=good_run().run()))
    assert {one.partition(" ")[0] for one in verdict.unseen} == {name for name, *_ in RULES}


def test_a_number_whose_way_to_meta_was_hit_is_not_judged_for_its_pace() -> None:
    run = good_run()
    _too_fast(run)
    hit = _of(run, FaultBegan).model_copy(update={"fault": "f2", "target": "dispatcher->meta"})
    run.enter(155, hit)
    assert "I11" not in judge(run.history()).red


def test_a_repeat_that_is_read_first_is_not_the_first() -> None:
    run = good_run()
    for topic in ("send.requested", "send.consented", "send.funded", "status.updated", "send.rejected"):
        records = run.topics[topic]
        late = [replace(one, partition=0, timestamp=one.timestamp + 60_000) for one in records]
        run.topics[topic] = [*late, *(replace(one, partition=1) for one in records)]
    assert {"I9", "I10"}.isdisjoint(judge(run.history()).red)


def test_an_answer_that_came_too_late_explains_an_unknown_outcome() -> None:
    run = good_run()
    _unknown_for_nothing(run)
    next(one for one in run.calls if one["biz_opaque_callback_data"].endswith("m6"))["answered_at"] = moment(26.5)
    assert "I15" not in judge(run.history()).red


def test_the_command_judges_a_folder(tmp_path: Path) -> None:
    good_run().write(tmp_path)
    command = [sys.executable, str(Path(__file__).with_name("judge.py")), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    told = json.loads((tmp_path / "verdict.json").read_text())
    # The journal stamps its entries itself, so that times of faults and of STOPs are not those of the run.
    assert ended.returncode in (0, 1), ended.stderr
    assert set(told["invariants"]) == {name for name, *_ in RULES}
    assert "I1 complete" in ended.stdout


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    run = good_run()
    run.write(tmp_path)
    read = History.read(tmp_path)
    assert [type(one) for one in read.entries] == [type(one) for one in run.entries]
    assert {topic: list(records) for topic, records in read.topics.items()} == run.topics
    assert list(read.calls) == run.calls
    assert read.api["messages"][WORKSPACE] == run.messages


def test_a_journal_that_was_cut_off_reads_up_to_its_last_whole_line(tmp_path: Path) -> None:
    good_run().write(tmp_path)
    with (tmp_path / "journal.jsonl").open("ab") as file:
        file.write(b'{"kind": "note", "te')
    with Journal(tmp_path / "other") as journal:
        journal.write(Note(text="one"))
    assert len(History.read(tmp_path).entries) == len(good_run().entries)


def test_a_record_without_value_and_key_survives_the_file() -> None:
    record = Record("contact.updated", 1, 2, 3, None, None, (("a", b"\xff"),))
    assert Record.of_line("contact.updated", record.to_line()) == record
