"""Small builders for the dispatcher's tests: a message and facts that pass every gate, to be changed by each case."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from dispatcher.decide import Facts, Lane, Message, Sender, Template
from sendwhy.events import (
    ContactUpdated,
    MarketingState,
    Price,
    Purpose,
    Resolved,
    SendFunded,
    SendRequested,
    event_id_of,
)
from sendwhy.topics import Topic

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
PHONE = "+525512345678"
TOPIC = Topic.SEND_FUNDED

SENDER = Sender(
    sender_id="100000000000001",
    workspace_id="acme",
    waba_id="300",
    portfolio_id="200",
    tier_key="acme/200",
    quality="GREEN",
    templates_synced_at=NOW - timedelta(minutes=10),
)
TEMPLATE = Template(
    name="autumn_sale",
    language="es_MX",
    status="APPROVED",
    category="MARKETING",
    components=[{"type": "BODY", "text": "Hola {{1}}"}],
)


def template_content(*texts: str, name: str = "autumn_sale", language: str = "es_MX") -> dict[str, Any]:
    parameters = [{"type": "text", "text": text} for text in texts]
    components = [{"type": "body", "parameters": parameters}] if parameters else []
    return {"type": "template", "template": {"name": name, "language": {"code": language}, "components": components}}


def text_content() -> dict[str, Any]:
    return {"type": "text", "text": {"body": "Your table is ready."}}


def request(content: dict[str, Any] | None = None, **changes: Any) -> SendRequested:
    fields: dict[str, Any] = {
        "message_id": "m-1",
        "workspace_id": "acme",
        "sender_id": None,
        "to": {"contact_id": "c-1", "phone": PHONE},
        "origin": {"kind": "campaign", "id": "black-friday"},
        "content": content or template_content("Inés"),
        "requested_at": NOW.isoformat(),
    }
    return SendRequested.model_validate_json(json.dumps(fields | changes))


def funded(
    content: dict[str, Any] | None = None, *, purpose: Purpose = Purpose.MARKETING, **changes: Any
) -> SendFunded:
    one = request(content, **changes)
    return SendFunded(
        event_id=event_id_of(one.message_id, "funded"),
        occurred_at=NOW,
        request=one,
        resolved=Resolved(contact_id="c-1", phone=PHONE, country="MX", calling_code="52", purpose=purpose),
        contact_version=1,
        needs_subscription=purpose is Purpose.MARKETING,
        send_at=NOW,
        expires_at=NOW + timedelta(hours=48),
        price=Price(credits=1, category="marketing"),
    )


def message(content: dict[str, Any] | None = None, *, purpose: Purpose = Purpose.MARKETING, **changes: Any) -> Message:
    base = Message(
        funded=funded(content, purpose=purpose),
        sender_id=SENDER.sender_id,
        lane=Lane.MARKETING if purpose is Purpose.MARKETING else Lane.CONVERSATION,
        queued_at=NOW,
    )
    return replace(base, **changes)


def contact(state: MarketingState, version: int = 2) -> ContactUpdated:
    return ContactUpdated(
        event_id=event_id_of("c-1", str(version)),
        occurred_at=NOW,
        workspace_id="acme",
        contact_id="c-1",
        version=version,
        phone=PHONE,
        marketing_state=state,
        since=NOW,
        source="stop_reply",
    )


FACTS = Facts(
    sender=SENDER,
    template=TEMPLATE,
    inbound_read_until=NOW,
    contact=contact(MarketingState.SUBSCRIBED),
)
