"""What the checks of bodies, interactive messages and template parameters share."""

from collections.abc import Container
from typing import Any

from meta_simulator.errors import Json, Refusal


def objects(value: Any) -> list[Json]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def unexpected_key(key: str, place: str) -> Refusal:
    return Refusal(100, message=f'(#100) Unexpected key "{key}" on param "{place}".')


def unknown_keys(content: Json, known: Container[str], place: str) -> Refusal | None:
    return next((unexpected_key(key, place) for key in content if key not in known), None)


def one_of(value: Any, names: tuple[str, ...], place: str) -> Refusal | None:
    """Meta compares such names without case."""
    if str(value).upper() in names:
        return None
    return Refusal(100, message=f'(#100) Param {place} must be one of {{{", ".join(names)}}} - got "{value}".')


def too_long(value: Any, longest: int) -> bool:
    """Whether an optional text is none, or longer than it may be."""
    return value is not None and (not isinstance(value, str) or len(value) > longest)


def is_text(value: Any, longest: int) -> bool:
    return isinstance(value, str) and 0 < len(value) <= longest
