"""What a shop's webhooks say of its customers: pure and tolerant."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

from pydantic import JsonValue
from sendwhy.events import EARLIEST, CustomerUpdated, event_id_of
from sendwhy.lenient import identifier, json_of, line

from webhook_ingest.elements import Delivery, Origin, Reading, Report, Unreadable, report_of
from webhook_ingest.values import AHEAD_MAX, Fragment, object_of

SHOPIFY_ACTIONS: Mapping[str, Literal["update", "delete"]] = {
    "customers/create": "update",
    "customers/update": "update",
    "customers/delete": "delete",
}
# Mandatory for every app: they name a customer within their own object, or none.
SHOPIFY_PRIVACY_ACTIONS: Mapping[str, Literal["redact", "data_request", "shop_redact"]] = {
    "customers/redact": "redact",
    "customers/data_request": "data_request",
    "shop/redact": "shop_redact",
}


def read_shopify(delivery: Delivery) -> Reading:
    action = SHOPIFY_ACTIONS.get(delivery.topic)
    whole = json_of(delivery.body)
    if not isinstance(whole, dict):
        raise ValueError("the body is no object")
    if delivery.topic in SHOPIFY_PRIVACY_ACTIONS:
        return _read_privacy_request(delivery, whole)
    if action is None:
        return Reading((), Counter({"field": 1}))
    customer = whole
    number = identifier(customer.get("id"))
    if number is None:
        return Reading((Unreadable(delivery.body, f"{delivery.topic}: id: missing"),), Counter())
    # By its event, not by what it says: a customer may be as they were before, which is news after a change.
    event_name = delivery.event_id or f"{delivery.partition}/{delivery.offset}"
    cause = f"{delivery.signer}/{delivery.topic}/{event_name}"
    address = object_of(customer.get("default_address"))
    event = CustomerUpdated(
        event_id=event_id_of(cause, delivery.signer),
        occurred_at=_shopify_time(customer.get("updated_at"), delivery.at),
        source="shopify",
        action=action,
        workspace_id=delivery.signer,
        contact_id=f"shopify:{number}",
        phone=line(customer.get("phone") or address.get("phone"), 64),
        phone_country_code=line(address.get("country_code"), 2),
        address_country=line(address.get("country_code"), 2),
        language=line(customer.get("locale"), 16),
        name=line(" ".join(filter(None, (line(customer.get(key), 128) for key in ("first_name", "last_name")))), 256),
        detail=delivery.topic,
    )
    return Reading((_told(delivery, cause, event),), Counter())


def _read_privacy_request(delivery: Delivery, whole: Fragment) -> Reading:
    """A mandatory webhook. The customer's phone is told only where it helps to find whom to erase."""
    action = SHOPIFY_PRIVACY_ACTIONS[delivery.topic]
    customer = object_of(whole.get("customer"))
    number = identifier(customer.get("id"))
    if number is None and action != "shop_redact":
        return Reading((Unreadable(delivery.body, f"{delivery.topic}: customer.id: missing"),), Counter())
    cause = f"{delivery.signer}/{delivery.topic}/{hashlib.sha256(delivery.body).hexdigest()}"
    event = CustomerUpdated(
        event_id=event_id_of(cause, delivery.signer),
        occurred_at=delivery.at,
        source="shopify",
        action=action,
        workspace_id=delivery.signer,
        contact_id=f"shopify:{number}" if number else None,
        phone=line(customer.get("phone"), 64) if action == "redact" else None,
        detail=delivery.topic,
    )
    return Reading((_told(delivery, cause, event),), Counter())


def _shopify_time(value: JsonValue, observed: datetime) -> datetime:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else observed
    except ValueError:
        return observed
    is_fine = moment.tzinfo is not None and EARLIEST <= moment <= observed + AHEAD_MAX
    return moment.astimezone(UTC) if is_fine else observed


def _told(delivery: Delivery, cause: str, event: CustomerUpdated) -> Report:
    return report_of(Origin("", None, delivery.topic, {}, "customer", None), cause, event, None)
