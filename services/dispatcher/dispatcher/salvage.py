"""A stored message that this version can't read, e.g. since a newer one wrote it: as much of it as can be read, so that
it is told of, cancelled and expires as any other. It is never sent like that."""

from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import TypeVar

from pydantic import JsonValue, TypeAdapter, ValidationError
from sendwhy.events import (
    LATEST,
    Metadata,
    Moment,
    Origin,
    OriginKind,
    Price,
    Purpose,
    Resolved,
    SenderId,
    SendFunded,
    SendRequested,
    To,
    event_id_of,
)
from sendwhy.stage import fields_of

UNREADABLE = "unreadable"
NO_TRIES = b"[]"
# A message is mostly claimed moments after it came, by the process that has read it then: the same bytes, parsed once.
KEPT_PARSED, KEPT_BYTES_MAX = 1_000, 4_096
_OBJECT: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(dict[str, JsonValue])
_OBJECTS: TypeAdapter[list[dict[str, JsonValue]]] = TypeAdapter(list[dict[str, JsonValue]])
_JSON: TypeAdapter[JsonValue] = TypeAdapter(JsonValue)
_SENDER_ID: TypeAdapter[str | None] = TypeAdapter(SenderId | None)
_TO, _ORIGIN, _RESOLVED, _PRICE = TypeAdapter(To), TypeAdapter(Origin), TypeAdapter(Resolved), TypeAdapter(Price)
_METADATA: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(Metadata)
_MOMENT: TypeAdapter[datetime] = TypeAdapter(Moment)
_BOOL = TypeAdapter(bool)
T = TypeVar("T")


def parsed(body: bytes) -> SendFunded:
    """Raises ValidationError."""
    return _kept(body) if len(body) <= KEPT_BYTES_MAX else SendFunded.model_validate_json(body)


@lru_cache(KEPT_PARSED)
def _kept(body: bytes) -> SendFunded:
    return SendFunded.model_validate_json(body)


def read(body: bytes, workspace_id: str, message_id: str, queued_at: datetime) -> tuple[SendFunded, str | None]:
    """The message and, where it had to be salvaged, why ("field: what is wrong", without values)."""
    try:
        return parsed(body), None
    except ValidationError as error:
        return _salvaged(body, workspace_id, message_id, queued_at), "; ".join(fields_of(error)[:3])


def read_tries(body: bytes) -> tuple[dict[str, JsonValue], ...]:
    """What is known of earlier tries; nothing where it can't be read, since it is evidence and decides nothing."""
    if body == NO_TRIES:
        return ()
    try:
        return tuple(_OBJECTS.validate_json(body))
    except ValidationError:
        return ()


def _salvaged(body: bytes, workspace_id: str, message_id: str, queued_at: datetime) -> SendFunded:
    try:
        told: Mapping[str, JsonValue] = _OBJECT.validate_json(body)
    except ValidationError:
        told = {}
    request = _object(told.get("request"))
    return SendFunded(
        event_id=event_id_of(f"{workspace_id}/{message_id}", UNREADABLE),
        occurred_at=queued_at,
        request=SendRequested(
            message_id=message_id,
            workspace_id=workspace_id,
            sender_id=_part(_SENDER_ID, request.get("sender_id"), None),
            to=_part(_TO, request.get("to"), To(contact_id=UNREADABLE)),
            origin=_part(_ORIGIN, request.get("origin"), Origin(kind=OriginKind.API)),
            content={"type": "text", "text": {}},
            metadata=_part(_METADATA, request.get("metadata"), {}),
        ),
        resolved=_part(_RESOLVED, told.get("resolved"), Resolved(purpose=Purpose.TRANSACTIONAL)),
        needs_subscription=_part(_BOOL, told.get("needs_subscription"), False),
        send_at=queued_at,
        expires_at=_part(_MOMENT, told.get("expires_at"), LATEST),
        price=_part(_PRICE, told.get("price"), Price(credits=0, category=UNREADABLE, assumed=True)),
    )


def _object(value: JsonValue) -> Mapping[str, JsonValue]:
    return value if isinstance(value, dict) else {}


def _part(kind: TypeAdapter[T], value: JsonValue, otherwise: T) -> T:
    try:
        return kind.validate_json(_JSON.dump_json(value))
    except ValidationError:
        return otherwise
