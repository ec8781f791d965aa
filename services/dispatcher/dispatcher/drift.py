"""Meta moved a template to MARKETING while messages by it wait: whoever isn't subscribed doesn't get them.

The driver asks that of every message at its moment of sending. What waits long is looked through here as soon as the
move is known, a bounded number at a time, by an index that holds only messages without a subscription: those that may
stay are marked as needing one, so that each is looked at once and a later STOP finds them.
"""

from collections.abc import Callable, Sequence
from datetime import datetime

from sendwhy.events import ContactUpdated
from sendwhy.postgres import Connection, add_to_outbox
from sendwhy.service import Runtime

from dispatcher import announce, facts, queue_store, store
from dispatcher.decide import MARKETING, Facts, Message, Recall, subscription
from dispatcher.store import Key, SenderRow, TemplateRow

LOOK_AT_MOST = 500
EVERY_SECONDS = 1.0


async def note(
    connection: Connection, before: Sequence[TemplateRow], saved: Sequence[TemplateRow], now: datetime
) -> None:
    """Remember those that have become MARKETING with this change."""
    category = {_name(row): row.template.category for row in before}
    moved = [row for row in saved if row.template.category == MARKETING and category.get(_name(row), "") != MARKETING]
    if moved:
        await connection.execute(
            "insert into moved_template (waba_id, template, moved_at) select *, $3 from unnest($1::text[], $2::text[])"
            " on conflict (waba_id, template) do update set moved_at = excluded.moved_at",
            [row.waba_id for row in moved],
            [_name(row)[1] for row in moved],
            now,
        )


def _name(row: TemplateRow) -> Key:
    return row.waba_id, queue_store.template_name(row.template.name, row.template.language)


class Drift:
    def __init__(self, runtime: Runtime, clock: Callable[[], datetime]) -> None:
        self._runtime, self._clock = runtime, clock

    def register(self) -> None:
        self._runtime.every(EVERY_SECONDS, "templates that became marketing", self.look)

    async def look(self) -> None:
        """One batch of each template that has moved; a template is forgotten when nothing is left to look at."""
        async with self._runtime.pool.acquire(timeout=30) as connection:
            moved = [tuple(row) for row in await connection.fetch("select waba_id, template from moved_template")]
        for waba_id, template in moved:
            while await self._batch(waba_id, template) == LOOK_AT_MOST:
                pass

    async def _batch(self, waba_id: str, template: str) -> int:
        async with self._runtime.pool.acquire(timeout=30) as connection, connection.transaction():
            senders = {row.sender.sender_id: row for row in await store.senders_of(connection, "waba_id", waba_id)}
            waiting = await queue_store.lock_waiting_of_template(connection, list(senders), template, LOOK_AT_MOST)
            if not waiting:
                if not await queue_store.any_waiting_of_template(connection, list(senders), template):
                    await connection.execute(
                        "delete from moved_template where waba_id = $1 and template = $2", waba_id, template
                    )
                return 0
            for sender_id, row in senders.items():
                mine = [message for message in waiting if message.sender_id == sender_id]
                if mine:
                    await self._judge(connection, row, mine)
        self._runtime.publish_soon()
        return len(waiting)

    async def _judge(self, connection: Connection, row: SenderRow, messages: Sequence[Message]) -> None:
        now = self._clock()
        known = await facts.load(connection, row.sender, messages, "off")
        recalled = {one.key: contact for one in messages if (contact := _withdrawn(one, known[one.key]))}
        told = [announce.recalled(one, Recall(recalled[one.key]), now) for one in messages if one.key in recalled]
        await queue_store.finish_waiting(connection, "recalled", dict.fromkeys(recalled, "recalled"))
        await queue_store.need_subscription(connection, [one.key for one in messages if one.key not in recalled])
        await add_to_outbox(connection, told)


def _withdrawn(message: Message, known: Facts) -> ContactUpdated | None:
    """Whose state takes the message out, if one's does."""
    verdict = subscription(message, known).otherwise
    return verdict.contact if isinstance(verdict, Recall) else None
