"""What webhook-ingest holds of a person: which messages were theirs, by a keyed tag, and how far each came.

Raw elements of numbers that nobody has registered belong to no workspace; they go after `KEEP_UNCLAIMED`.
"""

from collections.abc import Iterable
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel
from sendwhy.events import ContactId, ErasedRows, Moment, PersonErasing
from sendwhy.http import Operator
from sendwhy.postgres import Connection
from sendwhy.privacy import Tagger, spellings
from sendwhy.service import Runtime

from webhook_ingest import store
from webhook_ingest.accepted import Recipient
from webhook_ingest.decide import RANKS
from webhook_ingest.settings import Settings

PHONES_MAX = 50
MESSAGES_MAX = 5_000

# Locked in the order in which all lock them.
_BLUR = """
with own as (
    select m.sender_id, m.wamid from message m
    where m.sender_id in (select sender_id from sender where workspace_id = $1) and m.workspace_id = $1
      and m.recipient = any($2::text[])
    order by m.sender_id, m.wamid for update
)
update message m set recipient = null from own where m.sender_id = own.sender_id and m.wamid = own.wamid
"""
# What was told after `delivered` stands by the statuses alone (`decide.risen`).
_MESSAGES = """
select m.sender_id, m.wamid, m.message_id, m.failed, m.accepted_at, m.delivered_at, m.deadline,
       greatest(m.rank, (
           select max(case s.status when 'read' then 3 when 'played' then 4 end) from seen_status s
           where s.sender_id = m.sender_id and s.wamid = m.wamid
       )) as rank
from message m
where m.sender_id in (select sender_id from sender where workspace_id = $1) and m.workspace_id = $1
  and m.recipient = any($2::text[])
order by m.accepted_at desc nulls last, m.wamid limit $3
"""
_STATUS = {rank: status.value for status, rank in RANKS.items()}


class ReceiptView(BaseModel):
    """How far a message came. `receipt_deadline`: until when its receipt was awaited."""

    message_id: str | None
    sender_id: str
    provider_message_id: str
    status: str | None
    failed: bool
    accepted_at: Moment | None
    delivered_at: Moment | None
    receipt_deadline: Moment | None


class DataAnswer(BaseModel):
    """The latest messages to a person; `left_out`: there are more."""

    receipts: list[ReceiptView]
    left_out: bool


def recipient_of(tagger: Tagger, workspace_id: str, to: Recipient | None) -> str | None:
    """By what a person's messages are known to be theirs: the contact's tag, or the phone's where there is none."""
    if to is None:
        return None
    phone = None if to.contact_id else to.phone
    tags = tagger.of_person(workspace_id, contact_id=to.contact_id, phone=phone)
    return tags[0].hex() if tags else None


async def erase(connection: Connection, order: PersonErasing) -> list[ErasedRows]:
    done = await connection.execute(_BLUR, order.workspace_id, order.tags)
    return [
        ErasedRows(table="message", act="blurred", rows=int(done.rpartition(" ")[2])),
        ErasedRows(
            table="message, seen_status",
            act="kept",
            rows=0,
            ground="ids of messages, ours and Meta's, until 45 days past the deadline: by them repeats are known",
        ),
        ErasedRows(
            table="unclaimed",
            act="kept",
            rows=0,
            ground="raw elements of numbers that belong to no workspace",
            until=order.erased_at + store.KEEP_UNCLAIMED,
        ),
    ]


def routes(runtime: Runtime, settings: Settings) -> APIRouter:
    router = APIRouter(prefix="/v1/workspaces/{w}")
    tagger = Tagger(settings.privacy_key.get_secret_value())

    @router.get("/contacts/{contact_id:path}/data")
    async def get_data(
        caller: Operator,
        contact_id: ContactId,
        phone: Annotated[list[str] | None, Query(max_length=PHONES_MAX)] = None,
    ) -> DataAnswer:
        """What webhook-ingest holds of a person, for message-log's export."""
        tags = tagger.of_person(caller.workspace, contact_id=contact_id)
        for digits in _digits(phone or ()):
            tags += tagger.of_person(caller.workspace, phone=digits)
        async with runtime.within(caller.workspace) as connection:
            rows = await connection.fetch(_MESSAGES, caller.workspace, [tag.hex() for tag in tags], MESSAGES_MAX + 1)
        shown = [
            ReceiptView(
                message_id=row["message_id"],
                sender_id=row["sender_id"],
                provider_message_id=row["wamid"],
                status=_STATUS.get(row["rank"]),
                failed=row["failed"],
                accepted_at=row["accepted_at"],
                delivered_at=row["delivered_at"],
                receipt_deadline=row["deadline"],
            )
            for row in rows[:MESSAGES_MAX]
        ]
        return DataAnswer(receipts=shown, left_out=len(rows) > MESSAGES_MAX)

    return router


def _digits(phones: Iterable[str]) -> list[str]:
    return sorted({digits for phone in phones for digits in spellings(phone) if digits})
