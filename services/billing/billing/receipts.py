"""Receipts, four for each message, read by msgspec in a third of their model's time: what billing asks of them is made,
all that the model asks is asked. What is no plain receipt, or is wrong, is left to the model (ADR 44)."""

import re
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from msgspec import DecodeError, Meta, Struct
from msgspec.json import Decoder
from pydantic_core import to_json
from sendwhy.events import EARLIEST, LATEST, MAX_METADATA_BYTES, OriginKind, Status
from sendwhy.reasons import Service

# Pydantic's parser refuses numbers of more than 4,300 digits and values nested more than 200 deep, msgspec does not.
SHORT_BYTES, DEPTH = 4_096, 200
# Beyond microseconds msgspec rounds a time and pydantic cuts it off.
_FINER = re.compile(rb"\.\d{7}")

_Moment = Annotated[datetime, Meta(tz=True)]
_MessageId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:\-]{1,128}\Z")]
_WorkspaceId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_\-]{1,64}\Z")]
_SenderId = Annotated[str, Meta(pattern=r"^[0-9]{5,20}\Z")]


def _line(least: int, most: int) -> Meta:
    return Meta(pattern=rf"^[^\x00-\x1f\x7f]{{{least},{most}}}\Z")


class _Object(Struct, frozen=True, gc=False):
    """Any object; nothing of it is kept."""


class _To(Struct, frozen=True, gc=False):
    contact_id: Annotated[str, _line(1, 128)] | None = None
    phone: Annotated[str, _line(1, 64)] | None = None


_Name = Annotated[str, _line(1, 256)] | None


class _Origin(Struct, frozen=True, gc=False):
    kind: OriginKind
    id: _Name = None
    name: _Name = None
    node_id: _Name = None
    enrollment_id: _Name = None
    thread_id: _Name = None
    agent: _Name = None


class Receipt(Struct, frozen=True, gc=False):
    """A `StatusUpdated` without a reason."""

    event_id: UUID
    occurred_at: _Moment
    observed_at: _Moment
    service: Service
    status: Status
    message_id: _MessageId | None = None
    workspace_id: _WorkspaceId | None = None
    sender_id: _SenderId | None = None
    provider_message_id: Annotated[str, _line(1, 512)] | None = None
    pricing: dict[str, Any] | None = None
    conversation: _Object | None = None
    extra: _Object | None = None
    to: _To | None = None
    origin: _Origin | None = None
    metadata: dict[str, Any] | None = None
    receipt_deadline: _Moment | None = None
    template_category: str | None = None
    reason: None = None


_decode = Decoder(Receipt).decode


def receipt_of(body: bytes) -> Receipt | None:
    """None where it is more than a receipt, or nothing that can be read."""
    if len(body) > SHORT_BYTES or body.count(b"[") + body.count(b"{") > DEPTH or _FINER.search(body):
        return None
    try:
        # What msgspec skips it doesn't read as UTF-8.
        receipt = _decode(body if body.isascii() else body.decode())
    except (DecodeError, UnicodeDecodeError, RecursionError):
        return None
    deadline, to = receipt.receipt_deadline, receipt.to
    is_plain = (
        EARLIEST <= receipt.occurred_at <= LATEST
        and EARLIEST <= receipt.observed_at <= LATEST
        and (deadline is None or EARLIEST <= deadline <= LATEST)
        and (to is None or to.contact_id is not None or to.phone is not None)
        and (receipt.metadata is None or len(to_json(receipt.metadata)) <= MAX_METADATA_BYTES)
    )
    return receipt if is_plain else None
