"""What an answer of Meta's to POST /messages means for the message. Pure, by table.

The table follows Meta's page "Error codes" (September 2026) as meta-cloud-api.md, 1.2, has it: decide on `code`, never
on title or HTTP status. Only what surely was not taken may ever be sent again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any

from pydantic import JsonValue, TypeAdapter, ValidationError
from sendwhy.events import MetaError, Reason, reason
from sendwhy.reasons import CATALOGUE, ReasonCode, reason_for_meta

from dispatcher.decide import Waiting

_JSON: TypeAdapter[Any] = TypeAdapter(dict[str, JsonValue])
WAMID_LENGTH_MAX = 512


class Action(StrEnum):
    RETRY = "retry"
    PACE = "pace"
    PAIR = "pair"
    SYNCING = "syncing"
    HOLD = "hold"
    REJECT = "reject"


# Codes that pass by themselves, each with how the message waits. Whatever is not listed is decided by its reason.
_ACTIONS: Mapping[int, Action] = {
    1: Action.RETRY,
    2: Action.RETRY,
    131000: Action.RETRY,
    131016: Action.RETRY,
    131036: Action.RETRY,
    131057: Action.RETRY,
    133004: Action.RETRY,
    4: Action.PACE,
    613: Action.PACE,
    80007: Action.PACE,
    130429: Action.PACE,
    131056: Action.PAIR,
    134101: Action.SYNCING,
    # About the recipient's country, not about the sender as a whole.
    130497: Action.REJECT,
    131063: Action.REJECT,
}
_HOLDING = frozenset(
    {
        ReasonCode.SENDER_NOT_AVAILABLE,
        ReasonCode.SENDER_CREDENTIALS_REJECTED,
        ReasonCode.META_PAYMENT_ISSUE,
        ReasonCode.QUALITY_RATING_TOO_LOW,
        ReasonCode.MESSAGING_LIMIT_REACHED,
    }
)
RETRY_BASE_SECONDS = 1.0
RETRY_MAX_SECONDS = 300.0
SYNCING_SECONDS = 600.0
PAIR_BASE = 4.0
PAIR_MAX_SECONDS = 4.0**6


@dataclass(frozen=True, slots=True)
class Taken:
    wamid: str
    message_status: str | None = None


@dataclass(frozen=True, slots=True)
class NotTaken:
    """Surely not taken: it waits for `delay` (and, if `holds_sender`, its sender does), or is rejected (None)."""

    reason: Reason
    action: Action
    waiting_for: Waiting | None = None
    delay: timedelta | None = None

    @property
    def holds_sender(self) -> bool:
        return self.action is Action.HOLD


@dataclass(frozen=True, slots=True)
class MaybeTaken:
    """Nobody knows; `cause` is one word for the metric and the evidence. Never sent again by itself."""

    cause: str
    http_status: int | None = None


Outcome = Taken | NotTaken | MaybeTaken


def read_answer(
    status: int, body: bytes, *, attempt: int, jitter: float, retry_after_seconds: float | None = None
) -> Outcome:
    """The verdict on a whole HTTP answer. `attempt` counts from 1; `jitter` is a random number in [0, 1)."""
    try:
        answer = _JSON.validate_json(body)
    except ValidationError:
        return MaybeTaken("unreadable answer", status)
    told = answer.get("error")
    error = meta_error(told, status)
    if error is not None:
        transient = isinstance(told, dict) and told.get("is_transient") is True
        return not_taken(
            error, attempt=attempt, jitter=jitter, retry_after_seconds=retry_after_seconds, transient=transient
        )
    wamid = _wamid(answer)
    if 200 <= status < 300 and wamid:
        return Taken(wamid, _message_status(answer))
    return MaybeTaken("answer without message id or error", status)


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
    transient: bool = False,
) -> NotTaken:
    code = reason_for_meta(error.code, subcode=error.subcode, http_status=error.http_status)
    why = reason(code, sentence(code, error), {"attempt": attempt}, error)
    action = _action(error, code, transient)
    waiting_for, seconds = _wait(action, attempt, jitter)
    if retry_after_seconds is not None and seconds is not None:
        seconds = max(seconds, min(retry_after_seconds, 3600.0))
    return NotTaken(why, action, waiting_for, None if seconds is None else timedelta(seconds=seconds))


def _action(error: MetaError, code: ReasonCode, transient: bool) -> Action:
    listed = _ACTIONS.get(error.code) if error.code is not None else None
    if listed is not None:
        return listed
    if code in _HOLDING:
        return Action.HOLD
    if code is ReasonCode.TEMPORARY_FAILURE or (transient and code is ReasonCode.META_ERROR):
        return Action.RETRY
    return Action.REJECT


def _wait(action: Action, attempt: int, jitter: float) -> tuple[Waiting | None, float | None]:
    backoff = min(RETRY_MAX_SECONDS, RETRY_BASE_SECONDS * 2.0 ** (attempt - 1)) * (0.5 + jitter / 2)
    if action is Action.RETRY:
        return Waiting.RETRY, backoff
    if action is Action.PACE:
        return Waiting.RATE, backoff
    if action is Action.PAIR:
        return Waiting.PAIR, min(PAIR_MAX_SECONDS, PAIR_BASE ** (attempt - 1))
    if action is Action.SYNCING:
        return Waiting.SYNC, SYNCING_SECONDS
    if action is Action.HOLD:
        return Waiting.HOLD, 0.0
    return None, None


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
    return wamid if isinstance(wamid, str) and 0 < len(wamid) <= WAMID_LENGTH_MAX and wamid.isprintable() else None


def _message_status(answer: Mapping[str, Any]) -> str | None:
    return _string(_first_message(answer).get("message_status"))


def _first_message(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    messages = answer.get("messages")
    first = messages[0] if isinstance(messages, list) and messages else None
    return first if isinstance(first, dict) else {}


def _integer(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int) and abs(value) < 2**53:
        return value
    return int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 15 else None


def _string(value: Any) -> str | None:
    return value[:1000] if isinstance(value, str) and value else None
