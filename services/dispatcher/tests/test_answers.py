"""Every code of meta-cloud-api.md, 1.2 and 1.3, and every shape that an answer can have."""

import json
from datetime import timedelta
from typing import Any

import pytest
from dispatcher.answers import (
    RULES,
    Action,
    HoldScope,
    MaybeTaken,
    NotTaken,
    Outcome,
    Taken,
    code_label,
    in_light_of,
    read_answer,
)
from dispatcher.decide import Message, Waiting
from dispatcher_cases import message, text_content
from hypothesis import given
from hypothesis import strategies as st
from sendwhy.events import MetaError, Purpose
from sendwhy.reasons import CATALOGUE, ReasonCode, Service


def answer(status: int, body: Any, attempt: int = 1, retry_after_seconds: float | None = None) -> Outcome:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_answer(status, raw, attempt=attempt, jitter=0.5, retry_after_seconds=retry_after_seconds)


def refused(status: int, body: Any, **rest: Any) -> NotTaken:
    outcome = answer(status, body, **rest)
    assert isinstance(outcome, NotTaken)
    return outcome


def error(code: Any, **rest: Any) -> dict[str, Any]:
    return {"error": {"message": f"(#{code}) x", "type": "OAuthException", "code": code, "fbtrace_id": "A"} | rest}


# The codes of the table in meta-cloud-api.md, 1.2, in its order (200 stands for the range too).
FACTS = """
0 1 2 3 4 10 33 100 104 190 200 368 613 80007 130403 130429 130472 130497 131000 131005 131008 131009 131016 131021
131026 131030 131031 131036 131037 131042 131045 131047 131048 131049 131050 131051 131052 131053 131055 131056 131057
131062 131063 131064 132000 132001 132005 132007 132008 132012 132015 132016 132018 132068 132069 133010 134011 134100
134101 134102 135000 137000
"""
RETRY, PACE, PAIR, SYNCING, HOLD, REJECT = Action
SENDER, TOKEN, ACCOUNT, PORTFOLIO = HoldScope.SENDER, HoldScope.TOKEN, HoldScope.ACCOUNT, HoldScope.PORTFOLIO
R = ReasonCode
CODES: list[tuple[int, Action, HoldScope | None, ReasonCode]] = [
    (0, HOLD, TOKEN, R.SENDER_CREDENTIALS_REJECTED),
    (1, RETRY, None, R.TEMPORARY_FAILURE),
    (2, RETRY, None, R.TEMPORARY_FAILURE),
    (3, HOLD, TOKEN, R.SENDER_CREDENTIALS_REJECTED),
    (4, PACE, None, R.RATE_LIMIT_EXCEEDED),
    (10, HOLD, TOKEN, R.SENDER_CREDENTIALS_REJECTED),
    (33, HOLD, SENDER, R.SENDER_NOT_AVAILABLE),
    (100, REJECT, None, R.INVALID_CONTENT),
    (104, HOLD, TOKEN, R.SENDER_CREDENTIALS_REJECTED),
    (190, HOLD, TOKEN, R.SENDER_CREDENTIALS_REJECTED),
    *((code, HOLD, TOKEN, R.SENDER_CREDENTIALS_REJECTED) for code in range(200, 300)),
    (368, HOLD, ACCOUNT, R.SENDER_NOT_AVAILABLE),
    (613, PACE, None, R.RATE_LIMIT_EXCEEDED),
    (80007, PACE, None, R.RATE_LIMIT_EXCEEDED),
    (130403, REJECT, None, R.SENDER_BLOCKED_RECIPIENT),
    (130429, PACE, None, R.RATE_LIMIT_EXCEEDED),
    (130472, REJECT, None, R.RECIPIENT_IN_META_EXPERIMENT),
    (130497, REJECT, None, R.SENDER_NOT_AVAILABLE),
    (131000, RETRY, None, R.TEMPORARY_FAILURE),
    (131005, HOLD, TOKEN, R.SENDER_CREDENTIALS_REJECTED),
    (131008, REJECT, None, R.INVALID_CONTENT),
    (131009, REJECT, None, R.INVALID_CONTENT),
    (131016, RETRY, None, R.TEMPORARY_FAILURE),
    (131021, REJECT, None, R.RECIPIENT_NOT_ALLOWED),
    (131026, REJECT, None, R.RECIPIENT_NOT_ON_WHATSAPP),
    (131030, REJECT, None, R.RECIPIENT_NOT_ALLOWED),
    (131031, HOLD, ACCOUNT, R.SENDER_NOT_AVAILABLE),
    (131036, RETRY, None, R.TEMPORARY_FAILURE),
    (131037, HOLD, SENDER, R.SENDER_NOT_AVAILABLE),
    (131042, HOLD, ACCOUNT, R.META_PAYMENT_ISSUE),
    (131045, HOLD, SENDER, R.SENDER_NOT_AVAILABLE),
    (131047, REJECT, None, R.OUTSIDE_24_HOUR_WINDOW),
    (131048, HOLD, SENDER, R.QUALITY_RATING_TOO_LOW),
    (131049, REJECT, None, R.MARKETING_CAP_REACHED),
    (131050, REJECT, None, R.RECIPIENT_STOPPED_MARKETING),
    (131051, REJECT, None, R.INVALID_CONTENT),
    (131052, REJECT, None, R.MEDIA_FAILED),
    (131053, REJECT, None, R.MEDIA_FAILED),
    (131055, REJECT, None, R.INVALID_CONTENT),
    (131056, PAIR, None, R.RATE_LIMIT_EXCEEDED),
    (131057, RETRY, None, R.TEMPORARY_FAILURE),
    (131062, REJECT, None, R.RECIPIENT_NOT_ALLOWED),
    (131063, REJECT, None, R.SENDER_NOT_AVAILABLE),
    (131064, HOLD, PORTFOLIO, R.MESSAGING_LIMIT_REACHED),
    (132000, REJECT, None, R.TEMPLATE_PARAMETERS_MISMATCH),
    (132001, REJECT, None, R.TEMPLATE_NOT_APPROVED),
    (132005, REJECT, None, R.TEMPLATE_PARAMETERS_MISMATCH),
    (132007, REJECT, None, R.TEMPLATE_POLICY_VIOLATION),
    (132008, REJECT, None, R.TEMPLATE_PARAMETERS_MISMATCH),
    (132012, REJECT, None, R.TEMPLATE_PARAMETERS_MISMATCH),
    (132015, REJECT, None, R.TEMPLATE_NOT_APPROVED),
    (132016, REJECT, None, R.TEMPLATE_NOT_APPROVED),
    (132018, REJECT, None, R.TEMPLATE_PARAMETERS_MISMATCH),
    (132068, REJECT, None, R.TEMPLATE_POLICY_VIOLATION),
    (132069, REJECT, None, R.TEMPLATE_POLICY_VIOLATION),
    (133010, HOLD, SENDER, R.SENDER_NOT_AVAILABLE),
    (134011, HOLD, ACCOUNT, R.META_PAYMENT_ISSUE),
    (134100, REJECT, None, R.INVALID_CONTENT),
    (134101, SYNCING, None, R.TEMPLATE_NOT_APPROVED),
    (134102, REJECT, None, R.TEMPLATE_NOT_APPROVED),
    (135000, REJECT, None, R.INVALID_CONTENT),
    (137000, REJECT, None, R.RECIPIENT_NOT_ALLOWED),
    # Of 1.3: what passes by itself, and the sibling of 80007.
    (133004, RETRY, None, R.TEMPORARY_FAILURE),
    (2494100, RETRY, None, R.META_ERROR),
    (80008, PACE, None, R.META_ERROR),
]
# The rest of 1.3 doesn't belong to a send: shown as it came.
OF_NO_SEND = [
    *(498, 470, 472, 506, 1026, 131001, 131002, 131006, 131014, 131020, 131035, 131041, 131043, 131059, 131060),
    *(131201, 131215, 133000, 133001, 133005, 133006, 133007, 133008, 133009, 133015, 133016, 136025, 138000, 138018),
    *(139000, 139004, 139100, 139103, 141002, 147001, 147005, 200005, 200007, 1752041, 2388012, 2388019, 2388039),
    *(2388040, 2388047, 2388072, 2388073, 2388091, 2388093, 2388103, 2388293, 2388299, 2593107, 2593108),
]
WAITS_FOR = {
    RETRY: Waiting.RETRY,
    PACE: Waiting.RATE,
    PAIR: Waiting.PAIR,
    SYNCING: Waiting.SYNC,
    HOLD: Waiting.HOLD,
    REJECT: None,
}


def test_the_table_has_every_code_of_the_facts() -> None:
    assert {int(code) for code in FACTS.split()} - {code for code, *_ in CODES} == set()
    assert set(RULES) == {code for code, *_ in CODES}


# Neither the HTTP status nor the title decides (meta-cloud-api.md, 0.3).
@pytest.mark.parametrize("status", [200, 400, 403, 429, 500, 503])
@pytest.mark.parametrize(("code", "action", "scope", "why"), CODES, ids=[str(case[0]) for case in CODES])
def test_each_code_has_its_action_its_scope_and_its_reason(
    code: int, action: Action, scope: HoldScope | None, why: ReasonCode, status: int
) -> None:
    if why is R.META_ERROR and status >= 500:
        why = R.TEMPORARY_FAILURE
    outcome = refused(status, error(code))
    assert (outcome.action, outcome.scope, outcome.reason.code) == (action, scope, why)
    assert outcome.waiting_for is WAITS_FOR[action]
    assert outcome.holds_sender == (outcome.scope is not None)
    assert Service.DISPATCHER in CATALOGUE[outcome.reason.code].services
    assert outcome.reason.meta is not None
    assert (outcome.reason.meta.code, outcome.reason.meta.http_status) == (code, status)
    assert code_label(outcome.reason.meta) == str(code)


@pytest.mark.parametrize("code", [*OF_NO_SEND, 987654, -1])
def test_an_unlisted_code_is_shown_as_it_came_and_tried_again_only_if_meta_calls_it_transient(code: int) -> None:
    shown = refused(400, error(code, error_data={"details": "the moon is full"}))
    assert shown.reason.code is ReasonCode.META_ERROR
    assert shown.reason.meta == MetaError(
        code=code, title=f"(#{code}) x", details="the moon is full", http_status=400, fbtrace_id="A"
    )
    assert shown.action is REJECT
    assert code_label(shown.reason.meta) == "other"
    assert refused(400, error(code, is_transient=True)).action is RETRY
    assert refused(500, error(code, is_transient=False)).action is REJECT
    # Silent on a 5xx: as reasons.md has it, it passes.
    assert refused(500, error(code)).action is RETRY
    # Told to slow down, it waits in the pace, with Meta's words; unless Meta says that waiting doesn't help.
    slow = refused(429, error(code))
    assert (slow.reason.code, slow.action, slow.waiting_for) == (R.RATE_LIMIT_EXCEEDED, PACE, Waiting.RATE)
    assert slow.reason.meta is not None
    assert slow.reason.meta.code == code
    assert refused(429, error(code, is_transient=False)).action is REJECT


def test_an_unlisted_code_of_the_template_range_is_about_the_content() -> None:
    assert refused(400, error(132999)).reason.code is ReasonCode.INVALID_CONTENT
    assert refused(400, error(132999)).action is REJECT


def test_an_unknown_number_id_is_about_the_sender() -> None:
    outcome = refused(400, error(100, error_subcode=33, type="GraphMethodException"))
    assert (outcome.reason.code, outcome.scope) == (ReasonCode.SENDER_NOT_AVAILABLE, SENDER)


@pytest.mark.parametrize("title", ["Invalid appsecret_proof provided in the API argument", "... appsecret_proof ..."])
def test_a_wrong_proof_holds_and_rejects_no_campaign_for_its_content(title: str) -> None:
    outcome = refused(400, error(100, message=title, type="GraphMethodException"))
    assert (outcome.action, outcome.scope) == (HOLD, TOKEN)
    assert outcome.reason.code is ReasonCode.SENDER_CREDENTIALS_REJECTED


MESSAGE = {"messages": [{"id": "wamid.A"}]}
MAYBE: list[tuple[str, int, Any]] = [
    ("html from a proxy", 502, b"<html>Bad Gateway</html>"),
    ("html with 200", 200, b"<html>ok</html>"),
    ("html with 403", 403, b"<html>blocked by a firewall</html>"),
    ("truncated json", 200, b'{"messages":[{"id":"wam'),
    ("truncated error", 400, b'{"error":{"code":1310'),
    ("200 with nothing", 200, b""),
    ("204", 204, b""),
    ("400 with nothing", 400, b""),
    ("200 with an empty object", 200, {}),
    ("200 with empty messages", 200, {"messages": []}),
    ("200 with a list", 200, [1]),
    ("200 with a string", 200, '"ok"'),
    ("messages is an object", 200, {"messages": {"id": "wamid.A"}}),
    ("wamid of the wrong type", 200, {"messages": [{"id": 5}]}),
    ("wamid empty", 200, {"messages": [{"id": ""}]}),
    ("wamid with a blank", 200, {"messages": [{"id": "wamid. A"}]}),
    ("wamid with a NUL", 200, {"messages": [{"id": "wamid.\0"}]}),
    ("wamid too long", 200, {"messages": [{"id": "w" * 513}]}),
    ("500 with json and no error", 500, {"ok": False}),
    ("400 with json and no error", 400, {"messages": []}),
    ("an error of null", 500, {"error": None}),
    ("5xx whose error is a string: a proxy's", 502, {"error": "bad gateway"}),
    ("5xx whose error has no code: a proxy's", 503, {"error": {"message": "upstream connect error"}}),
    ("5xx whose error has a type of a proxy's", 503, {"error": {"type": "server_error", "message": "?"}}),
    ("5xx whose code is no number", 503, {"error": {"code": "unavailable"}}),
    ("200 whose error is a string", 200, {"error": "?"}),
    ("200 whose error has no code", 200, {"error": {"message": "?"}}),
    ("a message id and an error status", 400, MESSAGE | error(131009)),
    ("a message id and a 500", 500, MESSAGE),
    ("4xx whose error is a string: a proxy's", 400, {"error": "Invalid token"}),
    ("408 whose error is a string", 408, {"error": "Request Timeout"}),
    ("408 whose error has no code", 408, {"error": {"message": "timeout"}}),
    ("a message id and a 429", 429, MESSAGE),
    ("informational", 101, b""),
    ("a redirect with Meta's words", 302, {"error": "moved"}),
    ("utf-16", 400, json.dumps(error(131009)).encode("utf-16")),
]


@pytest.mark.parametrize(("name", "status", "body"), MAYBE, ids=[case[0] for case in MAYBE])
def test_what_may_have_been_taken_is_never_sent_again(name: str, status: int, body: Any) -> None:
    assert isinstance(answer(status, body), MaybeTaken)


NOT_TAKEN: list[tuple[str, int, Any, ReasonCode, Action]] = [
    ("200 with an error object", 200, error(131000), R.TEMPORARY_FAILURE, RETRY),
    ("200 with an error and empty messages", 200, {"messages": []} | error(131009), R.INVALID_CONTENT, REJECT),
    ("error_data as a string", 400, error(131009, error_data="to is wrong"), R.INVALID_CONTENT, REJECT),
    ("error_data as a list", 400, error(131009, error_data=["to"]), R.INVALID_CONTENT, REJECT),
    ("code as a string", 401, error("190"), R.SENDER_CREDENTIALS_REJECTED, HOLD),
    ("code as a fraction", 401, error(190.0), R.SENDER_CREDENTIALS_REJECTED, HOLD),
    ("5xx with Meta's object and no known code", 503, error(555), R.TEMPORARY_FAILURE, RETRY),
    (
        "5xx with Meta's object and no code",
        500,
        {"error": {"message": "Retry", "fbtrace_id": "F"}},
        R.TEMPORARY_FAILURE,
        RETRY,
    ),
    ("5xx with Meta's type and no code", 503, {"error": {"type": "OAuthException"}}, R.TEMPORARY_FAILURE, RETRY),
    ("no code at all", 400, {"error": {"message": "?"}}, R.META_ERROR, REJECT),
    ("an empty error", 400, {"error": {}}, R.META_ERROR, REJECT),
    ("a code beyond all numbers", 400, error(10**30), R.META_ERROR, REJECT),
    ("a code that is true", 400, error(True), R.META_ERROR, REJECT),
    ("fields that nobody knows", 400, error(131009, planet="Mars") | {"more": [1]}, R.INVALID_CONTENT, REJECT),
    ("a byte order mark", 400, b"\xef\xbb\xbf" + json.dumps(error(131009)).encode(), R.INVALID_CONTENT, REJECT),
]


@pytest.mark.parametrize(("name", "status", "body", "code", "action"), NOT_TAKEN, ids=[case[0] for case in NOT_TAKEN])
def test_what_meta_refused_has_a_reason(name: str, status: int, body: Any, code: ReasonCode, action: Action) -> None:
    outcome = refused(status, body)
    assert (outcome.reason.code, outcome.action) == (code, action)


def test_metas_words_are_kept_without_fbtrace_id_and_with_error_data_as_a_string() -> None:
    told = {"message": "(#131009) x", "code": 131009, "error_data": "to is wrong"}
    meta = refused(400, {"error": told}).reason.meta
    assert meta == MetaError(code=131009, title="(#131009) x", details="to is wrong", http_status=400)


@pytest.mark.parametrize("status", [None, "accepted", "held_for_quality_assessment", "paused", "bewitched"])
def test_a_message_id_is_taken_whatever_its_status(status: str | None) -> None:
    told = {"id": "wamid.A"} | ({"message_status": status} if status else {})
    assert answer(200, {"messages": [told], "planet": "Mars"}) == Taken("wamid.A", status)


def test_a_message_id_beats_an_error_beside_it() -> None:
    assert answer(200, MESSAGE | error(131000)) == Taken("wamid.A")
    assert answer(200, MESSAGE | {"error": "?"}) == Taken("wamid.A")


def tried(*codes: int, free_form: bool = True) -> Message:
    content = text_content() if free_form else None
    tries = tuple({"code": code} for code in codes)
    return message(content, purpose=Purpose.CONVERSATION, tries=tries, attempts=len(tries))


def test_a_pair_waits_four_to_the_n_of_its_own_refusals() -> None:
    def delay(*codes: int, **rest: Any) -> float:
        outcome = in_light_of(refused(400, error(131056), attempt=len(codes) + 1, **rest), tried(*codes))
        assert isinstance(outcome, NotTaken)
        assert outcome.delay is not None
        return outcome.delay.total_seconds()

    assert [delay(*[131056] * refusals) for refusals in range(4)] == [1, 4, 16, 64]
    assert delay(131016, 131016, 130429, 131056) == 4
    assert delay(*[131056] * 20) == 4096
    assert delay(131056, retry_after_seconds=60) == 60


def test_a_window_that_our_books_call_open_is_doubted_once() -> None:
    told = refused(400, error(131047))
    again = in_light_of(told, tried(131016))
    assert isinstance(again, NotTaken)
    assert (again.waiting_for, again.delay) == (Waiting.WINDOW, timedelta(seconds=5))
    assert in_light_of(told, tried(131047)) is told
    assert in_light_of(told, tried(free_form=False)) is told
    assert told.reason.code is ReasonCode.OUTSIDE_24_HOUR_WINDOW


@given(st.integers(1, 10**6), st.floats(0, 0.999))
def test_backoff_grows_and_has_an_end(attempt: int, jitter: float) -> None:
    outcome = read_answer(503, json.dumps(error(131016)).encode(), attempt=attempt, jitter=jitter)
    assert isinstance(outcome, NotTaken)
    assert outcome.waiting_for is Waiting.RETRY
    assert outcome.delay is not None
    assert 0.5 <= outcome.delay.total_seconds() <= 300


def test_metas_words_without_a_code_are_kept() -> None:
    words = "An unexpected error has occurred. Please retry your request later."
    body = {"error": {"message": words, "type": "OAuthException", "is_transient": True, "fbtrace_id": "F"}}
    outcome = refused(500, body)
    assert (outcome.action, outcome.waiting_for) == (RETRY, Waiting.RETRY)
    assert outcome.reason.meta == MetaError(title=words, http_status=500, fbtrace_id="F")
    assert words in outcome.reason.detail


@pytest.mark.parametrize("code", [4, 130429, 131016, 131056])
def test_retry_after_is_heeded_and_bounded(code: int) -> None:
    assert refused(429, error(code), retry_after_seconds=60).delay == timedelta(seconds=60)
    assert refused(429, error(code), retry_after_seconds=10**6).delay == timedelta(hours=1)


@pytest.mark.parametrize(
    "body", [b"<html>slow down</html>", b"", {}, {"error": "Too Many Requests"}, {"error": {"message": "slow down"}}]
)
def test_who_is_told_429_by_anybody_waits_as_long_as_asked(body: Any) -> None:
    outcome = refused(429, body, retry_after_seconds=30)
    assert (outcome.reason.code, outcome.action) == (R.RATE_LIMIT_EXCEEDED, Action.PACE)
    assert (outcome.waiting_for, outcome.delay) == (Waiting.RATE, timedelta(seconds=30))


@given(st.integers(100, 599), st.binary(max_size=200))
def test_any_answer_has_a_verdict(status: int, body: bytes) -> None:
    assert isinstance(answer(status, body), MaybeTaken | NotTaken | Taken)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["code", "id", "x"]), inner),
    max_leaves=8,
)


@given(st.integers(200, 599), JSON, JSON)
def test_any_error_and_any_messages_have_a_verdict(status: int, told: Any, messages: Any) -> None:
    outcome = answer(status, {"error": told, "messages": messages})
    if isinstance(outcome, NotTaken) and outcome.action is not REJECT:
        assert outcome.reason.meta is not None
        assert outcome.reason.meta.code is not None or status == 429


@pytest.mark.parametrize("bad", [rb"\ud83d", b"a\nb", b"\xff", rb"\u0000"])
def test_one_bad_character_costs_no_answer(bad: bytes) -> None:
    outcome = answer(400, b'{"error": {"code": 131026, "message": "' + bad + b'"}}')
    assert isinstance(outcome, NotTaken)
    assert outcome.reason.meta is not None
    assert outcome.reason.meta.code == 131026
    taken = answer(200, b'{"contacts": [{"input": "' + bad + b'"}], "messages": [{"id": "wamid.A"}]}')
    assert taken == Taken("wamid.A")


def test_an_id_with_a_bad_character_in_it_names_no_message() -> None:
    assert isinstance(answer(200, b'{"messages": [{"id": "wamid.\xff"}]}'), MaybeTaken)
