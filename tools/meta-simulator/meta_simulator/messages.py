"""What Meta checks in the body of a send, and how it words what it finds."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from meta_simulator.errors import Json, Refusal

TEXT_MAX = 4096
TEMPLATE_TEXT_MAX = 1024
CALLBACK_MAX = 512
MEDIA = ("audio", "document", "image", "sticker", "video")
TYPES = (*MEDIA, "contacts", "interactive", "location", "reaction", "template", "text")

_PLACEHOLDER = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_UNSENDABLE = re.compile(r"[\n\t]| {5,}")


@dataclass(frozen=True, slots=True)
class Addressed:
    """Who a body is for: a phone (digits only) or a business-scoped user id."""

    input: str
    key: str
    by_user_id: bool


def read_json(raw: bytes) -> Any:
    """Strict UTF-8 JSON, whatever it holds. Raises ValueError."""
    try:
        return json.loads(raw.decode(), parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def digits(phone: str) -> str:
    return re.sub(r"[^0-9]", "", phone)


def _objects(value: Any) -> list[Json]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def addressee(body: Json) -> Addressed | Refusal:
    """`to` wins over `recipient`, as Meta has it."""
    to, recipient = body.get("to"), body.get("recipient")
    if to is None and isinstance(recipient, str) and recipient:
        return Addressed(recipient, recipient, by_user_id=True)
    if to is None or to == "":
        return Refusal(100, message="(#100) The parameter to is required.")
    if not isinstance(to, str | int) or not 5 <= len(digits(str(to))) <= 20:
        return Refusal(131009, "Recipient phone number is not valid")
    return Addressed(str(to), digits(str(to)), by_user_id=False)


def check_body(body: Json) -> Refusal | None:
    """Everything that needs neither the account's templates nor the number."""
    if body.get("messaging_product") != "whatsapp":
        return Refusal(100, message="(#100) The parameter messaging_product is required.")
    callback = body.get("biz_opaque_callback_data")
    if callback is not None and (not isinstance(callback, str) or len(callback) > CALLBACK_MAX):
        return Refusal(100, f"biz_opaque_callback_data must be a string of at most {CALLBACK_MAX} characters.")
    kind = body.get("type", "text")
    if kind not in TYPES:
        names = ", ".join(TYPES).upper()
        return Refusal(100, message=f'(#100) Param type must be one of {{{names}}} - got "{kind}".')
    content = body.get(kind)
    if content is None:
        return Refusal(131008, f"The parameter {kind} is required for messages of type {kind}.")
    if not isinstance(content, list if kind == "contacts" else dict):
        return Refusal(131009, f"The parameter {kind} has the wrong type.")
    check = _CHECKS.get(kind)
    return check(content) if check else None


def _check_text(text: Json) -> Refusal | None:
    body = text.get("body")
    if body is None or body == "":
        return Refusal(131008, "The parameter text.body is required.")
    if not isinstance(body, str) or len(body) > TEXT_MAX:
        return Refusal(100, message=f"(#100) Param text['body'] must be at most {TEXT_MAX} characters long.")
    return None


def _check_media(media: Json) -> Refusal | None:
    if not media.get("id") and not media.get("link"):
        return Refusal(131008, "Either the media id or the link is required.")
    link = media.get("link")
    if link is not None and not str(link).startswith(("http://", "https://")):
        return Refusal(131009, "The media link is not a valid URL.")
    return None


def _check_location(location: Json) -> Refusal | None:
    if location.get("latitude") is None or location.get("longitude") is None:
        return Refusal(131008, "location.latitude and location.longitude are required.")
    return None


def _check_reaction(reaction: Json) -> Refusal | None:
    if not reaction.get("message_id"):
        return Refusal(131008, "The parameter reaction.message_id is required.")
    return None


def _check_contacts(contacts: list[Json]) -> Refusal | None:
    if not contacts or not all(isinstance(each, dict) and each.get("name") for each in contacts):
        return Refusal(131008, "contacts[].name is required.")
    return None


def _check_template_call(template: Json) -> Refusal | None:
    language = template.get("language")
    if not template.get("name"):
        return Refusal(131008, "The parameter template.name is required.")
    if not isinstance(language, dict) or not language.get("code"):
        return Refusal(131008, "The parameter template.language.code is required.")
    components = template.get("components", [])
    if not isinstance(components, list) or not all(isinstance(each, dict) for each in components):
        return Refusal(131009, "template.components must be a list of objects.")
    return None


def _check_interactive(interactive: Json) -> Refusal | None:
    action = interactive.get("action")
    if not interactive.get("type") or not isinstance(action, dict):
        return Refusal(131008, "interactive.type and interactive.action are required.")
    if interactive["type"] == "button":
        return _check_buttons(action.get("buttons"))
    if interactive["type"] == "list":
        return _check_rows(action.get("sections"))
    return None


def _check_buttons(buttons: Any) -> Refusal | None:
    if not isinstance(buttons, list) or not 1 <= len(buttons) <= 3:
        return Refusal(131009, "Invalid buttons count. Min allowed buttons: 1, Max allowed buttons: 3")
    replies = _objects([each.get("reply") for each in _objects(buttons)])
    if any(not 1 <= len(str(reply.get("title", ""))) <= 20 for reply in replies):
        return Refusal(131009, "Button title length invalid. Min length: 1, Max length: 20")
    if len({str(reply.get("id")) for reply in replies}) < len(buttons):
        return Refusal(131009, "Duplicated button id. Buttons should have unique ids.")
    return None


def _check_rows(sections: Any) -> Refusal | None:
    if not isinstance(sections, list) or not 1 <= len(sections) <= 10:
        return Refusal(131009, "Invalid sections count. Min allowed sections: 1, Max allowed sections: 10")
    rows = [row for section in _objects(sections) for row in _objects(section.get("rows"))]
    if not 1 <= len(rows) <= 10:
        return Refusal(131009, f"Total row count exceed max allowed count: 10, got {len(rows)}")
    return None


_CHECKS: dict[str, Callable[[Any], Refusal | None]] = {
    **dict.fromkeys(MEDIA, _check_media),
    "contacts": _check_contacts,
    "interactive": _check_interactive,
    "location": _check_location,
    "reaction": _check_reaction,
    "template": _check_template_call,
    "text": _check_text,
}


def check_template(call: Json, components: list[Json], parameter_format: str) -> Refusal | None:
    """The parameters of a template call against the components of the approved template."""
    given = {_place(each): _parameters(each) for each in call.get("components", [])}
    wanted = dict(_wanted(components))
    for place, want in wanted.items():
        refusal = _check_place(place, want, given.get(place, []), parameter_format)
        if refusal:
            return refusal
    for place, parameters in given.items():
        if parameters and place not in wanted and not place.startswith("button"):
            return _count_mismatch(place, len(parameters), 0)
    return _check_length(components, given.get("body", []))


@dataclass(frozen=True, slots=True)
class _Wanted:
    kind: str
    names: tuple[str, ...]


def _place(component: Json) -> str:
    kind = str(component.get("type", "")).lower()
    return f"button {component.get('index', 0)}" if kind == "button" else kind


def _parameters(component: Json) -> list[Json]:
    return _objects(component.get("parameters"))


def _wanted(components: list[Json]) -> Iterable[tuple[str, _Wanted]]:
    for component in components:
        kind = str(component.get("type", "")).upper()
        media = str(component.get("format", "TEXT")).upper()
        if kind == "HEADER" and media != "TEXT":
            yield "header", _Wanted(media, ("1",))
        elif kind in ("HEADER", "BODY"):
            yield kind.lower(), _Wanted("TEXT", _placeholders(component.get("text")))
        elif kind == "BUTTONS":
            yield from _wanted_buttons(_objects(component.get("buttons")))


def _wanted_buttons(buttons: list[Json]) -> Iterable[tuple[str, _Wanted]]:
    for index, button in enumerate(buttons):
        if button.get("type") == "URL" and (names := _placeholders(button.get("url"))):
            yield f"button {index}", _Wanted("TEXT", names)
        elif button.get("type") == "COPY_CODE":
            yield f"button {index}", _Wanted("COUPON_CODE", ("1",))


def _placeholders(text: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_PLACEHOLDER.findall(text))) if isinstance(text, str) else ()


def _check_place(place: str, want: _Wanted, parameters: list[Json], style: str) -> Refusal | None:
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
    if got != kind and not (kind == "TEXT" and got in ("CURRENCY", "DATE_TIME")):
        return Refusal(132012, f"{place}: Format mismatch, expected {kind}, received {got}")
    if got != "TEXT":
        return None
    text = parameter.get("text")
    if not isinstance(text, str) or not text:
        return Refusal(131008, "Parameter of type text is missing text value")
    if _UNSENDABLE.search(text):
        return Refusal(132018)
    return None


def _count_mismatch(place: str, got: int, wanted: int) -> Refusal:
    return Refusal(
        132000,
        f"{place}: number of localizable_params ({got}) does not match the expected number of params ({wanted})",
    )


def _check_length(components: list[Json], parameters: list[Json]) -> Refusal | None:
    body = next((each for each in components if str(each.get("type", "")).upper() == "BODY"), {})
    length = len(_PLACEHOLDER.sub("", str(body.get("text", ""))))
    length += sum(len(str(each.get("text", ""))) for each in parameters)
    return Refusal(132005) if length > TEMPLATE_TEXT_MAX else None
