"""Carrying out an erasure in a service: how an order is answered, and how what comes later is known again.

consent orders an erasure (`PersonErasing`); each service erases what it holds in one transaction and reports it
(`PersonErased`). A report is stored as a decision on the order, so that a repeated order reports the same.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta

from sendwhy.events import ErasedRows, PersonErased, PersonErasing, event_id_of
from sendwhy.postgres import Connection, Decision, MessageKey, add_decisions, decisions_of, stored
from sendwhy.privacy import alias_of
from sendwhy.reasons import Service
from sendwhy.stage import Handle, Record
from sendwhy.topics import Outgoing, outgoing

STEP = "person.erased"
# Whatever may still come of a message comes within its horizon, what Kafka replays, and Meta's receipts.
KEEP_ERASED = timedelta(days=90)


def report(order: PersonErasing, service: Service, tables: Iterable[ErasedRows], now: datetime) -> PersonErased:
    """What was done, with rows of one table and act added up. Acts that met no row are left out unless they have a
    ground: of raw bytes, say, nobody counts whom they name."""
    summed: dict[tuple[str, str, str | None], ErasedRows] = {}
    for one in tables:
        key = (one.table, one.act, one.ground)
        rows = one.rows + (summed[key].rows if key in summed else 0)
        summed[key] = one.model_copy(update={"rows": rows})
    return PersonErased(
        event_id=event_id_of(str(order.event_id), f"person.erased/{service}"),
        occurred_at=now,
        workspace_id=order.workspace_id,
        erasure_id=order.erasure_id,
        order_id=order.event_id,
        service=service,
        tables=[one for one in summed.values() if one.rows or one.ground],
    )


Erase = Callable[[Connection, PersonErasing], Awaitable[Sequence[ErasedRows]]]


def on_erasing(service: Service, erase: Erase, *, again: bool = False) -> Handle[PersonErasing]:
    """The handler of person.erasing: `erase` carries out one order within the batch's transaction. Orders are rare, so
    they are taken one by one. `again`: also those that were reported before, for who may have read the topics anew."""

    async def handle(connection: Connection, records: Sequence[Record[PersonErasing]]) -> list[Outgoing]:
        return [await _carry_out(connection, service, record.event, erase, again=again) for record in records]

    return handle


async def _carry_out(
    connection: Connection, service: Service, order: PersonErasing, erase: Erase, *, again: bool
) -> Outgoing:
    key = (order.workspace_id, str(order.event_id))
    stood = await decisions_of(connection, STEP, [key])
    if key in stood:
        if again:
            await erase(connection, order)
        return stood[key]
    tables = await erase(connection, order)
    now = datetime.now(UTC)
    event = report(order, service, tables, now)
    told = outgoing(event, source=service)
    await add_decisions(connection, [Decision(*key, STEP, event.event_id, told, now + KEEP_ERASED)])
    return told


_LOCK = """
select pg_advisory_xact_lock{shared}(hashtextextended('erasure/' || workspace, 0)) from unnest($1::text[]) workspace
"""
KEEP_WAITING, _LOCK_ALONE = _LOCK.format(shared="_shared"), _LOCK.format(shared="")


async def keep_erasures_waiting(connection: Connection, workspaces: Iterable[str]) -> None:
    """Until this transaction ends no erasure runs in these workspaces: else what is just being stored would slip by."""
    await connection.execute(KEEP_WAITING, sorted(set(workspaces)))


async def erase_alone(connection: Connection, workspace: str) -> None:
    """Wait for whoever is storing something of this workspace, and let others wait until this transaction ends."""
    await connection.execute(_LOCK_ALONE, [workspace])


_REMEMBER_MESSAGES = """
insert into erased_message (workspace_id, message_id, erasure_id)
select $1, *, $3 from unnest($2::text[]) on conflict do nothing
"""
_STANDING = """
select asked.workspace_id, asked.message_id, d.topic, d.key, d.body, d.headers, e.erasure_id
from unnest($2::text[], $3::text[]) as asked(workspace_id, message_id)
left join decision d on d.workspace_id = asked.workspace_id and d.message_id = asked.message_id and d.step = $1
left join erased_message e on e.workspace_id = asked.workspace_id and e.message_id = asked.message_id
where d.message_id is not null or e.message_id is not null
"""
_REMEMBER_PERSON = """
insert into erased_person (workspace_id, tag, erased_at)
select $1, *, $3 from unnest($2::bytea[])
on conflict (workspace_id, tag) do update set erased_at = greatest(erased_person.erased_at, excluded.erased_at)
"""
_ERASED_PEOPLE = """
select e.workspace_id, e.tag, e.erased_at from unnest($1::text[], $2::bytea[]) as asked(workspace_id, tag)
join erased_person e on e.workspace_id = asked.workspace_id and e.tag = asked.tag
"""

PersonTag = tuple[str, bytes]


async def remember_messages(connection: Connection, order: PersonErasing) -> None:
    """Know the order's messages again where they come later than the order (table erased_message)."""
    await connection.execute(_REMEMBER_MESSAGES, order.workspace_id, sorted(set(order.message_ids)), order.erasure_id)


async def standing_and_erased(
    connection: Connection, step: str, keys: Iterable[MessageKey]
) -> tuple[dict[MessageKey, Outgoing], dict[MessageKey, str]]:
    """By (workspace_id, message_id): what already stands for these messages, and the aliases of those whose person was
    erased."""
    asked = list(keys)
    rows = await connection.fetch(_STANDING, step, [key[0] for key in asked], [key[1] for key in asked])
    standing: dict[MessageKey, Outgoing] = {}
    aliases: dict[MessageKey, str] = {}
    for row in rows:
        key = (row["workspace_id"], row["message_id"])
        if row["topic"] is not None:
            standing[key] = stored(row)
        if row["erasure_id"] is not None:
            aliases[key] = alias_of(row["erasure_id"])
    return standing, aliases


async def remember_person(connection: Connection, order: PersonErasing) -> None:
    """Know the person again in what happened before the order and comes after it (table erased_person)."""
    tags = sorted(bytes.fromhex(tag) for tag in order.tags)
    await connection.execute(_REMEMBER_PERSON, order.workspace_id, tags, order.erased_at)


async def erased_people(connection: Connection, tags: Iterable[PersonTag]) -> dict[PersonTag, datetime]:
    """Until when what happened is erased, of those of these tags, by (workspace_id, tag), that are."""
    asked = sorted(set(tags))
    if not asked:
        return {}
    rows = await connection.fetch(_ERASED_PEOPLE, [key[0] for key in asked], [key[1] for key in asked])
    return {(row["workspace_id"], row["tag"]): row["erased_at"] for row in rows}
