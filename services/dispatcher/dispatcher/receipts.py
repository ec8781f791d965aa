"""Receipts of other services, three for each message: by them the dispatcher learns that Meta took what it left open.

Read by msgspec, in a third of the time; what is told beside a plain receipt is read by the event's own model.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated
from uuid import UUID

from msgspec import DecodeError, Meta, Raw, Struct
from msgspec.json import Decoder
from sendwhy.events import EARLIEST, LATEST, Status
from sendwhy.reasons import Service

from dispatcher.store import Key

ACCEPTED_KEPT = 20_000
_Moment = Annotated[datetime, Meta(tz=True)]
_Object = dict[str, Raw] | None
_MessageId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:\-]{1,128}\Z")]
_WorkspaceId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_\-]{1,64}\Z")]
_SenderId = Annotated[str, Meta(pattern=r"^[0-9]{5,20}\Z")]
_Wamid = Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f]{1,512}\Z")]


class Receipt(Struct, frozen=True, gc=False):
    """A `StatusUpdated` with no more than a receipt has: no reason, and nothing of its request. All that the model asks
    is asked here, so that nothing is read that it would refuse."""

    event_id: UUID
    occurred_at: _Moment
    observed_at: _Moment
    service: Service
    status: Status
    message_id: _MessageId | None = None
    workspace_id: _WorkspaceId | None = None
    sender_id: _SenderId | None = None
    provider_message_id: _Wamid | None = None
    pricing: _Object = None
    conversation: _Object = None
    extra: _Object = None
    template_category: str | None = None
    reason: None = None
    to: None = None
    origin: None = None
    metadata: None = None
    receipt_deadline: None = None


_RECEIPT: Decoder[Receipt] = Decoder(Receipt)


def receipt_of(body: bytes) -> Receipt | None:
    """None where it is more than a receipt, or nothing that can be read."""
    try:
        receipt = _RECEIPT.decode(body)
    except (DecodeError, UnicodeDecodeError, RecursionError):
        return None
    in_bounds = EARLIEST <= receipt.occurred_at <= LATEST and EARLIEST <= receipt.observed_at <= LATEST
    return receipt if in_bounds else None


class Accepted:
    """The last messages that were found accepted: that is an end, so what more receipts tell of them is no news."""

    def __init__(self, most: int = ACCEPTED_KEPT) -> None:
        self._keys: dict[Key, None] = {}
        self._most = most

    def __contains__(self, key: Key) -> bool:
        return key in self._keys

    def add(self, keys: Iterable[Key]) -> None:
        self._keys.update(dict.fromkeys(keys))
        while len(self._keys) > self._most:
            del self._keys[next(iter(self._keys))]
