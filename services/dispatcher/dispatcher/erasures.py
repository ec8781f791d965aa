"""What the dispatcher does with an order to erase a person: nothing that waits goes out any more, and what was sent is
kept without them. Their other numbers go after `KEEP_PHONES` anyway."""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from pydantic import JsonValue, TypeAdapter
from sendwhy.erasure import KEEP_ERASED, erase_alone, erased_people, remember_messages, remember_person
from sendwhy.events import ErasedRows, MessageReceived, PersonErasing
from sendwhy.postgres import Connection, add_to_outbox, delete_in_steps
from sendwhy.privacy import Tagger, alias_of, digits_of, forms_of, redacted

from dispatcher import announce, queue_store
from dispatcher.decide import Message, Recall, erased_contact

KEEP_PHONES = timedelta(hours=48)
CAP = timedelta(hours=24)
PRUNE_ROWS = 10_000
# What Meta wrote of a try may quote a number.
_WORDS = frozenset({"detail", "title", "details"})
_TRIES: TypeAdapter[list[dict[str, JsonValue]]] = TypeAdapter(list[dict[str, JsonValue]])

_BLUR = """
update message m set funded = b.funded, tries = b.tries, contact_id = $3, phone = null
from unnest($2::text[], $4::bytea[], $5::bytea[]) as b(message_id, funded, tries)
where m.workspace_id = $1 and m.message_id = b.message_id
"""
_CLOSE_WINDOWS = """
delete from conversation_window w using sender s
where s.workspace_id = $1 and w.sender_id = s.sender_id and w.phone = any($2::text[])
  and w.opened_at <= $3
"""
_LIFT_CAPS = "delete from marketing_cap where workspace_id = $1 and phone = any($2::text[]) and until <= $3"
# The count of people reached stays right: Meta counts them too.
_BLUR_REACHED = """
update reached_person r set phone = 'erased:' || gen_random_uuid()
from (select distinct tier_key from sender where workspace_id = $1) p
where r.portfolio_id = p.tier_key and r.phone = any($2::text[]) and r.reached_at <= $3
"""
_PRUNE = (
    "delete from conversation_window where ctid = any(array("
    "select ctid from conversation_window where opened_at < $1 limit $2))",
    "delete from reached_person where ctid = any(array("
    "select ctid from reached_person where reached_at < $1 limit $2))",
    "delete from marketing_cap where ctid = any(array(select ctid from marketing_cap where until < $1 limit $2))",
    "delete from campaign_use where ctid = any(array(select ctid from campaign_use where minute < $1 limit $2))",
)
_FORGET = (
    "delete from erased_message where noted_at < $1",
    "delete from erased_person where erased_at < $1",
)


class Eraser:
    """Carries out orders; `erase` works within the caller's transaction."""

    def __init__(self, clock: Callable[[], datetime], publish_soon: Callable[[], None]) -> None:
        self._clock, self._publish_soon = clock, publish_soon

    async def erase(self, connection: Connection, order: PersonErasing) -> list[ErasedRows]:
        await erase_alone(connection, order.workspace_id)
        await remember_messages(connection, order)
        await remember_person(connection, order)
        keys = [(order.workspace_id, message_id) for message_id in sorted(set(order.message_ids))]
        rows = [row for row in await queue_store.lock_messages(connection, keys) if not row.message.is_erased]
        recalled = await self._recall(connection, order, [row for row in rows if row.state == "waiting"])
        resolved = [row.message.funded.resolved for row in rows]
        phones, users = {one.phone for one in resolved if one.phone}, {one.user_id for one in resolved if one.user_id}
        tables = await forget_phones(connection, order.workspace_id, phones, order.erased_at, users)
        await blur(connection, order.workspace_id, alias_of(order.erasure_id), [row.message for row in rows])
        return [
            ErasedRows(table="message", act="recalled", rows=recalled),
            ErasedRows(table="message", act="blurred", rows=len(rows)),
            ErasedRows(
                table="message",
                act="kept",
                rows=sum(row.message.attempts > 0 for row in rows),
                ground="ids of messages, ours and Meta's: by them late webhooks are known",
            ),
            ErasedRows(table="contact", act="erased", rows=0, ground="the copy goes with contact.updated's tombstone"),
            *tables,
        ]

    async def _recall(self, connection: Connection, order: PersonErasing, rows: Sequence[queue_store.Locked]) -> int:
        """Nothing that waits for an erased person is sent, whatever its purpose."""
        now = self._clock()
        contact = erased_contact(order.workspace_id, alias_of(order.erasure_id), order.erased_at)
        waiting = {row.message.key: "recalled" for row in rows}
        if waiting:
            await queue_store.finish_waiting(connection, "recalled", waiting)
            told = [announce.recalled(row.message, Recall(contact), now) for row in rows]
            await add_to_outbox(connection, told)
            self._publish_soon()
        return len(waiting)


async def blur(connection: Connection, workspace: str, alias: str, messages: Sequence[Message]) -> None:
    """Keep these messages without their person, and their tries without Meta's words."""
    await connection.execute(
        _BLUR,
        workspace,
        [one.funded.message_id for one in messages],
        alias,
        [redacted(one.funded, alias).to_json() for one in messages],
        [_TRIES.dump_json([_without_words(each) for each in one.tries]) for one in messages],
    )


def _without_words(told: Any) -> dict[str, JsonValue]:
    return {name: value for name, value in told.items() if name not in _WORDS}


async def forget_phones(
    connection: Connection, workspace: str, phones: Iterable[str], erased_at: datetime, users: Iterable[str] = ()
) -> list[ErasedRows]:
    """Take these numbers, in all their spellings, and these user ids out of windows, caps and counts that are of before
    the erasure."""
    forms = [*forms_of(phones), *users]
    if not forms:
        return []
    acts = (
        ("conversation_window", "erased", _CLOSE_WINDOWS, erased_at),
        ("marketing_cap", "erased", _LIFT_CAPS, erased_at + CAP),
        ("reached_person", "blurred", _BLUR_REACHED, erased_at),
    )
    found = []
    for table, act, statement, until in acts:
        done = await connection.execute(statement, workspace, forms, until)
        found.append(ErasedRows.model_validate({"table": table, "act": act, "rows": int(done.rpartition(" ")[2])}))
    return found


async def of_erased(connection: Connection, tagger: Tagger, events: Sequence[MessageReceived]) -> set[int]:
    """The positions of those messages that people wrote before they were erased."""
    tags = {
        position: [
            (event.workspace_id, tag)
            for tag in tagger.of_person(event.workspace_id, phone=digits_of(event.phone), user_id=event.user_id)
        ]
        for position, event in enumerate(events)
        if event.workspace_id is not None
    }
    erased = await erased_people(connection, (tag for several in tags.values() for tag in several))
    return {
        position
        for position, several in tags.items()
        if any(tag in erased and events[position].occurred_at <= erased[tag] for tag in several)
    }


async def prune(connection: Connection, now: datetime) -> None:
    for statement in _PRUNE:
        await delete_in_steps(connection, statement, now - KEEP_PHONES, at_once=PRUNE_ROWS)
    for statement in _FORGET:
        await connection.execute(statement, now - KEEP_ERASED)
