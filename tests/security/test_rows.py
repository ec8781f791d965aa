"""What is read for one workspace can't see another's rows, also where a statement forgets to ask (ADR 41)."""

import ast
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from houses import OTHER, OWN, PACKAGES, House, as_superuser, database, migrations_of, open_house
from sendwhy.postgres import migrate
from sendwhy.reasons import Service
from sendwhy.tenancy import POLICY, Rights, read_rights, reader_of, within
from structlog.testing import capture_logs

ROOT = Path(__file__).parents[2]
postgres = pytest.mark.postgres

# Tables that the reader may use and that have no rows of workspaces.
WITHOUT_POLICY = {
    "migration": "names of files; that it may read them says that its other rights stand",
    "outbox": "it may only add: what it hands over is published, and never read back",
}
# Where a route works as the service itself, and why.
_WRITES = "writes: by the same code as the stages, on tables that they share"
_JUDGES = "judges requests of several workspaces at once, after asking for the right to each"
_LOGS_IN = "accounts and sessions are of no workspace"
AS_THE_SERVICE = {
    "billing.api._write": _WRITES,
    "billing.api._price_routes": _WRITES,
    "billing.api._evaluate_routes": _JUDGES,
    "consent.api.routes": _JUDGES,
    "consent.api.Desk": _WRITES,
    "consent.import_api.ImportDesk": _WRITES,
    "consent.keyword_api.keyword_routes": _WRITES,
    "dispatcher.api.Api": _WRITES,
    "dispatcher.evaluating.Evaluation": _JUDGES,
    "dispatcher.queue_api.QueueApi": "writes; and the queue is counted from an index alone that has no workspace",
    "dispatcher.sender_api.SenderApi": "limits and syncs are portfolios' and accounts', which workspaces may share",
    "message_log.app.make_app": "no route: timers",
    "message_log.app._keep": "no route: timers",
    "message_log.audience_api.Desk": "writes up to 100,000 lines by COPY, which row-level security has no way for",
    "message_log.audience_api.Writes": "the same, with the answer that the key keeps, in one transaction",
    "message_log.login_pages.install": _LOGS_IN,
    "message_log.login_pages._install_language": _LOGS_IN,
    "message_log.people_pages.install": _LOGS_IN,
    "webhook_ingest.api.Replay": _WRITES,
    "webhook_ingest.api.routes": _WRITES,
    "webhook_ingest.lists.routes": "what belongs to nobody, for admins of all workspaces",
}

_TABLES = """
select c.relname as name, c.relkind::text as kind, c.relrowsecurity as is_guarded,
       c.reloptions @> '{security_invoker=true}' as is_invokers,
       exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'workspace_id') as has_workspace,
       exists (select from pg_policy p where p.polrelid = c.oid and p.polname = $2 and p.polroles = array[r.oid]
               and p.polpermissive and p.polcmd = '*') as has_policy,
       (select count(*) from pg_policy p where p.polrelid = c.oid) as policies,
       c.relowner = r.oid as is_owned_by_reader, c.relispartition as is_part,
       has_table_privilege(r.oid, c.oid, 'select, insert, update, delete, truncate, references, trigger')
           or has_any_column_privilege(r.oid, c.oid, 'select, insert, update') as may_touch
from pg_class c, pg_roles r
where r.rolname = $1 and c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
order by c.relname
"""


@postgres
@pytest.mark.asyncio(loop_scope="session")
async def test_every_table_of_workspaces_is_guarded_and_the_reader_is_nobody_special(house: House) -> None:
    async with house.runtime.pool.acquire() as connection:
        reader = await reader_of(connection)
        assert reader is not None
        role = await connection.fetchrow("select * from pg_roles where rolname = $1", reader)
        assert role is not None
        special = ("rolsuper", "rolbypassrls", "rolcreaterole", "rolcreatedb", "rolcanlogin")
        assert not any(role[what] for what in special)
        assert not await connection.fetchval("select pg_has_role($1::text, session_user, 'member')", reader)
        rows = await connection.fetch(_TABLES, reader, POLICY)
        tables = [row for row in rows if row["kind"] in ("r", "p") and not row["is_part"]]
        assert not [row["name"] for row in rows if row["is_owned_by_reader"]]
        assert not [row["name"] for row in rows if row["is_part"] and row["may_touch"]], "a partition has no policy"
        views = [row for row in rows if row["kind"] not in ("r", "p", "S")]
        assert not [row["name"] for row in views if not row["is_invokers"]], "a view would show what its owner may see"
        unguarded = {
            row["name"]
            for row in tables
            if (row["has_workspace"] or row["may_touch"])
            and not (row["is_guarded"] and row["has_policy"] and row["policies"] == 1)
        }
        assert unguarded <= WITHOUT_POLICY.keys()
        touched = {row["name"] for row in rows if row["may_touch"]} - {"migration"}
        assert touched == set(_rights(house.service).tables)


def _rights(service: Service) -> Rights:
    rights = read_rights(migrations_of(service))
    assert rights is not None
    return rights


_COLUMNS = """
select a.attname as name, format_type(a.atttypid, null) as type from pg_attribute a
where a.attrelid = $1::text::regclass and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
  and a.attidentity = '' and (a.attnotnull or a.attname = any($2::text[])) and not a.atthasdef
"""
_CHECKS = """
select conrelid::regclass::text as place, conname as name from pg_constraint
where contype = 'c' and coninhcount = 0 and connamespace = 'public'::regnamespace
"""
# Of rows that belong to a workspace by another row: what they name.
_BY_ANOTHER = {"audience_id", "order_id", "sender_id", "waba_id", "webhook_id", "received_at"}


def _value(column: str, kind: str, workspace: str) -> Any:
    """A value that fits the type and is the workspace's own."""
    if column == "workspace_id":
        return workspace
    number = 1 if workspace == OWN else 2
    return {
        "text": workspace,
        "uuid": str(uuid.UUID(int=number)),
        "bytea": f"\\x0{number}",
        "bytea[]": "{}",
        "text[]": "{}",
        "jsonb": "{}",
        "json": "{}",
        "boolean": "false",
        "timestamp with time zone": f"2026-11-2{number} 00:00:00+00",
    }.get(kind, str(number))


async def _fill(connection: asyncpg.Connection, table: str) -> None:
    columns = await connection.fetch(_COLUMNS, f'"{table}"', ["workspace_id", *_BY_ANOTHER])
    names = ", ".join(f'"{row["name"]}"' for row in columns)
    for workspace in (OWN, OTHER):
        values = ", ".join(f"'{_value(row['name'], row['type'], workspace)}'::{row['type']}" for row in columns)
        await connection.execute(f'insert into "{table}" ({names}) values ({values})')


async def _filled(superuser: str, house: House) -> list[str]:
    """A row of each of two workspaces in every table that the reader may read; their names."""
    connection = await asyncpg.connect(as_superuser(superuser, house.database_url))
    try:
        views = {row[0] for row in await connection.fetch("select viewname from pg_views where schemaname = 'public'")}
        rights = _rights(house.service).tables
        tables = [name for name, what in rights.items() if "select" in what and name not in views]
        # No foreign keys, no triggers, no checks: the rows needn't mean anything.
        await connection.execute("set session_replication_role = replica")
        for row in await connection.fetch(_CHECKS):
            await connection.execute(f'alter table {row["place"]} drop constraint "{row["name"]}"')
        for table in tables:
            await _fill(connection, table)
        return tables
    finally:
        await connection.close()


@postgres
@pytest.mark.parametrize("service", Service)
async def test_a_statement_that_forgets_the_workspace_gets_its_own_rows_only(
    postgres_url: str, service: Service
) -> None:
    async with open_house(postgres_url, service) as house:
        tables = await _filled(postgres_url, house)
        assert tables
        for table in tables:
            counted = f'select count(*) from "{table}"'
            async with house.runtime.pool.acquire() as connection:
                assert await connection.fetchval(counted) == 2, f"{table}: the stages see all workspaces"
            for workspace in (OWN, OTHER):
                async with house.runtime.within(workspace, snapshot=True) as connection:
                    assert await connection.fetchval(counted) == 1, table
            for nobody in ("", "nobodys", "*", "%"):
                async with house.runtime.within(nobody) as connection:
                    assert await connection.fetchval(counted) == 0, f"{table} without a workspace"
        # Nothing of it is left on a connection that goes back to the pool.
        async with house.runtime.pool.acquire() as connection:
            assert await connection.fetchval("select current_user = session_user")
            assert not await connection.fetchval("select current_setting('sendwhy.workspace', true)")


@postgres
async def test_the_reader_writes_into_no_other_workspace_and_nothing_it_has_no_right_to(postgres_url: str) -> None:
    refused: tuple[str, ...] = (
        f"insert into audit (workspace_id, who, action, target, result) values ('{OTHER}', 'a', 'b', 'c', 'd')",
        f"insert into idempotency_key (workspace_id, key, digest) values ('{OTHER}', 'k', '')",
        "delete from message",
        "update message set outcome = 'read'",
        "select * from account",
        "select * from session",
        "select body from webhook",
        "select * from event_default",
        "truncate audit",
        "create table mine (a int)",
        "alter table message disable row level security",
        "set role postgres",
    )
    async with open_house(postgres_url, Service.MESSAGE_LOG) as house:
        for statement in refused:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                async with house.runtime.within(OWN) as connection:
                    await connection.execute(statement)
        async with house.runtime.within(OWN) as connection:
            await connection.execute(refused[0].replace(OTHER, OWN))


@postgres
async def test_a_name_is_looked_for_in_the_readers_workspace_only(postgres_url: str) -> None:
    """By a function that sees all rows, since the index of names can't be asked otherwise (migration 0015)."""
    async with open_house(postgres_url, Service.MESSAGE_LOG) as house:
        async with house.runtime.pool.acquire() as connection:
            await connection.executemany(
                "insert into known_state (topic, key, version, workspace_id, body, name)"
                " values ('contact.updated', $1 || '/c-1', 1, $1, '{}', 'ines')",
                [(OWN,), (OTHER,)],
            )
        async with house.runtime.within(OWN) as connection:
            named = "select array(select contacts_named($1, 'ines:*', 10))"
            assert await connection.fetchval(named, OWN) == ["c-1"]
            assert await connection.fetchval(named, OTHER) == []


@postgres
async def test_without_the_right_to_make_roles_it_works_and_says_what_to_do(postgres_url: str) -> None:
    service = Service.BILLING
    async with database(postgres_url, service) as url:
        user = url.rpartition("/")[2]
        superuser = await asyncpg.connect(as_superuser(postgres_url, url))
        await superuser.execute(f"drop owned by {user}_api; drop role {user}_api")
        with capture_logs() as said:
            await migrate(url, migrations_of(service))
        [warning] = [one for one in said if one["log_level"] == "warning"]
        assert f'create role "{user}_api" nologin; grant "{user}_api" to "{user}"' in warning["remedy"]
        async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool:
            async with pool.acquire() as connection:
                assert await reader_of(connection) is None
            async with within(pool, None, OWN) as connection:
                assert await connection.fetchval("select count(*) from account") == 0
        await superuser.execute(f"create role {user}_api nologin; grant {user}_api to {user}")
        await superuser.close()
        for _ in range(2):
            with capture_logs() as said:
                assert await migrate(url, migrations_of(service)) == []
            assert not [one for one in said if one["log_level"] == "warning"]
        owner = await asyncpg.connect(url)
        assert await owner.fetchval("select relrowsecurity from pg_class where relname = 'ledger'")
        await owner.close()


def _as_the_service(service: Service) -> Iterator[str]:
    """Functions and classes of modules with routes that take a connection as the service itself."""
    package = ROOT / "services" / service / PACKAGES[service]
    for file in sorted(package.glob("*.py")):
        module = ast.parse(file.read_text())
        if "APIRouter" not in file.read_text():
            continue
        for part in module.body:
            takes = any(isinstance(one, ast.Attribute) and one.attr in ("pool", "connect") for one in ast.walk(part))
            if takes and isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield f"{PACKAGES[service]}.{file.stem}.{part.name}"


def test_who_works_as_the_service_itself_has_a_reason() -> None:
    assert {name for service in Service for name in _as_the_service(service)} == AS_THE_SERVICE.keys()
