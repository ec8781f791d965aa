"""Do the parameters of a message fit its template? Pure: nothing is fetched, a link is only looked at.

Refused is only what Meta's pages say can't be sent; component kinds, header formats, button types and parameter types
that we don't know pass through to Meta. Positional variables ({{1}}) are filled in the order of the list, named ones
({{first_name}}) by `parameter_name`, in any order. A template whose components we don't know is not judged.

Limits, each counted after the parameters are filled in, by Meta's pages of November 2025 to June 2026:
"Template components" (header 60, body 1,024, URL 2,000), "Coupon code templates" (code 20), "Limited-time offer
templates" (body 600, code 15), "Media card carousel templates" (card body 160; as many cards as the template has),
"Copy code authentication templates" (one-time password 15), "Multi-product message templates" (10 sections, 30
products, title 24). An older reference page allows 32,768 for a template that is nothing but a body; the newer pages
say 1,024 for all. For the payload of a quick reply no page gives a limit.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

HEADER_MAX = 60
BODY_MAX = 1024
OFFER_BODY_MAX = 600
CARD_BODY_MAX = 160
URL_MAX = 2000
CODE_MAX = 15
COUPON_MAX = 20
SECTIONS_MAX = 10
PRODUCTS_MAX = 30
SECTION_TITLE_MAX = 24
FOUND_MAX = 20
TEXTS_KEPT = 500

_VARIABLE = re.compile(r"\{\{\s*([A-Za-z0-9_]+)\s*\}\}")
_MEDIA_HEADERS: Mapping[str, tuple[str, ...]] = {
    "IMAGE": ("image",),
    "VIDEO": ("video",),
    "DOCUMENT": ("document",),
    # A GIF is an MP4; Meta's pages don't show how it is sent.
    "GIF": ("gif", "video"),
}
_TEXT_TYPES = ("text", "currency", "date_time")
# Types of parameters that have their place elsewhere; others may be new.
_OTHER_TYPES = frozenset(
    {
        "action",
        "coupon_code",
        "document",
        "gif",
        "image",
        "limited_time_offer",
        "location",
        "payload",
        "product",
        "video",
    }
)

Json = Mapping[str, Any]
Found = dict[str, Any]


def variables(text: str) -> list[str]:
    """The distinct variables of a text, in order: of their numbers, or of their appearance."""
    return list(_variables(text))


@lru_cache(TEXTS_KEPT)
def _variables(text: str) -> Sequence[str]:
    # A campaign's messages all ask this of the same few texts.
    found = tuple(dict.fromkeys(_VARIABLE.findall(text)))
    return sorted(found, key=int) if found and all(map(_is_number, found)) else found


def mismatches(components: Sequence[Json], given: Sequence[Json]) -> list[Found]:
    """What doesn't fit, each as {"component", "problem", "expected", "given"}; empty when all fits."""
    if not components:
        return []
    return _mismatches(components, given, _MESSAGE)[:FOUND_MAX]


def expected_names(components: Sequence[Json]) -> dict[str, str]:
    """What each part of the template takes: its variables, or the kind of its header's media."""
    takes: dict[str, list[str]] = {}
    for component in components:
        kind = _kind(component)
        if kind == "BODY":
            takes["body"] = variables(_body_text(component))
        elif kind == "HEADER":
            media = str(component.get("format", "TEXT")).lower()
            takes["header"] = variables(str(component.get("text", ""))) if media == "text" else [media]
        elif kind == "BUTTONS":
            for index, button in enumerate(_list(component.get("buttons"))):
                address = button.get("url") if isinstance(button, dict) else None
                takes[f"button {index}"] = variables(str(address or ""))
    return {name: ", ".join(names) for name, names in takes.items() if names}


def given_names(given: Sequence[Json]) -> dict[str, str]:
    """What the call gives to each, by the same names: never the values, which are a person's."""
    found = {}
    for component in given:
        names = [
            str(entry.get("parameter_name") or (number if entry.get("type", "text") in _TEXT_TYPES else entry["type"]))
            for number, entry in enumerate(_parameters(component) or [], 1)
        ]
        if names:
            found[_name(component)] = ", ".join(names)[:200]
    return found


@dataclass(frozen=True, slots=True)
class _Place:
    """The message itself, or one of its cards."""

    body_max: int
    card: str = ""
    coupon_max: int = COUPON_MAX

    def named(self, component: str) -> str:
        return f"{self.card}{component}"

    def problem(self, component: str, problem: str, expected: Any, given: Any) -> Found:
        return {"component": self.named(component), "problem": problem, "expected": expected, "given": given}


_MESSAGE = _Place(BODY_MAX)


def _mismatches(components: Sequence[Json], given: Sequence[Json], place: _Place) -> list[Found]:
    known = {_kind(component): component for component in components}
    if "LIMITED_TIME_OFFER" in known:
        place = _Place(OFFER_BODY_MAX, place.card, CODE_MAX)
    found = _twice(given, place) + _not_in_the_template(known, given, place)
    for kind, component in known.items():
        check = _CHECKS.get(kind)
        if check is not None:
            found += check(component, given, place)
    return found


def _kind(component: Json) -> str:
    return str(component.get("type", "")).upper()


def _of_kind(given: Sequence[Json], kind: str) -> Json | None:
    return next((one for one in given if _kind(one) == kind), None)


def _twice(given: Sequence[Json], place: _Place) -> list[Found]:
    if len(given) < 2:
        return []
    # A card may hold any number of them.
    counts = Counter(_name(component) for component in given)
    return [place.problem(name, "given twice", 1, count) for name, count in counts.items() if count > 1]


def _name(component: Json) -> str:
    kind = _kind(component).lower()
    return f"button {_index(component)}" if kind == "button" else kind


def _index(component: Json) -> int | None:
    index = component.get("index", 0)
    if isinstance(index, bool) or not isinstance(index, int | str):
        return None
    text = str(index)
    return int(text) if _is_number(text) and len(text) < 4 else None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _not_in_the_template(known: Mapping[str, Json], given: Sequence[Json], place: _Place) -> list[Found]:
    of_template = {"HEADER": "HEADER", "BODY": "BODY", "BUTTON": "BUTTONS", "CAROUSEL": "CAROUSEL"}
    of_template["LIMITED_TIME_OFFER"] = "LIMITED_TIME_OFFER"
    return [
        place.problem(_name(component), "not in the template", "nothing", _size(component))
        for component in given
        if _size(component)
        and of_template.get(_kind(component), _kind(component)) not in known
        # A kind that we don't know may be filled in by rules that we don't know.
        and _kind(component) in of_template
    ]


def _size(component: Json) -> int:
    """How many parameters (or cards) a component of the call has."""
    filled = component.get("cards") if _kind(component) == "CAROUSEL" else component.get("parameters")
    return len(filled) if isinstance(filled, list) else int(bool(filled))


def _parameters(component: Json | None) -> list[Json] | None:
    """The parameters of a component of the call, none if it is left out; None where they are no list of objects."""
    told = component.get("parameters") if component is not None else None
    if told is None:
        return []
    return told if isinstance(told, list) and all(isinstance(entry, dict) for entry in told) else None


# --- texts ---


def _text(where: str, text: str, limit: int, component: Json | None, place: _Place) -> list[Found]:
    parameters = _parameters(component)
    if parameters is None:
        return [place.problem(where, "parameters", "a list of objects", _short(component and component["parameters"]))]
    expected = variables(text)
    is_named = any(not _is_number(name) for name in expected)
    names = [str(entry.get("parameter_name")) for entry in parameters] if is_named else expected
    if is_named and sorted(names) != sorted(expected):
        return [place.problem(where, "names", expected, names)]
    if len(parameters) != len(expected):
        return [place.problem(where, "count", len(expected), len(parameters))]
    values = dict(zip(names, parameters, strict=True))
    found = [wrong for name, entry in values.items() if (wrong := _value(where, name, entry, place))]
    if found:
        return found
    filled = _VARIABLE.sub(lambda match: _shown(values[match.group(1)]), text)
    return [place.problem(where, "length", f"at most {limit}", len(filled))] if len(filled) > limit else []


def _value(where: str, name: str, entry: Json, place: _Place) -> Found | None:
    """What is wrong with one value of a text, or None."""
    kind = str(entry.get("type", "text")).lower()
    if kind in _OTHER_TYPES:
        return place.problem(where, "type", list(_TEXT_TYPES), {name: kind})
    if kind == "text":
        value = entry.get("text")
        if value is not None and not _is_text(value):
            return place.problem(where, "value", "a text", {name: _short(value)})
        return None if str(value or "").strip() or value == 0 else place.problem(where, "empty value", "a text", [name])
    needed = {"currency": ("fallback_value", "code", "amount_1000"), "date_time": ("fallback_value",)}.get(kind, ())
    value = entry.get(kind)
    missing = [field for field in needed if not isinstance(value, dict) or value.get(field) in (None, "")]
    return (
        place.problem(where, "value", [f"{kind}.{field}" for field in missing], {name: _short(value)})
        if missing
        else None
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _shown(entry: Json) -> str:
    """What a person will read in the variable's place; nothing where we don't know the type."""
    kind = str(entry.get("type", "text")).lower()
    value = entry.get(kind)
    return str((value.get("fallback_value") or "") if isinstance(value, dict) else "" if value is None else value)


def _short(value: Any) -> str:
    return str(value)[:100]


def _body(component: Json, given: Sequence[Json], place: _Place) -> list[Found]:
    return _text("body", _body_text(component), place.body_max, _of_kind(given, "BODY"), place)


def _body_text(component: Json) -> str:
    text = component.get("text")
    if text is None and "add_security_recommendation" in component:
        text = "{{1}}"  # Meta's own words around a one-time password, in the template's language.
    return str(text or "")


# --- headers ---


def _header(component: Json, given: Sequence[Json], place: _Place) -> list[Found]:
    kind = str(component.get("format", "TEXT")).upper()
    call = _of_kind(given, "HEADER")
    if kind == "TEXT":
        return _text("header", str(component.get("text", "")), HEADER_MAX, call, place)
    wanted = ("location",) if kind == "LOCATION" else _MEDIA_HEADERS.get(kind)
    if wanted is None:
        return []
    parameters = _parameters(call)
    types = [str(entry.get("type", "")).lower() for entry in parameters or []]
    if parameters is None or len(types) != 1 or types[0] not in wanted:
        return [place.problem("header", "media", wanted[0], types)]
    value = parameters[0].get(types[0])
    if kind == "LOCATION":
        return _location(value, place)
    named = [value.get("id"), value.get("link")] if isinstance(value, dict) else []
    is_named = any(isinstance(name, str | int) and name != "" for name in named)
    return [] if is_named else [place.problem("header", "media", f"{types[0]} with an id or a link", _short(value))]


def _location(value: Any, place: _Place) -> list[Found]:
    bounds = {"latitude": 90.0, "longitude": 180.0}
    told = value if isinstance(value, dict) else {}
    wrong = [name for name, bound in bounds.items() if not _is_within(told.get(name), bound)]
    return (
        [place.problem("header", "location", [f"{name} in degrees" for name in wrong], _short(value))] if wrong else []
    )


def _is_within(value: Any, bound: float) -> bool:
    try:
        return not isinstance(value, bool) and abs(float(value)) <= bound
    except (TypeError, ValueError, OverflowError):
        return False


# --- buttons ---


@dataclass(frozen=True, slots=True)
class _Button:
    """A button of the template with what the call gives for it; `parameters` None where they can't be read."""

    where: str
    kind: str
    template: Json
    call: Json | None
    parameters: list[Json] | None
    place: _Place

    def problem(self, problem: str, expected: Any, given: Any) -> list[Found]:
        return [self.place.problem(self.where, problem, expected, given)]

    @property
    def types(self) -> list[str]:
        return [str(entry.get("type", "")).lower() for entry in self.parameters or []]


def _buttons(component: Json, given: Sequence[Json], place: _Place) -> list[Found]:
    told = component.get("buttons")
    buttons = told if isinstance(told, list) else []
    calls = [one for one in given if _kind(one) == "BUTTON"]
    by_index = {_index(one): one for one in reversed(calls)}
    found = []
    for call in calls:
        index = _index(call)
        if _size(call) and (index is None or index >= len(buttons)):
            found.append(
                place.problem(_name(call), "not in the template", f"{len(buttons)} buttons", _short(call.get("index")))
            )
    for index, button in enumerate(buttons):
        if isinstance(button, dict):
            mine = by_index.get(index)
            found += _button(_Button(f"button {index}", _kind(button), button, mine, _parameters(mine), place))
    return found


def _button(button: _Button) -> list[Found]:
    rule = _BUTTONS.get(button.kind)
    if rule is None:
        return []
    if button.parameters is None:
        return button.problem("parameters", "a list of objects", _short(button.call and button.call["parameters"]))
    sub_type = str(button.call.get("sub_type", "")).upper() if button.call else ""
    if button.parameters and sub_type != ("URL" if button.kind == "OTP" else button.kind):
        return button.problem("sub_type", button.kind.lower(), sub_type.lower() or "nothing")
    return rule(button)


def _one(button: _Button, problem: str, parameter: str, *, optional: bool = False) -> tuple[Any, list[Found]]:
    """The value of a button's only parameter, which must be of that type, or what is wrong with it."""
    if optional and not button.parameters:
        return None, []
    if button.types != [parameter]:
        return None, button.problem(problem, parameter, button.types or "nothing")
    value = (button.parameters or [{}])[0].get(parameter)
    if value in (None, "") or (isinstance(value, str) and not value.strip()):
        return None, button.problem("empty value", parameter, _short(value))
    return value, []


def _url(button: _Button) -> list[Found]:
    address = str(button.template.get("url") or "")
    is_password = button.kind == "OTP" or "otp_type=" in address
    if not is_password and not variables(address):
        # Meta: "Button at index 0 of type Url does not require parameters" (132018).
        return button.problem("not in the template", "nothing", len(button.types)) if button.parameters else []
    value, found = _one(button, "suffix", "text")
    if found:
        return found
    if not _is_text(value):
        return button.problem("value", "a text", _short(value))
    if is_password:
        return _code(button, value, CODE_MAX)
    length = len(_VARIABLE.sub("", address)) + len(str(value))
    return button.problem("length", f"at most {URL_MAX} with its address", length) if length > URL_MAX else []


def _copy_code(button: _Button) -> list[Found]:
    value, found = _one(button, "code", "coupon_code")
    return found or _code(button, value, button.place.coupon_max)


def _code(button: _Button, value: Any, most: int) -> list[Found]:
    if not _is_text(value):
        return button.problem("value", "a text", _short(value))
    return button.problem("length", f"at most {most}", len(str(value))) if len(str(value)) > most else []


def _quick_reply(button: _Button) -> list[Found]:
    value, found = _one(button, "payload", "payload", optional=True)
    return found or ([] if value is None or _is_text(value) else button.problem("value", "a text", _short(value)))


def _without_parameters(button: _Button) -> list[Found]:
    return button.problem("not in the template", "nothing", len(button.types)) if button.parameters else []


def _action(button: _Button) -> list[Found]:
    """A flow's token and data, a catalogue's thumbnail: all optional."""
    value, found = _one(button, "action", "action", optional=True)
    return found or (
        [] if value is None or isinstance(value, dict) else button.problem("value", "an object", _short(value))
    )


def _products(button: _Button) -> list[Found]:
    action, found = _one(button, "action", "action")
    if found:
        return found
    sections = action.get("sections") if isinstance(action, dict) else None
    if not isinstance(sections, list) or not all(isinstance(section, dict) for section in sections):
        return button.problem("sections", "a list of objects", _short(action))
    items = [item for section in sections for item in _list(section.get("product_items"))]
    longest = max((len(str(section.get("title") or "")) for section in sections), default=0)
    if not 1 <= len(sections) <= SECTIONS_MAX:
        return button.problem("sections", f"1 to {SECTIONS_MAX}", len(sections))
    if not 1 <= len(items) <= PRODUCTS_MAX:
        return button.problem("products", f"1 to {PRODUCTS_MAX}", len(items))
    return button.problem("title", f"at most {SECTION_TITLE_MAX}", longest) if longest > SECTION_TITLE_MAX else []


def _list(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list) else []


# Not here, so that Meta judges: SPM, ORDER_DETAILS, VOICE_CALL, REMINDER, and what is still to come.
_BUTTONS: Mapping[str, Callable[[_Button], list[Found]]] = {
    "URL": _url,
    "OTP": _url,
    "COPY_CODE": _copy_code,
    "QUICK_REPLY": _quick_reply,
    "PHONE_NUMBER": _without_parameters,
    "FLOW": _action,
    "CATALOG": _action,
    "MPM": _products,
}


# --- offers and carousels ---


def _offer(component: Json, given: Sequence[Json], place: _Place) -> list[Found]:
    where = "limited_time_offer"
    parameters = _parameters(_of_kind(given, "LIMITED_TIME_OFFER"))
    offer = component.get(where)
    if not parameters and parameters is not None and not (isinstance(offer, dict) and offer.get("has_expiration")):
        return []
    told = parameters[0].get(where) if parameters and len(parameters) == 1 else None
    expires = told.get("expiration_time_ms") if isinstance(told, dict) else None
    if _is_text(expires) and _is_number(str(expires)):
        return []
    return [place.problem(where, "expiration", "expiration_time_ms, in milliseconds", _short(told))]


def _carousel(component: Json, given: Sequence[Json], place: _Place) -> list[Found]:
    cards = [card for card in _list(component.get("cards")) if isinstance(card, dict)]
    call = _of_kind(given, "CAROUSEL")
    told = call.get("cards") if call is not None else []
    if not isinstance(told, list) or not all(isinstance(card, dict) for card in told):
        return [place.problem("carousel", "cards", "a list of objects", _short(told))]
    if not cards or any(_has_product(card) for card in cards):
        return []  # Product cards may be more than the template shows; Meta judges them.
    indexes = [_card_index(card, position) for position, card in enumerate(told)]
    if sorted(indexes, key=str) != sorted(range(len(cards)), key=str):
        return [place.problem("carousel", "cards", list(range(len(cards))), indexes)]
    found = []
    for index, card in sorted(zip(indexes, told, strict=True), key=lambda pair: str(pair[0])):
        template, filled = _objects(cards[index or 0].get("components")), _objects(card.get("components"))
        found += _mismatches(template, filled, _Place(CARD_BODY_MAX, f"card {index} "))
    return found


def _has_product(card: Json) -> bool:
    return any(str(part.get("format", "")).upper() == "PRODUCT" for part in _objects(card.get("components")))


def _card_index(card: Json, position: int) -> int | None:
    return _index({"index": card.get("card_index", position)})


def _objects(value: Any) -> list[Json]:
    return [part for part in _list(value) if isinstance(part, dict)]


_CHECKS: Mapping[str, Callable[[Json, Sequence[Json], _Place], list[Found]]] = {
    "BODY": _body,
    "HEADER": _header,
    "BUTTONS": _buttons,
    "LIMITED_TIME_OFFER": _offer,
    "CAROUSEL": _carousel,
}
