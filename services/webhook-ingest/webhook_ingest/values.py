"""Single values of a webhook, read tolerantly: what can't be read is None, or what stands in for it; nothing raises
but `wamid_of`, which says ValueError."""

import re
from datetime import datetime, timedelta

from pydantic import JsonValue, TypeAdapter
from sendwhy.events import MetaError, Reason, reason
from sendwhy.lenient import identifier, line
from sendwhy.moments import told_time
from sendwhy.reasons import ReasonCode, reason_for_meta

TEXT_LENGTH_MAX = 64 * 1024
WAMID_LENGTH_MAX = 512
DETAIL_LENGTH_MAX = 500
ERROR_CODE_MAX = 2**31
MORE_ERRORS_MAX = 10
ERRORS_BYTES_MAX = 16 * 1024
ERROR_KEYS = frozenset({"code", "title", "message", "error_data", "details", "error_subcode", "href"})
ERROR_DATA_KEYS = frozenset({"messaging_product", "details"})
# Meta's clock and ours: beyond this a time ahead of ours is a mistake. It must neither outrank what comes later nor
# keep a window open for more than its 24 hours.
AHEAD_MAX = timedelta(minutes=5)

Fragment = dict[str, JsonValue]

JSON: TypeAdapter[JsonValue] = TypeAdapter(JsonValue)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_CODE = re.compile(r"\s*#?([0-9]{1,10})\s*")
_NUL = re.compile("\x00")


def moment_of(value: JsonValue, observed: datetime) -> datetime:
    """The told time, or when we observed it where that can't be."""
    told = told_time(value)
    return told if told is not None and told <= observed + AHEAD_MAX else observed


def reason_of(errors: JsonValue) -> tuple[Reason, bool]:
    """The reason for a `failed` by its first error with a code, and whether a code is new to the catalogue or none."""
    entries = error_entries(errors)
    first = next((entry for entry in entries if _code(entry) is not None), entries[0] if entries else None)
    if first is None:
        return reason(ReasonCode.META_ERROR, "Meta says that the message failed, and gives no cause."), False
    meta = _meta_error(first)
    code = reason_for_meta(meta.code, subcode=meta.subcode)
    told = meta.details or meta.title or "no text"
    others: list[JsonValue] = [_code(entry) for entry in entries[:MORE_ERRORS_MAX] if entry is not first]
    evidence: Fragment = {"other_codes": others} if others else {}
    detail = f"Meta: {told}" + (f" (code {meta.code})" if meta.code is not None else "")
    is_new = meta.code is not None and code is ReasonCode.META_ERROR
    return reason(code, detail, evidence, meta), is_new or any(_is_odd_code(entry) for entry in entries)


def untold_errors(errors: JsonValue) -> JsonValue:
    """The errors as they came where the reason by them tells less; None where it tells all. What is very long is cut,
    as a text."""
    several = errors if isinstance(errors, list) else [errors]
    entries = error_entries(errors)
    # Of further errors the reason has the codes alone.
    is_told = all(entry.keys() <= {"code"} for entry in entries[1:])
    if is_told and len(several) == len(entries) <= MORE_ERRORS_MAX and all(map(_is_plain, entries)):
        return None
    written = JSON.dump_json(errors)
    return errors if len(written) <= ERRORS_BYTES_MAX else written[:ERRORS_BYTES_MAX].decode(errors="ignore")


def has_new_error_keys(errors: JsonValue) -> bool:
    return any(
        not entry.keys() <= ERROR_KEYS or not object_of(entry.get("error_data")).keys() <= ERROR_DATA_KEYS
        for entry in error_entries(errors)
    )


def _is_plain(entry: Fragment) -> bool:
    """Whether `_meta_error` tells all of it. `href` is always the same page of Meta's."""
    data, title = entry.get("error_data"), entry.get("title")
    details = data.get("details") if isinstance(data, dict) else data
    texts = (title, entry.get("message"), details, entry.get("details"))
    return (
        not has_new_error_keys(entry)
        and not _is_odd_code(entry)
        and all(text is None or (isinstance(text, str) and len(text) <= DETAIL_LENGTH_MAX) for text in texts)
        and (not title or entry.get("message") in (None, title))
        and (not details or entry.get("details") in (None, details))
        and (entry.get("error_subcode") is None or _number(entry["error_subcode"]) is not None)
    )


def _is_odd_code(entry: Fragment) -> bool:
    return entry.get("code") is not None and _code(entry) is None


def error_entries(errors: JsonValue) -> list[Fragment]:
    """The errors that can be read; Meta's calls carry a single one without a list."""
    several = [errors] if isinstance(errors, dict) else list_of(errors)
    return [entry for entry in several if isinstance(entry, dict)]


def _meta_error(entry: Fragment) -> MetaError:
    data = entry.get("error_data")
    details = data.get("details") if isinstance(data, dict) else data
    return MetaError(
        code=_code(entry),
        title=line(entry.get("title") or entry.get("message"), DETAIL_LENGTH_MAX),
        details=line(details or entry.get("details"), DETAIL_LENGTH_MAX),
        subcode=_number(entry.get("error_subcode")),
    )


def _code(entry: Fragment) -> int | None:
    return _number(entry.get("code"))


def _number(code: JsonValue) -> int | None:
    if isinstance(code, str) and (told := _CODE.fullmatch(code)):
        code = int(told[1])
    if isinstance(code, float) and code.is_integer():
        code = int(code)
    is_number = isinstance(code, int) and not isinstance(code, bool)
    return code if is_number and isinstance(code, int) and abs(code) < ERROR_CODE_MAX else None


def object_of(value: JsonValue) -> Fragment:
    return value if isinstance(value, dict) else {}


def list_of(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else []


def text_of(value: JsonValue) -> str | None:
    return _NUL.sub("\ufffd", value)[:TEXT_LENGTH_MAX] if isinstance(value, str) else None


def phone_of(value: JsonValue) -> str | None:
    digits = (identifier(value) or "").removeprefix("+")
    return f"+{digits}" if re.fullmatch("[0-9]{5,20}", digits) else None


def wamid_of(item: Fragment) -> str:
    wamid = item.get("id")
    if not isinstance(wamid, str) or not wamid or len(wamid) > WAMID_LENGTH_MAX or _CONTROL.search(wamid):
        raise ValueError("id: missing or no message id")
    return wamid


def is_at_most(value: JsonValue, depth: int) -> bool:
    if depth == 0:
        return False
    if isinstance(value, dict):
        return all(is_at_most(part, depth - 1) for part in value.values())
    return all(is_at_most(part, depth - 1) for part in value) if isinstance(value, list) else True
