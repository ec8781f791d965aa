"""The dispatcher's word that Meta took a message, of which little is asked here. Read by msgspec, in a third of the
time; what that can't read is the model's to refuse, or to read."""

from datetime import datetime
from typing import Annotated

from msgspec import DecodeError, Meta, Struct
from msgspec.json import Decoder
from sendwhy.events import EARLIEST, LATEST, Status, StatusUpdated
from sendwhy.reasons import Service
from sendwhy.stage import Record
from sendwhy.topics import source_header

_OUR_SOURCE = source_header(Service.WEBHOOK_INGEST)
_Moment = Annotated[datetime, Meta(tz=True)]


class Recipient(Struct):
    """Whom it is for; at least one of them."""

    contact_id: Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f]{1,128}\Z")] | None = None
    phone: Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f]{1,64}\Z")] | None = None


class Accepted(Struct):
    """Of an `accepted` what is asked, as its model has it. All but `to` and the deadline must be there."""

    status: Status
    service: Service
    occurred_at: _Moment
    message_id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:\-]{1,128}\Z")]
    workspace_id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_\-]{1,64}\Z")]
    sender_id: Annotated[str, Meta(pattern=r"^[0-9]{1,20}\Z")]
    provider_message_id: Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f]{1,512}\Z")]
    to: Recipient | None = None
    receipt_deadline: _Moment | None = None


_ACCEPTED: Decoder[Accepted] = Decoder(Accepted)


def accepted_of(record: Record[None]) -> Accepted | None:
    """An `accepted` of the dispatcher; None for all other statuses, of which those of ours, three for every message,
    aren't read. Raises ValueError where its keys are missing, or what any event must have."""
    if record.header("ce_source") == _OUR_SOURCE:
        return None
    body = record.value or b""
    try:
        told = _ACCEPTED.decode(body)
    except (DecodeError, UnicodeDecodeError, RecursionError):
        told = None
    if told is None or not _can_be(told):
        told = _by_the_model(body)
    is_accepted = told is not None and told.status is Status.ACCEPTED and told.service is Service.DISPATCHER
    return told if is_accepted else None


def _can_be(told: Accepted) -> bool:
    has_recipient = told.to is None or told.to.contact_id is not None or told.to.phone is not None
    moments = (told.occurred_at, told.receipt_deadline or told.occurred_at)
    return has_recipient and all(EARLIEST <= moment <= LATEST for moment in moments)


def _by_the_model(body: bytes) -> Accepted | None:
    event = StatusUpdated.model_validate_json(body)
    if event.status is not Status.ACCEPTED or event.service is not Service.DISPATCHER:
        return None
    told = {name: getattr(event, name) for name in ("workspace_id", "message_id", "sender_id", "provider_message_id")}
    if missing := [name for name, value in told.items() if not value]:
        raise ValueError(f"accepted without {', '.join(missing)}")
    return Accepted(
        status=event.status,
        service=event.service,
        occurred_at=event.occurred_at,
        to=None if event.to is None else Recipient(event.to.contact_id, event.to.phone),
        receipt_deadline=event.receipt_deadline,
        **told,
    )
