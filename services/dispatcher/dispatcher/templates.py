"""Do the parameters of a message fit its template? Pure; component kinds that we don't know pass through to Meta.

Shapes: Meta, "Templates overview" and "Send messages": positional ({{1}}) and named ({{first_name}}) variables,
media headers, URL and copy-code buttons.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_VARIABLE = re.compile(r"\{\{\s*([A-Za-z0-9_]+)\s*\}\}")
_MEDIA_HEADERS = ("IMAGE", "VIDEO", "DOCUMENT")


def variables(text: str) -> list[str]:
    """The distinct variables of a text, in order."""
    return list(dict.fromkeys(_VARIABLE.findall(text)))


def mismatches(components: Sequence[Mapping[str, Any]], given: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What doesn't fit, each as {"component", "problem", "expected", "given"}; empty when all fits."""
    found: list[dict[str, Any]] = []
    for component in components:
        kind = str(component.get("type", "")).upper()
        if kind == "BODY":
            found += _text("body", str(component.get("text", "")), _parameters(given, "body"))
        elif kind == "HEADER":
            found += _header(component, _parameters(given, "header"))
        elif kind == "BUTTONS":
            found += _buttons(component.get("buttons") or [], given)
    return found


def _parameters(given: Iterable[Mapping[str, Any]], kind: str) -> list[Mapping[str, Any]]:
    for component in given:
        if str(component.get("type", "")).lower() == kind:
            parameters = component.get("parameters")
            return [entry for entry in parameters if isinstance(entry, dict)] if isinstance(parameters, list) else []
    return []


def _text(where: str, text: str, parameters: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    expected = variables(text)
    named = any(not name.isdigit() for name in expected)
    names = [str(entry.get("parameter_name")) for entry in parameters] if named else []
    if named and sorted(names) != sorted(expected):
        return [_mismatch(where, "names", expected, names)]
    if len(parameters) != len(expected):
        return [_mismatch(where, "count", len(expected), len(parameters))]
    empty = [
        name
        for name, entry in zip(names or expected, parameters, strict=True)
        if entry.get("type", "text") == "text" and not str(entry.get("text") or "").strip()
    ]
    return [_mismatch(where, "empty value", "a text", empty)] if empty else []


def _header(component: Mapping[str, Any], parameters: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    kind = str(component.get("format", "TEXT")).upper()
    if kind == "TEXT":
        return _text("header", str(component.get("text", "")), parameters)
    if kind not in _MEDIA_HEADERS:
        return []
    types = [str(entry.get("type", "")).upper() for entry in parameters]
    return [] if types == [kind] else [_mismatch("header", "media", kind.lower(), [name.lower() for name in types])]


def _buttons(buttons: Sequence[Any], given: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    mapped = {
        (str(entry.get("sub_type", "")).lower(), str(entry.get("index")))
        for entry in given
        if str(entry.get("type", "")).lower() == "button" and entry.get("parameters")
    }
    found = []
    for index, button in enumerate(button for button in buttons if isinstance(button, dict)):
        kind = str(button.get("type", "")).upper()
        needed = {"URL": "url", "COPY_CODE": "copy_code"}.get(kind)
        if kind == "URL" and not variables(str(button.get("url", ""))):
            continue
        if needed and (needed, str(index)) not in mapped:
            found.append(_mismatch(f"button {index}", "suffix" if kind == "URL" else "code", needed, "nothing"))
    return found


def _mismatch(component: str, problem: str, expected: Any, given: Any) -> dict[str, Any]:
    return {"component": component, "problem": problem, "expected": expected, "given": given}
