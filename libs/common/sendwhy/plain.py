"""The events of which every message has some, read in a quarter of their models' time: only what the log folds and
billing asks of them is made, all that the models ask is asked.

What doesn't plainly come as Sendwhy writes it, or is wrong, is None here, and the event's own model reads it (ADR 44).
So nothing is read that the model would refuse, and what is read says the same.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar, cast
from uuid import UUID

from msgspec import UNSET, DecodeError, Meta, Raw, Struct, UnsetType
from msgspec.json import Decoder
from pydantic import JsonValue
from pydantic_core import from_json, to_json

from sendwhy.events import (
    EARLIEST,
    LATEST,
    MAX_HORIZON,
    MAX_METADATA_BYTES,
    OriginKind,
    Purpose,
    SendRequested,
    Status,
)
from sendwhy.reasons import Service

# Pydantic's parser refuses numbers of more than 4,300 digits and values nested more than 200 deep, msgspec does not.
# Content can't be larger than it may be in so few bytes either.
SHORT_BYTES, DEPTH = 4_096, 200
# Beyond microseconds msgspec rounds a time and pydantic cuts it off.
_FINER = re.compile(rb"\.\d{7}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

S = TypeVar("S", bound=Struct)
_Moment = Annotated[datetime, Meta(tz=True)]
_MessageId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:\-]{1,128}\Z")]
_WorkspaceId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_\-]{1,64}\Z")]
_SenderId = Annotated[str, Meta(pattern=r"^[0-9]{1,20}\Z")]
_ContactId = Annotated[str, Meta(min_length=1, max_length=128)]
_Name = Annotated[str, Meta(min_length=1, max_length=256)]
_Wamid = Annotated[str, Meta(min_length=1, max_length=512)]


class _Object(Struct, frozen=True, gc=False):
    """Any object; nothing of it is kept."""


class To(Struct, frozen=True, gc=False):
    contact_id: _ContactId | None = None
    phone: Annotated[str, Meta(min_length=1, max_length=64)] | None = None


class Origin(Struct, frozen=True, gc=False):
    kind: OriginKind
    id: _Name | None = None
    name: _Name | None = None
    node_id: _Name | None = None
    enrollment_id: _Name | None = None
    thread_id: _Name | None = None
    agent: _Name | None = None


class _Language(Struct, frozen=True, gc=False):
    code: Annotated[str, Meta(min_length=2, max_length=16)]


class _Template(Struct, frozen=True, gc=False):
    name: Annotated[str, Meta(min_length=1, max_length=512)]
    language: _Language
    components: Annotated[list[_Object], Meta(max_length=64)] | UnsetType = UNSET


class _Content(Struct, frozen=True, gc=False):
    type: str
    template: _Template | UnsetType = UNSET
    text: _Object | UnsetType = UNSET


class Request(Struct, frozen=True, gc=False):
    """A `SendRequested` with a template or a text. `metadata` as it stands in the record; see `told_by`."""

    message_id: _MessageId
    workspace_id: _WorkspaceId
    to: To
    origin: Origin
    content: _Content
    sender_id: _SenderId | None = None
    purpose: Purpose | None = None
    requested_at: _Moment | None = None
    send_at: _Moment | None = None
    expires_at: _Moment | None = None
    resend_of: _MessageId | None = None
    metadata: Raw = Raw(b"{}")

    def expiry(self, arrived_at: datetime) -> datetime:
        # It has all that the rule asks for.
        return SendRequested.expiry(cast("SendRequested", self), arrived_at)

    @property
    def template_id(self) -> tuple[str, str] | None:
        template = self.content.template
        return (template.name, template.language.code) if isinstance(template, _Template) else None


class Resolved(Struct, frozen=True, gc=False):
    purpose: Purpose
    contact_id: _ContactId | None = None
    phone: str | None = None
    user_id: str | None = None
    country: str | None = None
    calling_code: str | None = None


class Consented(Struct, frozen=True, gc=False):
    event_id: UUID
    occurred_at: _Moment
    request: Request
    resolved: Resolved
    needs_subscription: bool
    send_at: _Moment
    expires_at: _Moment
    contact_version: int | None = None

    @property
    def workspace_id(self) -> str:
        return self.request.workspace_id

    @property
    def message_id(self) -> str:
        return self.request.message_id


class _Price(Struct, frozen=True, gc=False):
    credits: Annotated[int, Meta(ge=0, le=1_000_000)]
    category: str
    calling_code: str | None = None
    assumed: bool = False


class Funded(Consented, frozen=True, gc=False, kw_only=True):
    price: _Price


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
    provider_message_id: _Wamid | None = None
    pricing: _Object | None = None
    conversation: _Object | None = None
    extra: _Object | None = None
    to: To | None = None
    origin: Origin | None = None
    metadata: Raw = Raw(b"null")
    receipt_deadline: _Moment | None = None
    template_category: str | None = None
    reason: None = None


class PricedReceipt(Receipt, frozen=True, gc=False, kw_only=True):
    """A `Receipt` with what Meta says of its price."""

    pricing: dict[str, Any] | None = None  # type: ignore[assignment] # more of the same


Plain = Request | Consented | Receipt


def _reader(kind: type[S], is_plain: Callable[[S], bool]) -> Callable[[bytes], S | None]:
    decode = Decoder(kind).decode

    def read(body: bytes) -> S | None:
        if len(body) > SHORT_BYTES or body.count(b"[") + body.count(b"{") > DEPTH or _FINER.search(body):
            return None
        try:
            # What msgspec skips it doesn't read as UTF-8.
            event = decode(body if body.isascii() else body.decode())
        except (DecodeError, UnicodeDecodeError, RecursionError):
            return None
        # In JSON control characters come only by an escape, but for the last one.
        if (b"\\" in body or b"\x7f" in body) and not _are_lines(event):
            return None
        return event if is_plain(event) else None

    return read


def _are_lines(event: Struct) -> bool:
    """Whether no string kept of it has a control character. Patterns that say so take a fifth of the reading."""
    for name in event.__struct_fields__:
        value = getattr(event, name)
        if isinstance(value, str) and _CONTROL.search(value):
            return False
        if isinstance(value, Struct) and not _are_lines(value):
            return False
    return True


def _is_in_bounds(moment: datetime | None) -> bool:
    """Of a time in another zone than UTC the model makes one of UTC."""
    return moment is None or (moment.tzinfo is UTC and EARLIEST <= moment <= LATEST)


def _is_plain_request(request: Request) -> bool:
    requested_at, send_at, expires_at = request.requested_at, request.send_at, request.expires_at
    return (
        _is_in_bounds(requested_at)
        and (send_at is None or (_is_in_bounds(send_at) and _is_within_the_horizon(send_at, requested_at)))
        and (expires_at is None or (_is_in_bounds(expires_at) and _is_within_the_horizon(expires_at, requested_at)))
        and _is_somebody(request.to)
        and _is_of_its_type(request.content)
        and _are_metadata(bytes(request.metadata))
    )


def _is_plain_consented(event: Consented) -> bool:
    return (
        _is_in_bounds(event.occurred_at)
        and _is_in_bounds(event.send_at)
        and _is_in_bounds(event.expires_at)
        and _is_plain_request(event.request)
    )


def _is_plain_receipt(event: Receipt) -> bool:
    metadata = bytes(event.metadata)
    return (
        _is_in_bounds(event.occurred_at)
        and _is_in_bounds(event.observed_at)
        and _is_in_bounds(event.receipt_deadline)
        and (event.to is None or _is_somebody(event.to))
        and (metadata == b"null" or _are_metadata(metadata))
    )


def _is_within_the_horizon(moment: datetime, requested_at: datetime | None) -> bool:
    return requested_at is None or moment <= requested_at + MAX_HORIZON


def _is_somebody(to: To) -> bool:
    return to.contact_id is not None or to.phone is not None


def _is_of_its_type(content: _Content) -> bool:
    kind = content.type
    return (kind == "template" and content.template is not UNSET) or (kind == "text" and content.text is not UNSET)


def _are_metadata(told: bytes) -> bool:
    # Written anew, a number may take some six times as much.
    is_small = len(told) * 8 <= MAX_METADATA_BYTES
    return told[:1] == b"{" and (is_small or len(to_json(from_json(told))) <= MAX_METADATA_BYTES)


def told_by(metadata: Raw) -> dict[str, JsonValue] | None:
    """The metadata themselves; None where there are none."""
    told: Any = from_json(bytes(metadata))
    return told or None


request_of = _reader(Request, _is_plain_request)
consented_of = _reader(Consented, _is_plain_consented)
funded_of = _reader(Funded, _is_plain_consented)
receipt_of = _reader(Receipt, _is_plain_receipt)
priced_receipt_of = _reader(PricedReceipt, _is_plain_receipt)
