"""What Meta checks in the body of a send, and how it words what it finds.

Lengths and shapes: Meta's pages on each message type, as of 2026; unknown keys are refused as Meta refuses them.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from meta_simulator.checks import objects, too_long, unexpected_key, unknown_keys
from meta_simulator.errors import Json, Refusal
from meta_simulator.interactive import check_interactive

TEXT_MAX = 4096
CAPTION_MAX = 1024
FILENAME_MAX = 240
CALLBACK_MAX = 512
MEDIA = ("audio", "document", "image", "sticker", "video")
TYPES = (*MEDIA, "contacts", "interactive", "location", "reaction", "template", "text")

_COMMON = frozenset(
    {
        "messaging_product", "recipient_type", "to", "recipient", "type", "context", "biz_opaque_callback_data",
        "recipient_identity_key_hash", "message_activity_sharing", "product_policy", "category", "access_token",
    }
)  # fmt: skip
_KEYS: dict[str, frozenset[str]] = {
    "text": frozenset({"body", "preview_url"}),
    "image": frozenset({"id", "link", "caption"}),
    "video": frozenset({"id", "link", "caption"}),
    "audio": frozenset({"id", "link", "voice"}),
    "document": frozenset({"id", "link", "caption", "filename"}),
    "sticker": frozenset({"id", "link"}),
    "location": frozenset({"latitude", "longitude", "name", "address"}),
    "reaction": frozenset({"message_id", "emoji"}),
    "template": frozenset({"name", "language", "components", "namespace"}),
    "interactive": frozenset({"type", "header", "body", "footer", "action"}),
}
_CONTACT_KEYS = frozenset({"addresses", "birthday", "emails", "name", "org", "phones", "urls"})


@dataclass(frozen=True, slots=True)
class Addressed:
    """Who a body is for: a phone (digits only) or a business-scoped user id."""

    input: str
    key: str
    by_user_id: bool


def read_json(raw: bytes) -> Any:
    """Strict UTF-8 JSON, whatever it holds. Raises ValueError."""
    try:
        return _DECODER.decode(raw.decode())
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)
_NO_DIGITS = re.compile(r"[^0-9]")
_USER_ID = re.compile(r"[A-Z]{2}\.[A-Za-z0-9.]{1,128}")


def digits(phone: str) -> str:
    return _NO_DIGITS.sub("", phone)


def is_user_id(person: str) -> bool:
    """Whether this names a person by WhatsApp's user id (MX.7041…), not by a number."""
    return _USER_ID.fullmatch(person) is not None


def addressee(body: Json) -> Addressed | Refusal:
    """`to` wins over `recipient`, as Meta has it."""
    to, recipient = body.get("to"), body.get("recipient")
    if to is None and isinstance(recipient, str) and recipient:
        return Addressed(recipient, recipient, by_user_id=True)
    if to is None or to == "":
        return Refusal(100, message="(#100) The parameter to is required.")
    phone = digits(str(to)) if isinstance(to, str | int) else ""
    if not 5 <= len(phone) <= 20:
        return Refusal(131009, "Recipient phone number is not valid")
    return Addressed(str(to), phone, by_user_id=False)


def check_body(body: Json) -> Refusal | None:
    """Everything that needs neither the account's templates nor the number."""
    wrong = _check_common(body)
    if wrong:
        return wrong
    kind = body.get("type", "text")
    if kind not in TYPES:
        names = ", ".join(TYPES).upper()
        return Refusal(100, message=f'(#100) Param type must be one of {{{names}}} - got "{kind}".')
    content = body.get(kind)
    if content is None:
        return Refusal(131008, f"The parameter {kind} is required for messages of type {kind}.")
    if not isinstance(content, list if kind == "contacts" else dict):
        return Refusal(131009, f"The parameter {kind} has the wrong type.")
    unknown = next((key for key in body if key not in _COMMON and key not in TYPES), None)
    if unknown is not None:
        return unexpected_key(unknown, "messages")
    if isinstance(content, dict) and (wrong := unknown_keys(content, _KEYS[kind], kind)):
        return wrong
    return _CHECKS[kind](content)


def _check_common(body: Json) -> Refusal | None:
    if body.get("messaging_product") != "whatsapp":
        return Refusal(100, message="(#100) The parameter messaging_product is required.")
    callback = body.get("biz_opaque_callback_data")
    if callback is not None and (not isinstance(callback, str) or len(callback) > CALLBACK_MAX):
        return Refusal(100, f"biz_opaque_callback_data must be a string of at most {CALLBACK_MAX} characters.")
    recipient_type = body.get("recipient_type", "individual")
    if recipient_type not in ("individual", "group"):
        message = f'(#100) Param recipient_type must be one of {{INDIVIDUAL, GROUP}} - got "{recipient_type}".'
        return Refusal(100, message=message)
    context = body.get("context")
    if context is None or (isinstance(context, dict) and isinstance(context.get("message_id"), str)):
        return None
    return Refusal(131009, "context.message_id must be the id of a message.")


def _check_text(text: Json) -> Refusal | None:
    body = text.get("body")
    if body is None or body == "":
        return Refusal(131008, "The parameter text.body is required.")
    if not isinstance(body, str) or len(body) > TEXT_MAX:
        return Refusal(100, message=f"(#100) Param text['body'] must be at most {TEXT_MAX} characters long.")
    if not isinstance(text.get("preview_url", False), bool):
        return Refusal(100, message="(#100) Param text['preview_url'] must be a boolean.")
    return None


def _check_media(media: Json) -> Refusal | None:
    if not media.get("id") and not media.get("link"):
        return Refusal(131008, "Either the media id or the link is required.")
    link = media.get("link")
    if link is not None and not str(link).startswith(("http://", "https://")):
        return Refusal(131009, "The media link is not a valid URL.")
    for key, longest in (("caption", CAPTION_MAX), ("filename", FILENAME_MAX)):
        if too_long(media.get(key), longest):
            return Refusal(131009, f"The media {key} must be a string of at most {longest} characters.")
    return None


def _check_location(location: Json) -> Refusal | None:
    latitude, longitude = location.get("latitude"), location.get("longitude")
    if latitude is None or longitude is None:
        return Refusal(131008, "location.latitude and location.longitude are required.")
    try:
        on_earth = abs(float(latitude)) <= 90 and abs(float(longitude)) <= 180
    except (TypeError, ValueError, OverflowError):
        on_earth = False
    return None if on_earth else Refusal(131009, "location.latitude or location.longitude is out of its range.")


def _check_reaction(reaction: Json) -> Refusal | None:
    if not reaction.get("message_id"):
        return Refusal(131008, "The parameter reaction.message_id is required.")
    if not isinstance(reaction.get("emoji", ""), str):
        return Refusal(131009, "reaction.emoji must be an emoji, or empty to take the reaction back.")
    return None


def _check_contacts(contacts: list[Json]) -> Refusal | None:
    named = [each for each in objects(contacts) if isinstance(each.get("name"), dict)]
    if not contacts or len(named) < len(contacts) or not all(each["name"].get("formatted_name") for each in named):
        return Refusal(131008, "contacts[].name.formatted_name is required.")
    for each in named:
        if wrong := unknown_keys(each, _CONTACT_KEYS, "contacts"):
            return wrong
    return None


def _check_template_call(template: Json) -> Refusal | None:
    language = template.get("language")
    if not template.get("name"):
        return Refusal(131008, "The parameter template.name is required.")
    if not isinstance(template["name"], str):
        return Refusal(131009, "template.name must be a string.")
    if not isinstance(language, dict) or not language.get("code"):
        return Refusal(131008, "The parameter template.language.code is required.")
    if language.get("policy", "deterministic") != "deterministic":
        return Refusal(131009, "template.language.policy must be deterministic.")
    components = template.get("components", [])
    if not isinstance(components, list) or not all(isinstance(each, dict) for each in components):
        return Refusal(131009, "template.components must be a list of objects.")
    return None


_CHECKS: dict[str, Callable[[Any], Refusal | None]] = {
    **dict.fromkeys(MEDIA, _check_media),
    "contacts": _check_contacts,
    "interactive": check_interactive,
    "location": _check_location,
    "reaction": _check_reaction,
    "template": _check_template_call,
    "text": _check_text,
}
