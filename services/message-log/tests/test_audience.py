"""What becomes of many requests together: the first gate that doesn't let one pass is its outcome, and what one takes
the next has not, in however many calls they were asked about."""

import errno
import io
import json
from contextlib import ExitStack
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from message_log.audience import Answers, Count, Outcome, Verdict, credits_needed
from message_log.audience_api import UPLOADS_AT_ONCE, Desk
from message_log.audience_lines import LINE_BYTES_MAX, Line, Reading
from sendwhy.events import Gate, reason
from sendwhy.problems import Problem
from sendwhy.reasons import ReasonCode, Service

R = ReasonCode
STOP = Gate(gate="marketing_state", passed=False, reason=reason(R.CUSTOMER_IS_NOT_OPTED_IN, "STOP"))
BAD = Gate(gate="template", passed=False, reason=reason(R.TEMPLATE_NOT_APPROVED, "PAUSED"))
PAUSED = Gate(gate="paused", passed=False, evidence={"waits_for": "paused", "cause": "EXPIRED_BEFORE_SENDING"})
SYNC = Gate(gate="template", passed=None, evidence={"waits_for": "sync", "cause": "TEMPLATE_NOT_APPROVED"})
UNTOLD = Gate(gate="window", passed=None)
PAIR = Gate(gate="pair", passed=None)
GOOD = Gate(gate="request", passed=True)
SENDER = Gate(gate="sender", passed=True, evidence={"sender_id": "1"})


def credit(price: int, balance: int = 10) -> Gate:
    return Gate(gate="credits", passed=balance >= price, evidence={"price": price, "balance": balance})


def answers(
    *dispatcher: Gate, consent: Any = (GOOD,), price: int | None = 1, balance: int = 10, **more: Any
) -> Answers:
    billing = None if price is None else [credit(price, balance)]
    return Answers(list(consent), billing, [SENDER, *dispatcher], **more)


@pytest.mark.parametrize(
    ("told", "group", "credits"),
    [
        (answers(), "goes", 1),
        (answers(PAIR), "goes", 1),
        (answers(BAD), "fails.TEMPLATE_NOT_APPROVED", 0),
        (answers(BAD, consent=[STOP]), "fails.CUSTOMER_IS_NOT_OPTED_IN", 0),
        (answers(PAUSED), "waits.paused.EXPIRED_BEFORE_SENDING", 1),
        (answers(SYNC, PAUSED), "waits.sync.TEMPLATE_NOT_APPROVED", 1),
        (answers(UNTOLD), "unknown.dispatcher", 0),
        (answers(UNTOLD, BAD), "fails.TEMPLATE_NOT_APPROVED", 0),
        (answers(price=11), "fails.INSUFFICIENT_CREDITS", 11),
        (answers(BAD, price=11), "fails.INSUFFICIENT_CREDITS", 0),
        (answers(PAUSED, price=11), "fails.INSUFFICIENT_CREDITS", 11),
        (answers(price=None), "unknown.billing", 0),
        (answers(PAUSED, price=None), "unknown.billing", 0),
        (answers(BAD, price=None), "fails.TEMPLATE_NOT_APPROVED", 0),
        (Answers([GOOD], [credit(1)], None), "unknown.dispatcher", 0),
        (Answers([GOOD], [credit(11)], None), "fails.INSUFFICIENT_CREDITS", 11),
        (Answers(None), "unknown.consent", 0),
        (Answers([]), "unknown.consent", 0),
    ],
)
def test_the_first_gate_that_does_not_pass_is_the_outcome_and_an_unknown_one_no_pass(
    told: Answers, group: str, credits: int
) -> None:
    [verdict] = Count().judge([told])
    assert (verdict.group, verdict.credits) == (group, credits)


def test_a_service_that_could_not_be_asked_is_named_with_why() -> None:
    [verdict] = Count().judge([Answers([GOOD], None, [GOOD], faults={Service.BILLING: "It is away."})])
    assert (verdict.outcome, verdict.service, verdict.detail) == (Outcome.UNKNOWN, "billing", "It is away.")


# Of each request: its price, whether the dispatcher rejects or holds it.
LISTS = st.lists(st.tuples(st.integers(0, 4), st.sampled_from([(), (BAD,), (PAUSED,)])), max_size=40)


def in_calls(wanted: list[Any], size: int, balance: int, count: Count) -> list[Verdict]:
    """As billing answers call by call: each begins with the whole balance."""
    found: list[Verdict] = []
    for start in range(0, len(wanted), size):
        piece = [answers(*gates, price=price, balance=balance) for price, gates in wanted[start : start + size]]
        found += count.judge(piece)
    return found


@given(LISTS, st.integers(1, 7), st.integers(0, 40), st.booleans())
def test_credits_are_counted_over_the_whole_list_however_it_is_asked(
    wanted: list[Any], size: int, balance: int, holds: bool
) -> None:
    whole, pieces = Count(holds_credits=holds), Count(holds_credits=holds)
    verdicts = in_calls(wanted, size, balance, pieces)
    assert verdicts == in_calls(wanted, 1000, balance, whole)
    assert len(verdicts) == len(wanted)
    taking = (Outcome.GOES, Outcome.WAITS) if holds else (Outcome.GOES,)
    taken = sum(one.credits for one in verdicts if one.outcome in taking)
    assert taken == pieces.spent <= balance
    needed = credits_needed([(one.outcome, one.why, one.credits) for one in verdicts])
    if needed <= balance:
        assert all(one.why != R.INSUFFICIENT_CREDITS or one.credits == 0 for one in verdicts)


def tier(used: int, limit: int) -> Gate:
    full = used >= limit
    waits = {"waits_for": "tier", "cause": "MESSAGING_LIMIT_REACHED"} if full else {}
    return Gate(gate="tier", passed=not full, evidence={"used": used, "limit": limit, **waits})


def asked_in_calls(phones: list[int], size: int, used: int, limit: int) -> list[Verdict]:
    """As the dispatcher answers call by call: each begins with what was used before the first."""
    count, found = Count(), []
    for start in range(0, len(phones), size):
        piece, now, reached = [], used, set()
        for phone in phones[start : start + size]:
            known = phone in reached
            gate = Gate(gate="tier", passed=True, evidence={"used": now, "limit": limit}) if known else tier(now, limit)
            piece.append(answers(gate, balance=10_000, address=str(phone)))
            if not known and now < limit:
                now += 1
                reached.add(phone)
        found += count.judge(piece)
    return found


@example([*[0] * 12, 1, 1, 0], 3, 0, 1)
@given(st.lists(st.integers(0, 30), max_size=40), st.integers(1, 7), st.integers(0, 5), st.integers(0, 20))
def test_no_more_new_people_go_than_the_limit_has_room_for(phones: list[int], size: int, used: int, limit: int) -> None:
    verdicts = asked_in_calls(phones, size, used, limit)
    gone = {phone for phone, one in zip(phones, verdicts, strict=True) if one.outcome is Outcome.GOES}
    assert len(gone) == min(len(set(phones)), max(0, limit - used))
    assert all(one.group in ("goes", "waits.tier.MESSAGING_LIMIT_REACHED") for one in verdicts)


def body(message_id: str, **changes: Any) -> bytes:
    request = {
        "message_id": message_id,
        "workspace_id": "acme",
        "to": {"contact_id": "c"},
        "origin": {"kind": "api"},
        "content": {"type": "text", "text": {"body": "hi"}},
    }
    return json.dumps(request | changes).encode()


def read(*lines: bytes, end: bytes = b"\n") -> list[Line]:
    return [line for piece in Reading(io.BytesIO(end.join(lines)), "acme").pieces() for line in piece]


@pytest.mark.parametrize(
    ("line", "group", "field"),
    [
        (b"{", "broken.line", "body"),
        (b"[]", "broken.line", "body"),
        (b"\xff\xfe\x00", "broken.line", "body"),
        (body("m", to={}), "broken.line", "to"),
        (body("m", to=7), "broken.line", "to"),
        (body("m", content={"type": "smoke"}), "broken.line", "content"),
        (body("a b"), "broken.line", "message_id"),
        (body("m", send_at="soon"), "broken.line", "send_at"),
        (body("m", workspace_id="other"), "broken.workspace", "workspace_id"),
        (b" " * 10 + b"x" * LINE_BYTES_MAX, "broken.line", None),
    ],
)
def test_a_line_that_is_no_request_of_the_workspace_says_where_and_why(
    line: bytes, group: str, field: str | None
) -> None:
    first, found, last = read(body("one"), line, body("two"))
    assert (first.verdict, last.verdict, last.number) == (None, None, 3)
    assert found.verdict is not None
    assert (found.number, found.verdict.group, found.verdict.field) == (2, group, field)
    assert found.verdict.detail


def test_empty_lines_a_mark_and_other_line_ends_are_no_fault() -> None:
    lines = read(b"\xef\xbb\xbf" + body("a"), b"", b"  ", body("b"), end=b"\r\n")
    assert [(line.number, line.message_id, line.verdict) for line in lines] == [(1, "a", None), (4, "b", None)]


def test_of_lines_with_one_id_the_first_stands() -> None:
    first, second = read(body("a"), body("a", purpose="marketing"))
    assert first.verdict is None
    assert second.verdict is not None
    assert (second.verdict.group, "Line 1" in second.verdict.detail) == ("repeated", True)


@given(
    st.lists(st.one_of(st.binary(max_size=80), st.sampled_from([body("a"), body("b"), body("c", to=1)])), max_size=30)
)
def test_any_file_is_partitioned_into_its_lines(lines: list[bytes]) -> None:
    lines = [line.replace(b"\n", b"") for line in lines]
    found = read(*lines)
    # A mark is one at the beginning of the file only.
    bare = [line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line for number, line in enumerate(lines)]
    filled = [number for number, line in enumerate(bare, start=1) if line.strip()]
    assert [line.number for line in found if line.number != 1] == [number for number in filled if number != 1]
    taken = [line.message_id for line in found if line.verdict is None]
    assert len(set(taken)) == len(taken)


def test_only_so_many_files_lie_on_the_disk_at_once() -> None:
    desk = Desk(cast(Any, None), cast(Any, None))
    with ExitStack() as held:
        for _ in range(UPLOADS_AT_ONCE):
            held.enter_context(desk.place())
        with pytest.raises(Problem) as refused, desk.place():
            pass
    with pytest.raises(Problem) as full, desk.place():
        raise OSError(errno.ENOSPC, "No space left on device")
    with desk.place():
        assert (refused.value.status_code, full.value.status_code) == (503, 507)
