"""Every code of meta-cloud-api.md, 1.2, that a call can be answered with, and every shape an answer can have."""

import json
from typing import Any

import pytest
from dispatcher.answers import Action, MaybeTaken, NotTaken, Taken, read_answer
from dispatcher.decide import Waiting
from hypothesis import given
from hypothesis import strategies as st
from sendwhy.reasons import CATALOGUE, ReasonCode, Service


def answer(status: int, body: Any, attempt: int = 1) -> Any:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_answer(status, raw, attempt=attempt, jitter=0.5)


def error(code: Any, **rest: Any) -> dict[str, Any]:
    return {"error": {"message": f"(#{code}) x", "type": "OAuthException", "code": code, "fbtrace_id": "A"} | rest}


ACTIONS: dict[Action, list[int]] = {
    Action.RETRY: [1, 2, 131000, 131016, 131036, 131057, 133004],
    Action.PACE: [4, 613, 80007, 130429],
    Action.PAIR: [131056],
    Action.SYNCING: [134101],
    Action.HOLD: [
        0,
        3,
        10,
        33,
        104,
        190,
        200,
        250,
        299,
        368,
        131005,
        131031,
        131037,
        131042,
        131045,
        131048,
        133010,
        134011,
        131064,
    ],
    Action.REJECT: [
        100,
        130403,
        130472,
        130497,
        131008,
        131009,
        131021,
        131026,
        131030,
        131047,
        131049,
        131050,
        131051,
        131053,
        131055,
        131062,
        131063,
        132000,
        132001,
        132005,
        132007,
        132012,
        132015,
        132016,
        132018,
        132068,
        132069,
        134100,
        134102,
        135000,
        137000,
        999999,
        132999,
    ],
}


@pytest.mark.parametrize(("action", "code"), [(action, code) for action, codes in ACTIONS.items() for code in codes])
def test_each_code_has_its_action(action: Action, code: int) -> None:
    outcome = answer(400, error(code))
    assert isinstance(outcome, NotTaken)
    assert outcome.action is action
    assert (outcome.waiting_for is None) == (action is Action.REJECT)
    assert Service.DISPATCHER in CATALOGUE[outcome.reason.code].services
    assert outcome.reason.meta is not None
    assert outcome.reason.meta.code == code


def test_an_unknown_number_id_is_about_the_sender() -> None:
    outcome = answer(400, error(100, error_subcode=33, type="GraphMethodException"))
    assert isinstance(outcome, NotTaken)
    assert outcome.reason.code is ReasonCode.SENDER_NOT_AVAILABLE


def test_an_unlisted_code_is_shown_as_it_came_and_retried_only_if_meta_says_so() -> None:
    shown = answer(400, error(987654, error_data={"details": "the moon is full"}))
    assert isinstance(shown, NotTaken)
    assert shown.reason.code is ReasonCode.META_ERROR
    assert shown.reason.meta is not None
    assert shown.reason.meta.details == "the moon is full"
    assert shown.action is Action.REJECT
    transient = answer(400, error(987654, is_transient=True))
    assert isinstance(transient, NotTaken)
    assert transient.action is Action.RETRY


MAYBE = [
    ("html from a proxy", 502, b"<html>Bad Gateway</html>"),
    ("html with 200", 200, b"<html>ok</html>"),
    ("truncated json", 200, b'{"messages":[{"id":"wam'),
    ("200 with nothing", 200, b""),
    ("200 with an empty object", 200, {}),
    ("200 with empty messages", 200, {"messages": []}),
    ("200 with a list", 200, [1]),
    ("wamid of the wrong type", 200, {"messages": [{"id": 5}]}),
    ("wamid too long", 200, {"messages": [{"id": "w" * 513}]}),
    ("500 with json and no error", 500, {"ok": False}),
    ("400 with json and no error", 400, {"messages": []}),
]


@pytest.mark.parametrize(("name", "status", "body"), MAYBE, ids=[case[0] for case in MAYBE])
def test_what_may_have_been_taken_is_never_sent_again(name: str, status: int, body: Any) -> None:
    assert isinstance(answer(status, body), MaybeTaken)


NOT_TAKEN = [
    ("200 with an error object", 200, error(131000), ReasonCode.TEMPORARY_FAILURE),
    ("error as a string", 400, {"error": "Invalid token"}, ReasonCode.META_ERROR),
    ("error_data as a string", 400, error(131009, error_data="to is wrong"), ReasonCode.INVALID_CONTENT),
    ("code as a string", 401, error("190"), ReasonCode.SENDER_CREDENTIALS_REJECTED),
    ("5xx with Meta's object and no known code", 503, error(555), ReasonCode.TEMPORARY_FAILURE),
    ("no code at all", 400, {"error": {"message": "?"}}, ReasonCode.META_ERROR),
]


@pytest.mark.parametrize(("name", "status", "body", "code"), NOT_TAKEN, ids=[case[0] for case in NOT_TAKEN])
def test_what_meta_refused_has_a_reason(name: str, status: int, body: Any, code: ReasonCode) -> None:
    outcome = answer(status, body)
    assert isinstance(outcome, NotTaken)
    assert outcome.reason.code is code


def test_taken() -> None:
    body = {"messages": [{"id": "wamid.A", "message_status": "held_for_quality_assessment"}]}
    assert answer(200, body) == Taken("wamid.A", "held_for_quality_assessment")


def test_pair_limit_waits_four_to_the_n() -> None:
    waits = [answer(400, error(131056), attempt).delay.total_seconds() for attempt in (1, 2, 3, 4)]
    assert waits == [1, 4, 16, 64]


@given(st.integers(1, 60), st.floats(0, 0.999))
def test_backoff_grows_and_has_an_end(attempt: int, jitter: float) -> None:
    outcome = read_answer(503, json.dumps(error(131016)).encode(), attempt=attempt, jitter=jitter)
    assert isinstance(outcome, NotTaken)
    assert outcome.waiting_for is Waiting.RETRY
    assert outcome.delay is not None
    assert 0.5 <= outcome.delay.total_seconds() <= 300


def test_retry_after_is_heeded() -> None:
    raw = json.dumps(error(4)).encode()
    outcome = read_answer(429, raw, attempt=1, jitter=0, retry_after_seconds=60)
    assert isinstance(outcome, NotTaken)
    assert outcome.delay is not None
    assert outcome.delay.total_seconds() == 60


@given(st.integers(100, 599), st.binary(max_size=200))
def test_any_answer_has_a_verdict(status: int, body: bytes) -> None:
    assert isinstance(answer(status, body), MaybeTaken | NotTaken | Taken)
