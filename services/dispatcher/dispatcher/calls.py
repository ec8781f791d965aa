"""The body of POST /messages (Meta, "Service messages"): the request's content, addressed, with our callback data."""

from typing import Any

from pydantic import JsonValue, TypeAdapter

from dispatcher.decide import Message

_BODY = TypeAdapter(dict[str, JsonValue]).serializer


def callback_data(workspace_id: str, message_id: str) -> str:
    """What comes back in every status webhook of the message (contract.md, status.updated)."""
    return f"sw1:{workspace_id}:{message_id}"


def message_body(message: Message) -> bytes:
    """Only the parts that make a message: an upstream system can't change whom it goes to or what comes back."""
    content = message.funded.request.content
    kind = str(content["type"])
    # Meta, "Business-scoped user IDs": `recipient` stands in place of `to`.
    to = "recipient" if message.funded.resolved.is_by_user_id else "to"
    body: dict[str, Any] = {
        "messaging_product": "whatsapp",
        "recipient_type": "individual",
        to: message.address,
        "type": kind,
        kind: content[kind],
        "biz_opaque_callback_data": callback_data(*message.key),
    }
    if "context" in content:
        body["context"] = content["context"]
    return _BODY.to_json(body)
