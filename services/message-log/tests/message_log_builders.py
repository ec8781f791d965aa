"""Events as the other services publish them, with the fields that a test doesn't care for filled in."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

from sendwhy.events import (
    Origin,
    OriginKind,
    Purpose,
    Resolved,
    Scope,
    SendConsented,
    SenderUpdated,
    SendHeld,
    SendRejected,
    SendRequested,
    Status,
    StatusUpdated,
    To,
    reason,
)
from sendwhy.reasons import ReasonCode, Service

T0 = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
WORKSPACE, MESSAGE = "acme", "bf-1"
_NAMES = UUID(int=1)
# What an id may be made of though it means something in an address.
CONTACT_IDS = (
    "shopify:a/b",
    "a/export",
    "a/eligibility",
    "50%",
    "a%2Fb",
    "a?b=c",
    "a#b",
    "a&b;c=d",
    "Inés Ortega",
    "👋🏽",
)


def after(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def event_id(name: str) -> UUID:
    return uuid5(_NAMES, name)


def registered(sender_id: str, **given: Any) -> SenderUpdated:
    """A number of the account 301, which Meta has shown, whose app is 400."""
    fields: dict[str, Any] = {
        "event_id": event_id(f"registered {sender_id}"),
        "occurred_at": T0,
        "sender_id": sender_id,
        "workspace_id": WORKSPACE,
        "version": 1,
        "waba_id": "301",
        "app_id": "400",
        "default": False,
        "synced_at": T0,
    }
    return SenderUpdated(**(fields | given))


def requested(**given: Any) -> SendRequested:
    fields: dict[str, Any] = {
        "message_id": MESSAGE,
        "workspace_id": WORKSPACE,
        "to": To(contact_id="shopify:7712", phone="+525512345678"),
        "origin": Origin(kind=OriginKind.CAMPAIGN, id="black-friday", name="Black Friday"),
        "content": {"type": "template", "template": {"name": "autumn_sale", "language": {"code": "es_MX"}}},
        "requested_at": T0,
        "metadata": {"order": "4711"},
    }
    return SendRequested(**(fields | given))


def consented(seconds: float = 1, **given: Any) -> SendConsented:
    request = requested(**given)
    return SendConsented(
        event_id=event_id(f"consented {request.workspace_id} {request.message_id}"),
        occurred_at=after(seconds),
        request=request,
        resolved=Resolved(contact_id="shopify:7712", phone="+525512345678", purpose=Purpose.MARKETING),
        needs_subscription=True,
        send_at=T0,
        expires_at=after(3600),
    )


def rejected(code: ReasonCode, seconds: float = 2, service: Service = Service.CONSENT, **given: Any) -> SendRejected:
    fields: dict[str, Any] = {
        "event_id": event_id(f"rejected {code} {seconds} {given}"),
        "occurred_at": after(seconds),
        "message_id": MESSAGE,
        "workspace_id": WORKSPACE,
        "to": To(contact_id="shopify:7712", phone="+525512345678"),
        "origin": Origin(kind=OriginKind.CAMPAIGN, id="black-friday"),
        "service": service,
        "reason": reason(code, f"because of {code}"),
    }
    return SendRejected(**(fields | given))


def status(word: Status, seconds: float = 3, code: ReasonCode | None = None, **given: Any) -> StatusUpdated:
    fields: dict[str, Any] = {
        "event_id": event_id(f"{word} {seconds} {code} {given}"),
        "occurred_at": after(seconds),
        "observed_at": after(seconds),
        "message_id": MESSAGE,
        "workspace_id": WORKSPACE,
        "sender_id": "415566778899001",
        "provider_message_id": "wamid.HBgM1",
        "service": Service.DISPATCHER if word is Status.ACCEPTED else Service.WEBHOOK_INGEST,
        "status": word,
        "reason": reason(code, f"because of {code}") if code else None,
    }
    return StatusUpdated(**(fields | given))


def held(cause: ReasonCode, seconds: float = 2, until: float | None = None, **given: Any) -> SendHeld:
    fields: dict[str, Any] = {
        "event_id": event_id(f"held {cause} {seconds} {given}"),
        "occurred_at": after(seconds),
        "workspace_id": WORKSPACE,
        "message_id": MESSAGE,
        "cause": cause,
        "scope": Scope(kind="message", id=MESSAGE),
        "since": after(seconds),
        "until": None if until is None else after(until),
    }
    return SendHeld(**(fields | given))


ADMIN, VIEWER, OPERATOR, STRANGER = "admin-token-1", "viewer-token-1", "operator-token-1", "stranger-token-1"
PRIVACY_KEY = "a key of tests only"
# Those of the workspace that everything.py fills.
EVERYTHING_VIEWER, EVERYTHING_OPERATOR = "everything-viewer-1", "everything-operator-1"
TOKENS = (
    f"{ADMIN}:admin:*,{VIEWER}:viewer:{WORKSPACE},{OPERATOR}:operator:{WORKSPACE},{STRANGER}:admin:other,"
    f"{EVERYTHING_VIEWER}:viewer:everything,{EVERYTHING_OPERATOR}:operator:everything"
)
