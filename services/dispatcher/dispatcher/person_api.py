"""What the dispatcher holds of a person, for message-log's export."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, JsonValue
from sendwhy.events import ContactId, MessageId, Moment, SendFunded
from sendwhy.http import Operator
from sendwhy.postgres import Connection
from sendwhy.privacy import digits_of, forms_of
from sendwhy.service import Runtime

from dispatcher import people_store, queue_store
from dispatcher.store import Key

MESSAGES_MAX = 500
PHONES_MAX = 50

_WINDOWS = """
select w.sender_id, w.phone, w.opened_at from conversation_window w
join sender s on s.sender_id = w.sender_id where s.workspace_id = $1 and w.phone = any($2::text[])
order by w.sender_id, w.phone
"""
_CAPS = "select phone, until from marketing_cap where workspace_id = $1 and phone = any($2::text[])"


class QueuedMessage(BaseModel):
    """A message in the queue's memory, as it was funded; `tries` of calling Meta."""

    state: str
    queued_at: Moment
    tries: list[dict[str, JsonValue]]
    funded: SendFunded


class Window(BaseModel):
    """`phone`: their WhatsApp user id where they wrote without their number."""

    sender_id: str
    phone: str
    opened_at: Moment


class Cap(BaseModel):
    """`phone`: their WhatsApp user id where that is what the message went to."""

    phone: str
    until: Moment


class DataAnswer(BaseModel):
    """`contact`: the dispatcher's copy of consent's state."""

    contact: dict[str, JsonValue] | None
    messages: list[QueuedMessage]
    windows: list[Window]
    marketing_caps: list[Cap]


def routes(runtime: Runtime) -> APIRouter:
    router = APIRouter(prefix="/v1/workspaces/{w}")

    @router.get("/contacts/{contact_id:path}/data")
    async def get_data(
        caller: Operator,
        contact_id: ContactId,
        message_id: Annotated[list[MessageId] | None, Query(max_length=MESSAGES_MAX)] = None,
        phone: Annotated[list[str] | None, Query(max_length=PHONES_MAX)] = None,
        user_id: Annotated[list[str] | None, Query(max_length=PHONES_MAX)] = None,
    ) -> DataAnswer:
        """What the dispatcher holds of a person: of the messages, numbers and WhatsApp user ids that are named."""
        async with runtime.within(caller.workspace) as connection:
            return await _data(connection, (caller.workspace, contact_id), message_id or [], phone or [], user_id or [])

    return router


async def _data(
    connection: Connection, key: Key, message_ids: list[str], phones: list[str], users: list[str]
) -> DataAnswer:
    workspace = key[0]
    contact = (await people_store.contacts(connection, [key])).get(key)
    found = await queue_store.read_messages(connection, [(workspace, one) for one in message_ids])
    told = {*phones, *([contact.phone] if contact and contact.phone else [])}
    forms = forms_of(one for one in told if digits_of(one))
    ids = (*users, contact and contact.user_id, *(one.message.funded.resolved.user_id for one in found))
    addresses = [*forms, *dict.fromkeys(one for one in ids if one)]
    return DataAnswer(
        contact=contact.model_dump(mode="json") if contact else None,
        messages=[
            QueuedMessage(
                state=one.state,
                queued_at=one.message.queued_at,
                tries=[dict(each) for each in one.message.tries],
                funded=one.message.funded,
            )
            for one in found
        ],
        windows=[Window(**dict(row)) for row in await connection.fetch(_WINDOWS, workspace, addresses)],
        marketing_caps=[Cap(**dict(row)) for row in await connection.fetch(_CAPS, workspace, addresses)],
    )
