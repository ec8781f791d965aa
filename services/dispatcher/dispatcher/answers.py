"""What an answer of Meta's to POST /messages means for the message. Pure, by table.

The table follows Meta's page "Error codes" (September 2026) as meta-cloud-api.md, 1.2, has it: decide on `code`, never
on title or HTTP status. Only what surely was not taken may ever be sent again. Failures that webhooks tell of a sender
take the same table (`verdict`).
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from enum import StrEnum
from typing import Any

from sendwhy.events import MetaError, Reason, reason
from sendwhy.lenient import json_of
from sendwhy.reasons import CATALOGUE, ReasonCode, reason_for_meta
from sendwhy.values import value_class

from dispatcher.decide import Message, Waiting

WAMID_LENGTH_MAX = 512
RETRY_AFTER_MAX_SECONDS = 3600.0
_MENDED = frozenset(" \ufffd")


class Action(StrEnum):
    RETRY = "retry"
    PACE = "pace"
    PAIR = "pair"
    SYNCING = "syncing"
    HOLD = "hold"
    REJECT = "reject"


class HoldScope(StrEnum):
    """What Meta's refusal is about, and so which senders are held by it. What Meta's events say of an account stands
    apart from what its answers do: each has its own end."""

    SENDER = "sender"
    TOKEN = "token"
    ACCOUNT = "account"
    PORTFOLIO = "portfolio"
    RESTRICTION = "account_restriction"
    BAN = "account_ban"

    @property
    def held(self) -> "HoldScope":
        """As people are told."""
        return HoldScope.ACCOUNT if self in (HoldScope.RESTRICTION, HoldScope.BAN) else self


@value_class
class Rule:
    """What is done about a code; `scope` for those that hold."""

    action: Action
    scope: HoldScope | None = None


# Every code of meta-cloud-api.md, 1.2, and those of 1.3 that pass by themselves (133004, 2494100) or are a sibling of
# one that does (80008). Any other is shown as it came, and tried again only if Meta calls it transient.
RULES: Mapping[int, Rule] = {
    **dict.fromkeys((1, 2, 131000, 131016, 131036, 131057, 133004, 2494100), Rule(Action.RETRY)),
    **dict.fromkeys((4, 613, 80007, 80008, 130429), Rule(Action.PACE)),
    131056: Rule(Action.PAIR),
    134101: Rule(Action.SYNCING),
    **dict.fromkeys((0, 3, 10, 104, 190, *range(200, 300), 131005), Rule(Action.HOLD, HoldScope.TOKEN)),
    **dict.fromkeys((33, 131037, 131045, 131048, 133010), Rule(Action.HOLD, HoldScope.SENDER)),
    # The WhatsApp business account: its policy restriction or lock, its payment method, its terms.
    **dict.fromkeys((368, 131031, 131042, 134011), Rule(Action.HOLD, HoldScope.ACCOUNT)),
    # Messaging limits belong to the portfolio since October 2025.
    131064: Rule(Action.HOLD, HoldScope.PORTFOLIO),
    # 130497 is about the recipient's country and 131063 about marketing templates: other messages may go.
    **dict.fromkeys((130497, 131063), Rule(Action.REJECT)),
    **dict.fromkeys((100, 131008, 131009, 131051, 131055, 134100, 135000), Rule(Action.REJECT)),
    **dict.fromkeys((130403, 130472, 131021, 131026, 131030, 131049, 131050, 131062, 137000), Rule(Action.REJECT)),
    **dict.fromkeys((131047, 131052, 131053), Rule(Action.REJECT)),
    **dict.fromkeys((132000, 132001, 132005, 132007, 132008, 132012, 132015, 132016, 132018), Rule(Action.REJECT)),
    **dict.fromkeys((132068, 132069, 134102), Rule(Action.REJECT)),
}
_UNKNOWN_OBJECT = Rule(Action.HOLD, HoldScope.SENDER)
_WRONG_PROOF = Rule(Action.HOLD, HoldScope.TOKEN)
OUTSIDE_WINDOW = 131047
WINDOW_DOUBTED = timedelta(seconds=5)
RETRY_BASE_SECONDS = 1.0
RETRY_MAX_SECONDS = 300.0
SYNCING_SECONDS = 600.0
PAIR_BASE = 4.0
PAIR_MAX_SECONDS = 4.0**6
# Above so many, waits don't grow any more.
MANY_TRIES = 20
REQUEST_TIMEOUT = 408
TOO_MANY_REQUESTS = 429


@value_class
class Taken:
    wamid: str
    message_status: str | None = None


@value_class
class NotTaken:
    """Surely not taken: it waits for `delay`, or is rejected (None). Where the action is HOLD, `scope` says what is
    held. `asked` is Meta's Retry-After."""

    reason: Reason
    action: Action
    waiting_for: Waiting | None = None
    delay: timedelta | None = None
    scope: HoldScope | None = None
    asked: timedelta = timedelta()

    @property
    def holds_sender(self) -> bool:
        return self.action is Action.HOLD


@value_class
class MaybeTaken:
    """Nobody knows; `cause` is one word for the metric and the evidence. Never sent again by itself."""

    cause: str
    http_status: int | None = None


Outcome = Taken | NotTaken | MaybeTaken
TAKEN_WITH_ERROR = "message id with an error status"
# About Meta as a whole, and not about the message or the sender: overloaded, unavailable, down.
_DOWN = frozenset({2, 131016, 133004})


def is_answered(outcome: Outcome) -> bool:
    """Whether Meta served the call, whatever it said: not in silence, through a proxy's page, or by "I am down"."""
    if isinstance(outcome, NotTaken):
        return outcome.reason.meta is not None and outcome.reason.meta.code not in _DOWN
    return isinstance(outcome, Taken)


def outage(last: Outcome) -> Reason:
    """Why a sender is held while Meta answers nobody."""
    told = last.cause if isinstance(last, MaybeTaken) else last.reason.detail if isinstance(last, NotTaken) else ""
    status = last.http_status if isinstance(last, MaybeTaken) else None
    detail = (
        "Meta doesn't answer. The number waits, tries one message now and then, and goes on by itself"
        f" (the last try: {told}{f', HTTP {status}' if status else ''})"
    )
    return reason(ReasonCode.TEMPORARY_FAILURE, detail, {"last_try": told, "http_status": status})


def read_answer(
    status: int, body: bytes, *, attempt: int, jitter: float, retry_after_seconds: float | None = None
) -> Outcome:
    """The verdict on a whole HTTP answer. `attempt` counts from 1; `jitter` is a random number in [0, 1).

    429 is said before anything is done (RFC 6585), by whomever: without Meta's code it is its number's pace.
    """
    outcome = _by_its_body(status, body, attempt=attempt, jitter=jitter, retry_after_seconds=retry_after_seconds)
    if status != TOO_MANY_REQUESTS or not isinstance(outcome, MaybeTaken) or outcome.cause == TAKEN_WITH_ERROR:
        return outcome
    error = MetaError(title="Too many requests", http_status=status)
    why = reason(ReasonCode.RATE_LIMIT_EXCEEDED, "HTTP 429 without a code of Meta's", {"attempt": attempt}, error)
    return _waits(why, Rule(Action.PACE), attempt, jitter, retry_after_seconds)


def _by_its_body(
    status: int, body: bytes, *, attempt: int, jitter: float, retry_after_seconds: float | None
) -> Outcome:
    """A message id proves that the message was taken, whatever else the answer says. An error without a code refused
    the request if it is an object with a 4xx, or Meta's own with a 5xx; a text, a request that timed out (408) or any
    other may be a proxy's that spoke after Meta.
    """
    answer = answer_object(body)
    if answer is None:
        return MaybeTaken("unreadable answer", status)
    wamid = _wamid(answer)
    if wamid is not None:
        taken = 200 <= status < 300
        return Taken(wamid, _message_status(answer)) if taken else MaybeTaken(TAKEN_WITH_ERROR, status)
    told = answer.get("error")
    error = meta_error(told, status)
    if error is None:
        return MaybeTaken("answer without message id or error", status)
    is_refusal = isinstance(told, dict) and (_refuses(status) or (status >= 500 and _is_metas(told)))
    if error.code is None and not is_refusal:
        return MaybeTaken("error without a code", status)
    transient = told.get("is_transient") if isinstance(told, dict) else None
    return not_taken(
        error,
        attempt=attempt,
        jitter=jitter,
        retry_after_seconds=retry_after_seconds,
        transient=transient if isinstance(transient, bool) else None,
    )


def _refuses(status: int) -> bool:
    return 400 <= status < 500 and status not in (REQUEST_TIMEOUT, TOO_MANY_REQUESTS)


def _is_metas(error: Mapping[str, Any]) -> bool:
    """Whether only Meta writes such an error: with its trace, or one of its types. A message alone, any proxy has."""
    kind = error.get("type")
    return _string(error.get("fbtrace_id")) is not None or (isinstance(kind, str) and kind.endswith("Exception"))


def answer_object(body: bytes) -> Mapping[str, Any] | None:
    """The object that Meta answered with; None where there is none that can be read."""
    try:
        answer = json_of(body)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def meta_error(error: Any, http_status: int | None) -> MetaError | None:
    """Meta's error object as we keep it; a plain string in its place, or in `error_data`, is read too."""
    if isinstance(error, str) and error:
        return MetaError(title=error[:500], http_status=http_status)
    if not isinstance(error, dict):
        return None
    data = error.get("error_data")
    details = data.get("details") if isinstance(data, dict) else data
    return MetaError(
        code=_integer(error.get("code")),
        title=_string(error.get("title") or error.get("message")),
        details=_string(details or error.get("error_user_msg") or error.get("details")),
        subcode=_integer(error.get("error_subcode")),
        http_status=http_status,
        fbtrace_id=_string(error.get("fbtrace_id")),
    )


def not_taken(
    error: MetaError,
    *,
    attempt: int,
    jitter: float,
    retry_after_seconds: float | None = None,
    transient: bool | None = None,
) -> NotTaken:
    rule, code = verdict(error, transient)
    why = reason(code, sentence(code, error), {"attempt": attempt}, error)
    return _waits(why, rule, attempt, jitter, retry_after_seconds)


def _waits(why: Reason, rule: Rule, attempt: int, jitter: float, retry_after_seconds: float | None) -> NotTaken:
    waiting_for, seconds = _wait(rule.action, attempt, jitter)
    asked = min(retry_after_seconds or 0.0, RETRY_AFTER_MAX_SECONDS)
    delay = None if seconds is None else timedelta(seconds=max(seconds, asked))
    return NotTaken(why, rule.action, waiting_for, delay, rule.scope, timedelta(seconds=asked))


def verdict(error: MetaError, transient: bool | None = None) -> tuple[Rule, ReasonCode]:
    """What is done about an error, and its reason. `transient` is Meta's own word on an error without a rule; where it
    is silent, a 5xx passes by itself (reasons.md, TEMPORARY_FAILURE), a 429 asks for a slower pace, and anything else
    is final."""
    if error.code == 100 and error.subcode == 33:
        return _UNKNOWN_OBJECT, ReasonCode.SENDER_NOT_AVAILABLE
    if error.code == 100 and "appsecret_proof" in f"{error.title} {error.details}":
        # Said of our own credentials: to reject a whole campaign for its content would be wrong.
        return _WRONG_PROOF, ReasonCode.SENDER_CREDENTIALS_REJECTED
    status = None if transient is False else error.http_status
    code = reason_for_meta(error.code, subcode=error.subcode, http_status=status)
    rule = RULES.get(error.code) if error.code is not None else None
    if rule is None and code is ReasonCode.META_ERROR and status == TOO_MANY_REQUESTS:
        return Rule(Action.PACE), ReasonCode.RATE_LIMIT_EXCEEDED
    if code is ReasonCode.META_ERROR and error.code is None and status is not None and status >= 500:
        code = ReasonCode.TEMPORARY_FAILURE
    if rule is None:
        passes = transient or code is ReasonCode.TEMPORARY_FAILURE
        rule = Rule(Action.RETRY if passes else Action.REJECT)
    return rule, code


def in_light_of(outcome: Outcome, message: Message) -> Outcome:
    """The verdict with the message's former tries in mind: the n-th refusal for its pair waits 4^n seconds, from 0.
    We only send free-form content into a window that our books call open, and Meta is known to deny that wrongly at
    times: tried once more (meta-cloud-api.md, 1.4)."""
    if not isinstance(outcome, NotTaken) or outcome.reason.meta is None:
        return outcome
    code = outcome.reason.meta.code
    before = sum(one.get("code") == code for one in message.tries)
    if outcome.action is Action.PAIR:
        _, seconds = _wait(Action.PAIR, before + 1, 0.0)
        return replace(outcome, delay=max(timedelta(seconds=seconds or 0.0), outcome.asked))
    if code == OUTSIDE_WINDOW and message.template is None and not before:
        return replace(outcome, action=Action.RETRY, waiting_for=Waiting.WINDOW, delay=WINDOW_DOUBTED)
    return outcome


def code_label(error: MetaError | None) -> str:
    """The code as a metric's label; those that no rule of ours knows count together."""
    known = error is not None and error.code in RULES
    return str(error.code) if known and error else "other"


def _wait(action: Action, attempt: int, jitter: float) -> tuple[Waiting | None, float | None]:
    tries = min(attempt, MANY_TRIES) - 1
    backoff = min(RETRY_MAX_SECONDS, RETRY_BASE_SECONDS * 2.0**tries) * (0.5 + jitter / 2)
    if action is Action.RETRY:
        return Waiting.RETRY, backoff
    if action is Action.PACE:
        return Waiting.RATE, backoff
    if action is Action.PAIR:
        return Waiting.PAIR, min(PAIR_MAX_SECONDS, PAIR_BASE**tries)
    if action is Action.SYNCING:
        return Waiting.SYNC, SYNCING_SECONDS
    if action is Action.HOLD:
        return Waiting.HOLD, 0.0
    return None, None


def unusable_token() -> NotTaken:
    """A token that no request can carry: nothing was sent, and its senders wait for another one."""
    why = reason(ReasonCode.SENDER_CREDENTIALS_REJECTED, "The stored token has a line end in it")
    return NotTaken(why, Action.HOLD, Waiting.HOLD, timedelta(), HoldScope.TOKEN)


def unreachable(*, attempt: int, jitter: float, cause: str) -> NotTaken:
    """No connection was ever made, so nothing was sent: tried again."""
    why = reason(ReasonCode.TEMPORARY_FAILURE, f"Meta could not be reached: {cause}", {"attempt": attempt})
    waiting_for, seconds = _wait(Action.RETRY, attempt, jitter)
    assert seconds is not None
    return NotTaken(why, Action.RETRY, waiting_for, timedelta(seconds=seconds))


def sentence(code: ReasonCode, error: MetaError) -> str:
    """Meta's words where it has some, else ours."""
    number = f" (code {error.code})" if error.code is not None else ""
    words = error.details or error.title
    return f"Meta says: {words}{number}" if words else f"{CATALOGUE[code].title}{number}"


def _wamid(answer: Mapping[str, Any]) -> str | None:
    first = _first_message(answer)
    wamid = first.get("id")
    if not isinstance(wamid, str) or len(wamid) > WAMID_LENGTH_MAX:
        return None
    # What had to be mended within it would be another id.
    return wamid if wamid.isprintable() and wamid and not _MENDED.intersection(wamid) else None


def _message_status(answer: Mapping[str, Any]) -> str | None:
    return _string(_first_message(answer).get("message_status"))


def _first_message(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    messages = answer.get("messages")
    first = messages[0] if isinstance(messages, list) and messages else None
    return first if isinstance(first, dict) else {}


def _integer(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and abs(value) < 2**53:
        return value
    return int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 15 else None


def _string(value: Any) -> str | None:
    return value[:1000] if isinstance(value, str) and value else None
