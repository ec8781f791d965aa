"""What billing does with an order to erase a person, and what it holds of one.

Only decisions name people. They are kept without them, so that a repeat still tells the dispatcher of a message whose
credits are reserved; the dispatcher recalls it. The ledger names messages and amounts, and stays.
"""

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Query
from sendwhy.erasure import KEEP_ERASED, remember_messages
from sendwhy.events import (
    ContactId,
    ErasedRows,
    MessageId,
    PersonErasing,
    SendConsented,
    SendFunded,
    SendRejected,
    Wire,
)
from sendwhy.http import Operator
from sendwhy.postgres import Connection
from sendwhy.privacy import alias_of, redacted, redacted_rejection
from sendwhy.service import Runtime
from sendwhy.stage import Record
from sendwhy.topics import Topic

from billing import store

MESSAGES_MAX = 500

_DECISIONS = """
select d.message_id, d.step, d.topic, d.body from decision d
where d.workspace_id = $1 and d.message_id = any($2::text[]) and d.body is not null order by d.message_id, d.step
"""
_BLUR = """
update decision d set body = b.body from unnest($2::text[], $3::text[], $4::bytea[]) as b(message_id, step, body)
where d.workspace_id = $1 and d.message_id = b.message_id and d.step = b.step
"""
_COUNT_LEDGER = "select count(*) from ledger where workspace_id = $1 and message_id = any($2::text[])"


async def erase(connection: Connection, order: PersonErasing) -> list[ErasedRows]:
    """Carry out an order, under the account's lock as everything that decides."""
    await store.lock_or_open_accounts(connection, [order.workspace_id])
    await remember_messages(connection, order)
    alias = alias_of(order.erasure_id)
    rows = await connection.fetch(_DECISIONS, order.workspace_id, sorted(set(order.message_ids)))
    await connection.execute(
        _BLUR,
        order.workspace_id,
        [row["message_id"] for row in rows],
        [row["step"] for row in rows],
        [_without_person(row["topic"], row["body"], alias) for row in rows],
    )
    kept = await connection.fetchval(_COUNT_LEDGER, order.workspace_id, order.message_ids)
    return [
        ErasedRows(table="decision", act="blurred", rows=len(rows)),
        ErasedRows(table="ledger", act="kept", rows=kept, ground="amounts by message; they name no person"),
    ]


def _without_person(topic: str, body: bytes, alias: str) -> bytes:
    if topic == Topic.SEND_FUNDED:
        return redacted(SendFunded.model_validate_json(body), alias).to_json()
    return redacted_rejection(SendRejected.model_validate_json(body), alias).to_json()


def without_person(record: Record[Any], event: SendConsented, alias: str) -> Record[SendConsented]:
    """The record of an erased person's event, without them."""
    return replace(record, event=redacted(event, alias))


async def prune(connection: Connection) -> None:
    await connection.execute(
        "delete from erased_message where noted_at < clock_timestamp() - $1::interval", KEEP_ERASED
    )


class DataAnswer(Wire):
    """The ledger's entries on these messages of a person; billing holds nothing else of them."""

    ledger: list[store.LedgerEntry]


def routes(runtime: Runtime) -> APIRouter:
    router = APIRouter(prefix="/v1/workspaces/{w}")

    @router.get("/contacts/{contact_id:path}/data")
    async def get_data(
        caller: Operator,
        contact_id: ContactId,  # noqa: ARG001 - billing knows messages only
        message_id: Annotated[list[MessageId], Query(max_length=MESSAGES_MAX)],
    ) -> DataAnswer:
        """What billing holds of a person's messages, for message-log's export."""
        async with runtime.within(caller.workspace) as connection:
            entries = await store.entries_of(connection, caller.workspace, message_id)
        return DataAnswer(ledger=entries)

    return router
