"""Knowing an erased person again without keeping them: keyed tags, spellings of a phone, and what is left of their
requests. Pure."""

import hmac
from collections.abc import Iterable
from typing import TypeVar
from uuid import UUID

from pydantic import JsonValue

from sendwhy.events import Origin, Resolved, SendConsented, SendRejected, SendRequested, To

ERASURE = "erasure"
ERASED_PREFIX = "erased:"
# For somebody of whose erasure no number is at hand.
UNNUMBERED_ALIAS = f"{ERASED_PREFIX}unnumbered"
TAG_BYTES = 16

C = TypeVar("C", bound=SendConsented)


class Tagger:
    """Keyed tags (HMAC) of identities: without the key, nobody can try out phone numbers against them."""

    def __init__(self, privacy_key: str) -> None:
        self._key = privacy_key.encode()

    def __call__(self, workspace_id: str, kind: str, value: str) -> bytes:
        text = f"{workspace_id}\0{kind}\0{value}"
        return hmac.digest(self._key, text.encode(), "sha256")[:TAG_BYTES]

    def of_person(
        self, workspace_id: str, *, contact_id: str | None = None, phone: str | None = None, user_id: str | None = None
    ) -> list[bytes]:
        """The tags that an order names a person by, as far as these are told; `phone` in any spelling with its code."""
        told = (("contact", contact_id), ("digits", digits_of(phone)), ("user", user_id))
        return [self(workspace_id, kind, value) for kind, value in told if value]


def digits_of(phone: str | None) -> str | None:
    if not phone:
        return None
    digits = phone.removeprefix("+")
    if digits.isascii() and digits.isdigit():
        return digits
    return "".join(each for each in phone if each in "0123456789") or None


def spellings(phone: str) -> list[str]:
    """A phone's digits in all forms that stand for the same person: Mexico's old 1, Argentina's 9, Brazil's 9,
    which old mobiles got (they began with 6 to 9): a landline with a 9 before it is a stranger's mobile."""
    digits = digits_of(phone) or ""
    code, rest = digits[:2], digits[2:]
    forms = {digits}
    if code == "52" and len(rest) in (10, 11):
        forms |= {f"52{rest[-10:]}", f"521{rest[-10:]}"}
    elif code == "54" and len(rest) in (10, 11):
        forms |= {f"54{rest[-10:]}", f"549{rest[-10:]}"}
    elif code == "55" and len(rest) in (10, 11) and rest[-8] in "6789":
        forms |= {f"55{rest[:2]}{rest[-8:]}", f"55{rest[:2]}9{rest[-8:]}"}
    return sorted(forms)


def forms_of(phones: Iterable[str]) -> list[str]:
    """These numbers in all their spellings, each as digits and with a plus: as whatever wrote them down may have."""
    return sorted({form for phone in phones for digits in spellings(phone) for form in (digits, f"+{digits}")})


def alias_of(erasure_id: UUID) -> str:
    """What stands where an erased person's contact id stood; it leads to the proof."""
    return f"{ERASED_PREFIX}{erasure_id}"


def is_alias(contact_id: str | None) -> bool:
    return contact_id is not None and contact_id.startswith(ERASED_PREFIX)


def redacted(event: C, alias: str) -> C:
    """A message without its person: who it was for, what it said, and what upstream wrote beside it."""
    resolved = Resolved(
        contact_id=alias,
        country=event.resolved.country,
        calling_code=event.resolved.calling_code,
        purpose=event.resolved.purpose,
    )
    return event.model_copy(update={"request": redacted_request(event.request, alias), "resolved": resolved})


def redacted_rejection(event: SendRejected, alias: str) -> SendRejected:
    """A rejection without its person; the reason stays, so it must be one that quotes nobody (billing's)."""
    origin = event.origin and _impersonal(event.origin)
    return event.model_copy(update={"to": To(contact_id=alias), "metadata": {}, "origin": origin})


def _impersonal(origin: Origin) -> Origin:
    return origin.model_copy(update={"enrollment_id": None, "thread_id": None})


def redacted_request(request: SendRequested, alias: str) -> SendRequested:
    kind = str(request.content["type"])
    left: JsonValue = [] if kind == "contacts" else {}
    if request.template is not None:
        left = {"name": request.template.name, "language": {"code": request.template.language.code}}
    return SendRequested(
        message_id=request.message_id,
        workspace_id=request.workspace_id,
        sender_id=request.sender_id,
        to=To(contact_id=alias),
        origin=_impersonal(request.origin),
        purpose=request.purpose,
        content={"type": kind, kind: left},
        requested_at=request.requested_at,
        send_at=request.send_at,
        expires_at=request.expires_at,
        resend_of=request.resend_of,
    )
