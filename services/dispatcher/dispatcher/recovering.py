"""After a restored backup (`rewind`): what was sent since is learnt from what the dispatcher itself told of it.

The rest of what may have been sent is parked as unknown: Meta has no idempotency key, and nobody may be written to
twice (ADR 42).
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import structlog
from pydantic import ValidationError
from sendwhy.events import SenderUpdated, SendFunded, SendRecalled, SendRejected, Status, StatusUpdated, TemplateUpdated
from sendwhy.kafka import BATCH_MAX_RECORDS
from sendwhy.postgres import DATA_ERRORS, Connection, add_to_outbox, load_reached, store_reached
from sendwhy.recovery import Recovery
from sendwhy.service import Runtime
from sendwhy.stage import Record, parse_json, with_event
from sendwhy.topics import Topic
from sendwhy.values import value_class

from dispatcher import announce, recovery_store, store
from dispatcher.stages import Stages
from dispatcher.store import Key

AT_ONCE = 5_000
_FUNDED = parse_json(SendFunded)

log = structlog.get_logger("sendwhy")


@value_class
class Fate:
    """What became of a message, as the dispatcher told it."""

    state: str
    outcome: str
    wamid: str | None = None


Fates = dict[Key, Fate]


class Recovering:
    def __init__(self, runtime: Runtime, stages: Stages, clock: Callable[[], datetime]) -> None:
        self._runtime, self._stages, self._clock = runtime, stages, clock

    def register(self) -> None:
        self._runtime.before_rewind(self.recover)

    async def recover(self, recovery: Recovery) -> None:
        fates = await fates_told(recovery)
        ends = await recovery.ends(Topic.SEND_FUNDED)
        async with self._runtime.pool.acquire(timeout=30) as connection:
            parked_before = await recovery_store.parked_below(connection)
            below = {
                number: may_be_handled(
                    recovery.committed.get((str(Topic.SEND_FUNDED), number)), end, parked_before.get(number)
                )
                for number, end in ends.items()
            }
            async with connection.transaction():
                # A million rows take longer than all else does.
                await connection.execute("set local transaction_timeout = 0; set local statement_timeout = 0")
                parked = await recovery_store.park_all(connection, below, self._clock())
            heard = await self._hear_again(connection, recovery, below)
            known = await self._settle(connection, fates)
            open_ones = await recovery_store.count_unknown(connection)
            async with connection.transaction():
                await self._renew_states(connection, recovery)
        log.warning(
            "messages that may have been sent are parked; those whose fate nobody told end as SEND_OUTCOME_UNKNOWN",
            waited=parked,
            funded_since=heard,
            fate_known=known,
            fate_open=open_ones,
        )

    async def _hear_again(self, connection: Connection, recovery: Recovery, below: Mapping[int, int]) -> int:
        """The messages that were funded since the backup, before anything else is heard: what Meta tells of them must
        find them."""
        reached = await load_reached(connection, self._runtime.group)
        starts = {number: reached.get((str(Topic.SEND_FUNDED), number), 0) for number in below}
        heard = 0
        async for batch in recovery.heard(Topic.SEND_FUNDED, starts, below):
            records = [record for one in batch if (record := _readable(one)) is not None]
            next_offsets: dict[tuple[str, int], int] = {}
            for one in batch:
                next_offsets[str(one.topic), one.partition] = one.offset + 1
            await self._take_in(connection, records)
            await store_reached(connection, self._runtime.group, next_offsets)
            heard += len(records)
            log.info("messages that were funded since the backup are read again", so_far=heard)
        return heard

    async def _take_in(self, connection: Connection, records: Sequence[Record[SendFunded]]) -> None:
        """Half by half where the database refuses something: that one is in dead.letters, since it was heard first."""
        if not records:
            return
        try:
            async with connection.transaction():
                await self._stages.on_funded(connection, records)
        except DATA_ERRORS:
            if len(records) == 1:
                log.warning("a message that was funded can't be stored", place=records[0].place)
                return
            middle = len(records) // 2
            await self._take_in(connection, records[:middle])
            await self._take_in(connection, records[middle:])

    @staticmethod
    async def _settle(connection: Connection, fates: Fates) -> int:
        keys = sorted(fates)
        known = 0
        for start in range(0, len(keys), AT_ONCE):
            some = {key: fates[key] for key in keys[start : start + AT_ONCE]}
            async with connection.transaction():
                rows = [(*key, fate.state, fate.outcome, fate.wamid) for key, fate in some.items()]
                known += await recovery_store.settle_parked(connection, rows)
        return known

    async def _renew_states(self, connection: Connection, recovery: Recovery) -> None:
        """Versions go on above those that others have heard, or they would hear nothing new for a while. A pause or its
        end that somebody ordered since holds; a number that was registered since is missing, with its token."""
        senders = await _latest(recovery, Topic.SENDER_UPDATED, SenderUpdated)
        now = self._clock()
        rows = [(one.sender_id, one.version, one.paused) for one in senders]
        known = set(await recovery_store.continue_senders(connection, rows, now))
        templates = await _latest(recovery, Topic.TEMPLATE_UPDATED, TemplateUpdated)
        await recovery_store.continue_templates(
            connection, [(one.waba_id, one.name, one.language, one.version) for one in templates]
        )
        renewed = await store.senders(connection, known)
        await add_to_outbox(connection, announce.senders_updated(renewed.values(), now))
        here = set(await store.sender_ids(connection))
        for one in senders:
            if one.sender_id not in here:
                log.error(
                    "a number that was registered after the backup is missing: PUT it again, with its token",
                    sender=one.sender_id,
                    workspace=one.workspace_id,
                )


def may_be_handled(committed: int | None, end: int, parked_before: int | None) -> int:
    """Below which offset of a partition of send.funded messages may have been sent: a process that died may have called
    those of a batch whose offsets it never committed, the group's first one, too."""
    if parked_before is not None and (committed or 0) <= parked_before:
        # A repeat: nobody has read on since.
        return parked_before
    return min(end, (committed or 0) + BATCH_MAX_RECORDS)


async def fates_told(recovery: Recovery) -> Fates:
    """What the dispatcher told since the backup of messages' fates. That Meta took one outdoes all else."""
    fates: Fates = {}
    async for batch in recovery.told(Topic.SEND_RECALLED):
        for recalled in _events(batch, SendRecalled):
            fates[recalled.workspace_id, recalled.funded.message_id] = Fate("recalled", "recalled")
    async for batch in recovery.told(Topic.SEND_REJECTED):
        for rejected in _events(batch, SendRejected):
            fates[rejected.workspace_id, rejected.message_id] = Fate("rejected", rejected.reason.code)
    async for batch in recovery.told(Topic.STATUS_UPDATED):
        for told in _events(batch, StatusUpdated):
            if told.status is Status.ACCEPTED and told.workspace_id and told.message_id:
                fate = Fate("accepted", "accepted", told.provider_message_id)
                fates[told.workspace_id, told.message_id] = fate
    return fates


def _events(batch: Sequence[Record[None]], model: type[Any]) -> list[Any]:
    """Our own events; one that this version can't read tells nothing, and its message stays parked."""
    found = []
    for record in batch:
        try:
            found.append(model.model_validate_json(record.value or b""))
        except ValidationError:
            log.warning("an event of our own can't be read", place=record.place)
    return found


async def _latest(recovery: Recovery, topic: Topic, model: type[Any]) -> list[Any]:
    states: dict[bytes | None, Any] = {}
    async for batch in recovery.told(topic):
        states |= {record.key: record for record in batch}
    return _events([record for record in states.values() if record.value is not None], model)


def _readable(record: Record[None]) -> Record[SendFunded] | None:
    """None for one that can't be read: it went to dead.letters when it was heard first."""
    try:
        event: SendFunded = _FUNDED(record)
    except ValidationError:
        return None
    return with_event(record, event)
