"""JSON as others write it, read for what can be read of it."""

import re

from pydantic import JsonValue
from pydantic_core import from_json

BOM = b"\xef\xbb\xbf"
_RAW_CONTROL = bytes(range(0x20))
_SPACED = bytes.maketrans(_RAW_CONTROL, b" " * len(_RAW_CONTROL))
# An escaped backslash, a pair of surrogates, a lone one, or NUL: in this order, so that each stands for itself.
_ESCAPES = re.compile(
    rb"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u(?:[dD][89a-fA-F][0-9a-fA-F]{2}|0000))"
)


def json_of(body: bytes) -> JsonValue:
    """The body as JSON. Raises ValueError.

    NUL, which PostgreSQL refuses, and lone surrogates, which no UTF-8 can hold, become U+FFFD, as does what is no
    UTF-8; bare control characters become spaces, and a byte order mark nothing: one bad character in one text must not
    cost the whole body.
    """
    if b"\\u" in body:
        body = _ESCAPES.sub(lambda match: rb"\ufffd" if match.group(1) else match.group(), body)
    try:
        return _read(body)
    except ValueError:
        mended = body.translate(_SPACED).removeprefix(BOM).decode(errors="replace")
    try:
        return _read(mended)
    except ValueError as error:
        raise ValueError(f"Invalid JSON: {error}") from None


def _read(text: bytes | str) -> JsonValue:
    told: JsonValue = from_json(text)
    return told
