"""Row-level security: what is done for one workspace sees that workspace's rows only, also where a statement forgets
to ask for them (ADR 41).

Two roles a database. The service's own owns the tables and sees every workspace: its stages and timers work for all.
Its reader, `<owner>_api`, may not log in, owns nothing, and has only the rights that `rights.toml` beside the
migrations names, with a policy on every table of workspaces. `within` is a transaction as the reader; without a
workspace it would see nothing.
"""

import tomllib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Literal

import asyncpg
import structlog
from asyncpg.pool import PoolConnectionProxy

from sendwhy.values import value_class

RIGHTS = "rights.toml"
POLICY = "own_workspace"
OWN_ROWS = "workspace_id = current_setting('sendwhy.workspace', true)"
# Of a table that a service uses, and that nobody reads for a workspace: to have this right says that all others stand.
_MARK = "migration"
_LOCK_TRIES = 30
_LOCK_TIMEOUT = "2s"

log = structlog.get_logger("sendwhy")


@value_class
class Rights:
    """What a service's reader may do: `tables` has the words of a `grant` by table, `functions` what may be called.
    `rows`: which rows are a workspace's own, where that isn't said by `workspace_id` alone."""

    tables: Mapping[str, str]
    rows: Mapping[str, str]
    functions: tuple[str, ...] = ()


def read_rights(migrations: Path) -> Rights | None:
    """Those beside a service's migrations; None where a service has none."""
    file = migrations / RIGHTS
    if not file.exists():
        return None
    told = tomllib.loads(file.read_text(encoding="utf-8"))
    return Rights(told["tables"], told.get("rows", {}), tuple(told.get("functions", ())))


async def guard_rows(connection: asyncpg.Connection, rights: Rights) -> None:
    """Make the reader, its policies and rights, as far as they are missing. Where this user may not, the service works
    without, and the log says what an administrator has to do."""
    role = await _usable_reader(connection)
    if role is None:
        return
    name = _quoted(role)
    for table, condition in (await _conditions(connection, rights)).items():
        await _guard_table(connection, table, name, condition)
    async with connection.transaction():
        schema = await connection.fetchval("select quote_ident(current_schema())")
        await connection.execute(f"revoke all on all tables in schema {schema} from {name}")
        await connection.execute(f"revoke all on all functions in schema {schema} from {name}")
        await connection.execute(f"grant usage on schema {schema} to {name}")
        for table, what in {**rights.tables, _MARK: "select"}.items():
            await connection.execute(f"grant {what} on {_quoted(table)} to {name}")
        for function in rights.functions:
            await connection.execute(f"grant execute on function {function} to {name}")


async def _usable_reader(connection: asyncpg.Connection) -> str | None:
    """The reader's name, made if that is needed and may be done."""
    owner: str = await connection.fetchval("select session_user")
    role = f"{owner}_api"
    left = [f"create role {_quoted(role)} nologin", f"grant {_quoted(role)} to {_quoted(owner)}"]
    try:
        if not await connection.fetchval("select exists (select from pg_roles where rolname = $1)", role):
            # Unless another service's migrations of the same user were faster.
            with suppress(asyncpg.DuplicateObjectError, asyncpg.UniqueViolationError):
                await connection.execute(left[0])
        del left[0]
        if not await _may_become(connection, role):
            await connection.execute(left[0])
    except asyncpg.InsufficientPrivilegeError:
        log.warning(
            "rows are not guarded by the database: its user may not make the role that reads for one workspace",
            remedy=f"run as an administrator: {'; '.join(left)}; then `migrate` once more",
        )
        return None
    return role


async def _may_become(connection: asyncpg.Connection | PoolConnectionProxy, role: str) -> bool:
    try:
        async with connection.transaction():
            await connection.execute("select set_config('role', $1, true)", role)
    except (asyncpg.InvalidParameterValueError, asyncpg.InsufficientPrivilegeError):
        return False
    return True


_TABLES = """
select c.relname as name from pg_class c
join pg_attribute a on a.attrelid = c.oid and a.attname = 'workspace_id' and not a.attisdropped
where c.relnamespace = current_schema()::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
order by c.relname
"""
_POLICY_OF = """
select c.relrowsecurity as is_on, obj_description(p.oid, 'pg_policy') as told from pg_class c
left join pg_policy p on p.polrelid = c.oid and p.polname = $2
where c.oid = $1::text::regclass
"""


async def _conditions(connection: asyncpg.Connection, rights: Rights) -> dict[str, str]:
    """By table with a workspace or with rows of one: which rows are its own."""
    own = {row["name"]: OWN_ROWS for row in await connection.fetch(_TABLES)}
    return own | dict(rights.rows)


async def _guard_table(connection: asyncpg.Connection, table: str, role: str, condition: str) -> None:
    """Nothing where the policy stands already: each change of it needs the table for itself."""
    name = _quoted(table)
    told = f"to {role}: {condition}"
    stands = await connection.fetchrow(_POLICY_OF, name, POLICY)
    if stands is not None and stands["is_on"] and stands["told"] == told:
        return
    await changed(
        connection,
        f"drop policy if exists {POLICY} on {name}",
        f"create policy {POLICY} on {name} to {role} using ({condition})",
        f"comment on policy {POLICY} on {name} is {_literal(told)}",
        f"alter table {name} enable row level security",
    )


async def changed(connection: asyncpg.Connection, *statements: str) -> None:
    """Change tables in one transaction while services work with them. That needs each table for itself for a moment,
    and whoever waits for it holds up everybody behind: so behind a long statement, or a backup, it gives way and tries
    again. Raises LockNotAvailableError or DeadlockDetectedError after a minute of that."""
    for tries_left in reversed(range(_LOCK_TRIES)):
        try:
            async with connection.transaction():
                await connection.execute(f"set local lock_timeout = '{_LOCK_TIMEOUT}'")
                for statement in statements:
                    await connection.execute(statement)
            return
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            if not tries_left:
                raise


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


_READER = """
select r.rolname, r.rolsuper or r.rolbypassrls or pg_has_role(r.rolname, session_user, 'member') as sees_all,
       has_table_privilege(r.rolname, to_regclass('migration'), 'select') as is_set_up
from pg_roles r where r.rolname = session_user || '_api'
"""


async def reader_of(connection: PoolConnectionProxy) -> str | None:
    """The role to become for one workspace's work; None where `migrate` could not set it up, which is logged."""
    row = await connection.fetchrow(_READER)
    if row is not None and row["is_set_up"] and not row["sees_all"] and await _may_become(connection, row["rolname"]):
        return str(row["rolname"])
    log.warning(
        "rows are not guarded by the database: it has no role that reads for one workspace",
        remedy="run `migrate`, which makes it or says why not",
    )
    return None


_ENTER = "select set_config('sendwhy.workspace', $1, true), set_config('role', $2, true)"


@asynccontextmanager
async def within(
    pool: asyncpg.Pool, reader: str | None, workspace: str | None, *, wait_seconds: float = 10, snapshot: bool = False
) -> AsyncIterator[PoolConnectionProxy]:
    """A transaction in which only this workspace's rows exist; None: all rows, for those who see all workspaces.

    `snapshot`: its statements all see one moment, so that what one answer says agrees with itself, and write nothing.
    """
    isolation: Literal["repeatable_read"] | None = "repeatable_read" if snapshot else None
    async with (
        pool.acquire(timeout=wait_seconds) as connection,
        connection.transaction(isolation=isolation, readonly=snapshot),
    ):
        if workspace is not None:
            await connection.execute(_ENTER, workspace, reader or "none")
        yield connection
