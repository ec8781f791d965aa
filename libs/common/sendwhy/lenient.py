"""JSON as others write it, read for what can be read of it: what can't be is None."""

import re

from pydantic import JsonValue
from pydantic_core import from_json

IDENTIFIER_LENGTH_MAX = 64
BOM = b"\xef\xbb\xbf"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")
_RAW_CONTROL = bytes(range(0x20))
_SPACED = bytes.maketrans(_RAW_CONTROL, b" " * len(_RAW_CONTROL))
# An escaped backslash, a pair of surrogates, a lone one, or NUL: in this order, so that each stands for itself.
_ESCAPES = re.compile(
    rb"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u(?:[dD][89a-fA-F][0-9a-fA-F]{2}|0000))"
)
# A text, which is left alone, or a number of more digits than Python makes an int of.
_TEXT_OR_ENDLESS = re.compile(r'"(?:[^"\\]|\\.)*+"?|(-?[0-9]{4301,}[0-9.eE+-]*)', re.DOTALL)


def json_of(body: bytes) -> JsonValue:
    """The body as JSON. Raises ValueError.

    NUL, which PostgreSQL refuses, and lone surrogates, which no UTF-8 can hold, become U+FFFD, as does what is no
    UTF-8; bare control characters become spaces, and a byte order mark nothing; a number that is too long to be one
    becomes null: one bad character in one text must not cost the whole body.
    """
    if b"\\u" in body:
        body = _ESCAPES.sub(lambda match: rb"\ufffd" if match.group(1) else match.group(), body)
    try:
        return _read(body)
    except ValueError:
        mended = body.translate(_SPACED).removeprefix(BOM).decode(errors="replace")
    try:
        return _read(_TEXT_OR_ENDLESS.sub(lambda match: "null" if match.group(1) else match.group(), mended))
    except ValueError as error:
        raise ValueError(f"Invalid JSON: {error}") from None


def _read(text: bytes | str) -> JsonValue:
    told: JsonValue = from_json(text)
    return told


def line(value: JsonValue, length: int) -> str | None:
    """A one-line text without control characters, cut to `length`; None for anything else."""
    if not isinstance(value, str):
        return None
    # Nothing that is printable is a control character.
    text = value if value.isprintable() else _CONTROL.sub(" ", value)
    return text.strip()[:length] or None


def identifier(value: JsonValue) -> str | None:
    """An id, which may come as a number, also as one with a fraction of zero."""
    if isinstance(value, float) and value.is_integer() and value < 2**53:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value) if 0 <= value < 10**20 else None
    return line(value, IDENTIFIER_LENGTH_MAX)
