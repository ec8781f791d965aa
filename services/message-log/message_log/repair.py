"""What may become of a dead letter: which of them can be put back, by whom, and whether the repaired JSON can be read.
Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from uuid import UUID

from pydantic import ValidationError
from sendwhy.events import (
    CustomerUpdated,
    Event,
    MessageReceived,
    SendCancelled,
    SenderReported,
    SendHeld,
    SendRejected,
    SendRequested,
    StatusUpdated,
    TemplateReported,
    Wire,
    event_id_of,
)
from sendwhy.stage import fields_of
from sendwhy.topics import Outgoing, Topic, outgoing

from message_log.language import gettext as _

REPAIRED_BYTES_MAX = 512 * 1024
SOURCE = "message-log"

# send.consented, send.funded and send.recalled are not among them: what is put there is past consent and billing.
# Whole states are their owners' to tell, and raw deliveries count only with their sender's signature.
_MODELS: Mapping[Topic, type[Wire]] = {
    Topic.SEND_REQUESTED: SendRequested,
    Topic.SEND_CANCELLED: SendCancelled,
    Topic.SEND_REJECTED: SendRejected,
    Topic.SEND_HELD: SendHeld,
    Topic.STATUS_UPDATED: StatusUpdated,
    Topic.MESSAGE_RECEIVED: MessageReceived,
    Topic.CUSTOMER_UPDATED: CustomerUpdated,
    Topic.TEMPLATE_REPORTED: TemplateReported,
    Topic.SENDER_REPORTED: SenderReported,
}


@dataclass(frozen=True, slots=True)
class Repaired:
    """A record to publish, under the id that this dead letter and these bytes always lead to."""

    event_id: UUID
    record: Outgoing


def is_for_admins_of_all(topic: str) -> bool:
    """A workspace's own admin may ask for messages anyway; everything else speaks for Sendwhy itself."""
    return topic != Topic.SEND_REQUESTED


def why_not(topic: str) -> str | None:
    """Why a dead letter of this topic can't be put back, or None."""
    if topic in (Topic.SEND_CONSENTED, Topic.SEND_FUNDED, Topic.SEND_RECALLED):
        return _(
            "It is past consent or billing: put back by hand, nobody would check it. Repair the cause, then let the"
            " service read its topic again, or send the request anew."
        )
    if topic in (Topic.WEBHOOK_RECEIVED, Topic.WEBHOOK_REFUSED):
        return _("A delivery counts only as it was signed. Repair the cause, then replay it from the webhook log.")
    if topic not in set(Topic):
        return _("Nobody noted which topic it came from, so it can't go back there.")
    if topic not in _MODELS:
        return _("Only the service that tells this state can tell it anew: change the thing there, or sync it.")
    return None


def repaired(topic: str, letter_id: UUID, text: str, workspace: str | None) -> Repaired | dict[str, str]:
    """The record for an edited body, or what is wrong by field. `workspace`: the only one that it may be about, None
    for any. An event gets a new id by this new cause: under the old one, who had read it would drop the repaired one.
    """
    if len(text.encode(errors="replace")) > REPAIRED_BYTES_MAX:
        return {"body": _("must be at most %(most)s bytes", most=REPAIRED_BYTES_MAX)}
    try:
        event: Any = _MODELS[Topic(topic)].model_validate_json(text)
    except ValidationError as error:
        return dict(line.partition(": ")[::2] for line in fields_of(error))
    except UnicodeEncodeError:
        return {"body": _("must be text that UTF-8 can hold")}
    if workspace is not None and getattr(event, "workspace_id", None) != workspace:
        return {"workspace_id": _("must be %(workspace)s", workspace=workspace)}
    new_id = event_id_of(f"dead letter {letter_id}/{sha256(text.encode()).hexdigest()}", "resubmitted")
    if isinstance(event, Event):
        event = event.model_copy(update={"event_id": new_id})
    return Repaired(new_id, outgoing(event, source=SOURCE))
