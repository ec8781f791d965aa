"""Free-form interactive messages: reply buttons, lists, links, flows."""

from collections.abc import Callable
from typing import Any

from meta_simulator.checks import is_text, objects, too_long
from meta_simulator.errors import Json, Refusal

BODY_MAX = {"list": 4096}
FOOTER_MAX = HEADER_MAX = 60
HEADERS = ("text", "image", "video", "document")
TYPES = (
    "address_message", "button", "call_permission_request", "carousel", "catalog_message", "cta_url", "flow", "list",
    "location_request_message", "product", "product_list", "request_contact_info", "voice_call",
)  # fmt: skip


def check_interactive(interactive: Json) -> Refusal | None:
    kind, action = interactive.get("type"), interactive.get("action")
    if not kind or not isinstance(action, dict):
        return Refusal(131008, "interactive.type and interactive.action are required.")
    if kind not in TYPES:
        return Refusal(131009, f"Unexpected interactive type {kind}.")
    return _check_words(interactive, kind) or (_ACTIONS[kind](action) if kind in _ACTIONS else None)


def _check_words(interactive: Json, kind: str) -> Refusal | None:
    body, footer = interactive.get("body"), interactive.get("footer")
    longest = BODY_MAX.get(kind, 1024)
    if kind in _ACTIONS and not (isinstance(body, dict) and body.get("text")):
        return Refusal(131008, "The parameter interactive['body']['text'] is required.")
    if body is not None and not (isinstance(body, dict) and is_text(body.get("text"), longest)):
        return Refusal(131009, f"Body text length invalid. Min length: 1, Max length: {longest}")
    if footer is not None and not (isinstance(footer, dict) and is_text(footer.get("text"), FOOTER_MAX)):
        return Refusal(131009, f"Footer text length invalid. Min length: 1, Max length: {FOOTER_MAX}")
    return _check_header(interactive.get("header"), kind)


def _check_header(header: Any, kind: str) -> Refusal | None:
    if header is None:
        return None
    header_type = header.get("type") if isinstance(header, dict) else None
    if header_type not in (HEADERS if kind != "list" else ("text",)):
        return Refusal(131009, f"Header type {header_type} is not supported by interactive type {kind}.")
    if header_type == "text":
        fits = is_text(header.get("text"), HEADER_MAX)
        return None if fits else Refusal(131009, f"Header text length invalid. Min length: 1, Max length: {HEADER_MAX}")
    media = header.get(header_type)
    has_media = isinstance(media, dict) and (media.get("id") or media.get("link"))
    return None if has_media else Refusal(131008, f"The header's {header_type} needs an id or a link.")


def _check_buttons(action: Json) -> Refusal | None:
    buttons = action.get("buttons")
    if not isinstance(buttons, list) or not 1 <= len(buttons) <= 3:
        return Refusal(131009, "Invalid buttons count. Min allowed buttons: 1, Max allowed buttons: 3")
    if any(each.get("type") != "reply" for each in objects(buttons)):
        return Refusal(131009, "The type of a button must be reply.")
    replies = objects([each.get("reply") for each in objects(buttons)])
    if len(replies) < len(buttons) or not all(is_text(reply.get("title"), 20) for reply in replies):
        return Refusal(131009, "Button title length invalid. Min length: 1, Max length: 20")
    if not all(is_text(reply.get("id"), 256) for reply in replies):
        return Refusal(131009, "Button id length invalid. Min length: 1, Max length: 256")
    if len({reply["id"] for reply in replies}) < len(buttons):
        return Refusal(131009, "Duplicated button id. Buttons should have unique ids.")
    return None


def _check_rows(action: Json) -> Refusal | None:
    if not is_text(action.get("button"), 20):
        return Refusal(131009, "Button label length invalid. Min length: 1, Max length: 20")
    sections = action.get("sections")
    if not isinstance(sections, list) or not 1 <= len(sections) <= 10:
        return Refusal(131009, "Invalid sections count. Min allowed sections: 1, Max allowed sections: 10")
    if any(too_long(each.get("title"), 24) for each in objects(sections)):
        return Refusal(131009, "Section title length invalid. Max length: 24")
    if len(sections) > 1 and not all(each.get("title") for each in objects(sections)):
        return Refusal(131009, "Section title is required when there is more than one section.")
    rows = [row for section in objects(sections) for row in objects(section.get("rows"))]
    if not 1 <= len(rows) <= 10:
        return Refusal(131009, f"Total row count exceed max allowed count: 10, got {len(rows)}")
    return _check_each_row(rows)


def _check_each_row(rows: list[Json]) -> Refusal | None:
    if not all(is_text(row.get("title"), 24) for row in rows):
        return Refusal(131009, "Row title length invalid. Min length: 1, Max length: 24")
    if not all(is_text(row.get("id"), 200) for row in rows):
        return Refusal(131009, "Row id length invalid. Min length: 1, Max length: 200")
    if any(too_long(row.get("description"), 72) for row in rows):
        return Refusal(131009, "Row description length invalid. Max length: 72")
    if len({row["id"] for row in rows}) < len(rows):
        return Refusal(131009, "Duplicated row id. Rows should have unique ids.")
    return None


def _check_link(action: Json) -> Refusal | None:
    parameters = action.get("parameters")
    if action.get("name") != "cta_url" or not isinstance(parameters, dict):
        return Refusal(131008, "action.name cta_url and action.parameters are required.")
    if not is_text(parameters.get("display_text"), 20):
        return Refusal(131009, "display_text length invalid. Min length: 1, Max length: 20")
    if not str(parameters.get("url", "")).startswith(("http://", "https://")):
        return Refusal(131009, "The url of the button is not valid.")
    return None


def _check_flow(action: Json) -> Refusal | None:
    parameters = action.get("parameters")
    if action.get("name") != "flow" or not isinstance(parameters, dict):
        return Refusal(131008, "action.name flow and action.parameters are required.")
    if not parameters.get("flow_id") and not parameters.get("flow_name"):
        return Refusal(131008, "Either flow_id or flow_name is required.")
    if not is_text(parameters.get("flow_cta"), 30):
        return Refusal(131009, "flow_cta length invalid. Min length: 1, Max length: 30")
    return None


def _check_location_request(action: Json) -> Refusal | None:
    return None if action.get("name") == "send_location" else Refusal(131009, "action.name must be send_location.")


_ACTIONS: dict[str, Callable[[Json], Refusal | None]] = {
    "button": _check_buttons,
    "list": _check_rows,
    "cta_url": _check_link,
    "flow": _check_flow,
    "location_request_message": _check_location_request,
}
