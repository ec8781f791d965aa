"""The parameters of a template call against the components of the approved template."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from meta_simulator.checks import objects, one_of
from meta_simulator.errors import Json, Refusal

LENGTHS = {"body": 1024, "header": 60}
COUPON_MAX = 20
COMPONENTS = ("BODY", "BUTTON", "CAROUSEL", "FOOTER", "HEADER", "LIMITED_TIME_OFFER", "ORDER_STATUS")
SUB_TYPES = (
    "BOOKING_CONFIRMATION", "CATALOG", "COPY_CODE", "FLOW", "MPM", "ORDER_DETAILS", "QUICK_REPLY", "REMINDER", "URL",
    "VOICE_CALL",
)  # fmt: skip

_PLACEHOLDER = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_UNSENDABLE = re.compile(r"[\n\t]| {5,}")
_MEDIA = ("IMAGE", "VIDEO", "DOCUMENT", "GIF")
# What stands in for a text, with the key that Meta needs in it.
_LOCALIZED = {"CURRENCY": "currency", "DATE_TIME": "date_time"}


@dataclass(frozen=True, slots=True)
class _Wanted:
    """`kind`: TEXT, a medium, LOCATION, COUPON_CODE, LIMITED_TIME_OFFER; `names` of its placeholders."""

    kind: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a template needs, by place; `lengths` of the texts around its placeholders; a plan for each card."""

    wanted: dict[str, _Wanted]
    buttons: tuple[str, ...]
    lengths: dict[str, int]
    cards: "tuple[Plan, ...] | None"


def plan_of(components: list[Json]) -> Plan:
    carousel = next((each for each in components if _kind(each) == "CAROUSEL"), None)
    cards = None
    if carousel is not None:
        cards = tuple(plan_of(objects(card.get("components"))) for card in objects(carousel.get("cards")))
    texts = {_kind(each).lower(): str(each.get("text", "")) for each in reversed(components)}
    lengths = {place: len(_PLACEHOLDER.sub("", texts.get(place, ""))) for place in LENGTHS}
    return Plan(dict(_wanted(components)), _buttons_of(components), lengths, cards)


def check_template(call: Json, components: list[Json], parameter_format: str) -> Refusal | None:
    return check_call(call, plan_of(components), parameter_format)


def check_call(call: Json, plan: Plan, parameter_format: str) -> Refusal | None:
    given = objects(call.get("components"))
    for number, component in enumerate(given):
        if wrong := _check_component(component, number):
            return wrong
    return _check_places(given, plan, parameter_format) or _check_cards(given, plan, parameter_format)


def _kind(component: Json) -> str:
    return str(component.get("type", "")).upper()


def _check_component(component: Json, number: int) -> Refusal | None:
    place = f"template['components'][{number}]"
    if wrong := one_of(component.get("type", ""), COMPONENTS, f"{place}['type']"):
        return wrong
    parameters = component.get("parameters", [])
    if not isinstance(parameters, list) or len(objects(parameters)) < len(parameters):
        return Refusal(131009, f"{place}['parameters'] must be a list of objects.")
    if str(component["type"]).lower() != "button":
        return None
    index = component.get("index")
    if not str(index).isdecimal() or not 0 <= int(str(index)) <= 9:
        return Refusal(131009, f"{place}['index'] must be a number from 0 to 9.")
    return one_of(component.get("sub_type"), SUB_TYPES, f"{place}['sub_type']")


def _check_places(given: list[Json], plan: Plan, style: str) -> Refusal | None:
    by_place = {_place(each): each for each in given}
    for place, want in plan.wanted.items():
        if refusal := _check_place(place, want, objects(by_place.get(place, {}).get("parameters")), style):
            return refusal
    for place, component in by_place.items():
        if place not in plan.wanted and (refusal := _check_unwanted(place, component, plan.buttons)):
            return refusal
    for place, longest in LENGTHS.items():
        texts = [str(each.get("text", "")) for each in objects(by_place.get(place, {}).get("parameters"))]
        if plan.lengths[place] + sum(map(len, texts)) > longest:
            return Refusal(132005)
    return None


def _place(component: Json) -> str:
    kind = str(component.get("type", "")).lower()
    return f"button {int(str(component['index']))}" if kind == "button" else kind


def _wanted(components: list[Json]) -> Iterable[tuple[str, _Wanted]]:
    for component in components:
        kind = _kind(component)
        media = str(component.get("format", "TEXT")).upper()
        if kind == "HEADER" and media != "TEXT":
            yield "header", _Wanted(media, ("1",))
        elif kind in ("HEADER", "BODY"):
            yield kind.lower(), _Wanted("TEXT", _placeholders(component.get("text")))
        elif kind == "BUTTONS":
            yield from _wanted_buttons(objects(component.get("buttons")))
        elif kind == "LIMITED_TIME_OFFER" and _has_expiration(component):
            yield "limited_time_offer", _Wanted("LIMITED_TIME_OFFER", ("1",))


def _has_expiration(component: Json) -> bool:
    offer = component.get("limited_time_offer")
    return isinstance(offer, dict) and bool(offer.get("has_expiration"))


def _wanted_buttons(buttons: list[Json]) -> Iterable[tuple[str, _Wanted]]:
    for index, button in enumerate(buttons):
        kind = _kind(button)
        if (kind == "URL" and (names := _placeholders(button.get("url")))) or (kind == "OTP" and (names := ("1",))):
            yield f"button {index}", _Wanted("TEXT", names)
        elif kind == "COPY_CODE":
            yield f"button {index}", _Wanted("COUPON_CODE", ("1",))


def _placeholders(text: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_PLACEHOLDER.findall(text))) if isinstance(text, str) else ()


def _buttons_of(components: list[Json]) -> tuple[str, ...]:
    found = [each for each in components if _kind(each) == "BUTTONS"]
    return tuple(_kind(button) for each in found for button in objects(each.get("buttons")))


def _check_unwanted(place: str, component: Json, buttons: tuple[str, ...]) -> Refusal | None:
    """Parameters where the template has nothing to fill in. A quick reply or a flow may carry a payload."""
    parameters = objects(component.get("parameters"))
    if not place.startswith("button"):
        is_open = place in ("carousel", "order_status") or not parameters
        return None if is_open else _count_mismatch(place, len(parameters), 0)
    index = int(place.removeprefix("button "))
    if index >= len(buttons):
        return Refusal(132018, f"buttons: There is no button at index {index} in the template.")
    if parameters and buttons[index] in ("PHONE_NUMBER", "URL"):
        kind = "Call" if buttons[index] == "PHONE_NUMBER" else "Url"
        return Refusal(100, f"buttons: Button at index {index} is of type {kind} and does not support parameters")
    if buttons[index] != "QUICK_REPLY":
        return None
    fits = all(isinstance(each.get("payload"), str) and each["payload"] for each in parameters)
    return None if fits else Refusal(131008, f"buttons: The payload of the button at index {index} is missing.")


def _check_place(place: str, want: _Wanted, parameters: list[Json], style: str) -> Refusal | None:
    if place.startswith("button") and not parameters:
        kind = "Url" if want.kind == "TEXT" else "CopyCode"
        return Refusal(131008, f"buttons: Button at index {place.split()[1]} of type {kind} requires a parameter")
    if place == "header" and want.kind != "TEXT" and not parameters:
        return Refusal(132012, f"header: Format mismatch, expected {want.kind}, received UNKNOWN")
    if len(parameters) != len(want.names):
        return _count_mismatch(place, len(parameters), len(want.names))
    named = style.upper() == "NAMED" and place in ("header", "body") and want.kind == "TEXT"
    if named and {str(each.get("parameter_name")) for each in parameters} != set(want.names):
        return Refusal(132012, f"{place}: Parameter name is missing, empty or not in the template")
    for parameter in parameters:
        if refusal := _check_parameter(place, want.kind, parameter):
            return refusal
    return None


def _check_parameter(place: str, kind: str, parameter: Json) -> Refusal | None:
    got = str(parameter.get("type", "UNKNOWN")).upper()
    if got != kind and not (kind == "TEXT" and got in _LOCALIZED):
        return Refusal(132012, f"{place}: Format mismatch, expected {kind}, received {got}")
    if got == "TEXT":
        return _check_text(parameter.get("text"))
    if got in _LOCALIZED:
        value = parameter.get(_LOCALIZED[got])
        has_fallback = isinstance(value, dict) and bool(value.get("fallback_value"))
        return None if has_fallback else _missing(got, "fallback_value")
    return _check_special(got, parameter)


def _check_text(text: Any) -> Refusal | None:
    if not isinstance(text, str) or not text:
        return Refusal(131008, "Parameter of type text is missing text value")
    return Refusal(132018) if _UNSENDABLE.search(text) else None


def _check_special(kind: str, parameter: Json) -> Refusal | None:
    value = parameter.get(kind.lower())
    if kind == "COUPON_CODE":
        fits = isinstance(value, str) and 0 < len(value) <= COUPON_MAX
        return None if fits else Refusal(131009, f"coupon_code must have 1 to {COUPON_MAX} characters.")
    inner = value if isinstance(value, dict) else {}
    if kind in _MEDIA and not (inner.get("id") or inner.get("link")):
        return _missing(kind, "id or link")
    if kind == "LOCATION" and (inner.get("latitude") is None or inner.get("longitude") is None):
        return _missing(kind, "latitude or longitude")
    if kind == "LIMITED_TIME_OFFER" and not isinstance(inner.get("expiration_time_ms"), int):
        return _missing(kind, "expiration_time_ms")
    return None


def _missing(kind: str, what: str) -> Refusal:
    return Refusal(131008, f"Parameter of type {kind.lower()} is missing {what} value")


def _count_mismatch(place: str, got: int, wanted: int) -> Refusal:
    return Refusal(
        132000,
        f"{place}: number of localizable_params ({got}) does not match the expected number of params ({wanted})",
    )


def _check_cards(given: list[Json], plan: Plan, style: str) -> Refusal | None:
    """A carousel needs each of its cards, with parameters that fit the card's own components."""
    called = next((each for each in given if _kind(each) == "CAROUSEL"), None)
    if plan.cards is None:
        return None if called is None else Refusal(132012, "carousel: The template has no carousel")
    cards = objects((called or {}).get("cards"))
    by_index = {str(card.get("card_index", index)): card for index, card in enumerate(cards)}
    if len(cards) != len(plan.cards) or set(by_index) != {str(index) for index in range(len(plan.cards))}:
        return Refusal(132012, f"carousel: expected {len(plan.cards)} cards, received {len(cards)}")
    for index, card in enumerate(plan.cards):
        if refusal := check_call(by_index[str(index)], card, style):
            return refusal
    return None
