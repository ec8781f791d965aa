"""Local accounts: a name, a password (argon2id) and a role per workspace; and the record of what people did."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar

from asyncpg import Record
from pwdlib import PasswordHash
from sendwhy.access import Role
from sendwhy.postgres import Connection
from sendwhy.problems import Problem

from message_log.language import gettext as _

PASSWORD_LENGTH_MIN = 12
PASSWORD_LENGTH_MAX = 256
# Guessing: after so many wrong passwords in a row, each further try has to wait, twice as long each time.
FREE_FAILURES = 5
WAIT_FIRST = timedelta(seconds=2)
WAIT_MAX = timedelta(minutes=15)

_HASHER = PasswordHash.recommended()
# Verified where an account is unknown, so that the answer takes as long as a wrong password's.
_NOBODYS_HASH = _HASHER.hash("nobody has this password")
# Hashing takes tens of milliseconds and of megabytes: two at once, and so many who wait for it.
HASHERS = ThreadPoolExecutor(2, "hasher")
LOGINS_MAX = 20
_LOGINS = asyncio.Semaphore(LOGINS_MAX)

Connect = Callable[[], AbstractAsyncContextManager[Connection]]
T = TypeVar("T")


def wait_after(failures: int) -> timedelta:
    """How long after the last wrong password the next try is looked at."""
    if failures < FREE_FAILURES:
        return timedelta()
    return min(WAIT_MAX, WAIT_FIRST * (1 << min(failures - FREE_FAILURES, 12)))


async def check_password(connect: Connect, name: str, password: str, now: datetime) -> bool:
    """Whether this is an account's password. A wrong one counts; a right one that came too soon is wrong.

    Anybody may ask this, and as often as they like: so no connection is held while a password is hashed. Raises Problem
    where too many ask at once.
    """
    if _LOGINS.locked():
        busy = _("Many people log in just now. Try again in a moment.")
        raise Problem(503, busy, headers={"retry-after": "1"})
    async with _LOGINS:
        return await _check(connect, name, password, now)


async def _check(connect: Connect, name: str, password: str, now: datetime) -> bool:
    known = None
    # The database takes no NUL in a text.
    if "\0" not in name:
        async with connect() as connection, connection.transaction():
            known = await _begin_try(connection, name, now)
    given = password[:PASSWORD_LENGTH_MAX]
    is_right = await _hashed(partial(_HASHER.verify, given, known or _NOBODYS_HASH))
    if known is None or not is_right:
        return False
    async with connect() as connection:
        await connection.execute("update account set failures = 0, failed_at = null where name = $1", name)
    return True


async def _hashed(hash_or_verify: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(HASHERS, hash_or_verify)


async def _begin_try(connection: Connection, name: str, now: datetime) -> str | None:
    """The hash to compare with; None where there is no such account, or it is too soon. The try counts as failed until
    it has succeeded, so that many at once are as many one after the other."""
    row = await connection.fetchrow(
        "select password_hash, failures, failed_at from account where name = $1 and disabled_at is null for update",
        name,
    )
    if row is None or (row["failed_at"] is not None and now < row["failed_at"] + wait_after(row["failures"])):
        return None
    await connection.execute("update account set failures = failures + 1, failed_at = $2 where name = $1", name, now)
    return str(row["password_hash"])


async def roles_of(connection: Connection, name: str) -> dict[str, Role]:
    """By workspace (or `*`); empty where the account is disabled or unknown."""
    rows = await connection.fetch(
        "select r.workspace, r.role from account_role r join account a on a.name = r.name"
        " where a.name = $1 and a.disabled_at is null order by r.workspace",
        name,
    )
    return {row["workspace"]: Role(row["role"]) for row in rows}


async def workspaces_of(connection: Connection, name: str) -> list[str] | None:
    """Where an account has, or before it was disabled had, a role; None where there is no account of that name."""
    row = await connection.fetchrow(
        "select array(select workspace from account_role r where r.name = a.name) as workspaces from account a"
        " where a.name = $1 for update",
        name,
    )
    return None if row is None else list(row["workspaces"])


async def save(
    connection: Connection, name: str, password: str | None, roles: Mapping[str, Role], created_by: str
) -> None:
    """Create an account, or change its password (if given) and its roles in these workspaces."""
    if password is not None:
        hashed = await _hashed(partial(_HASHER.hash, password))
        await connection.execute(
            "insert into account (name, password_hash, created_by) values ($1, $2, $3)"
            " on conflict (name) do update set password_hash = $2, disabled_at = null, failures = 0, failed_at = null",
            name,
            hashed,
            created_by,
        )
        await connection.execute("delete from session where account = $1", name)
    await connection.executemany(
        "insert into account_role (name, workspace, role) values ($1, $2, $3)"
        " on conflict (name, workspace) do update set role = $3",
        [(name, workspace, int(role)) for workspace, role in sorted(roles.items())],
    )


async def take_role(connection: Connection, name: str, workspace: str) -> bool:
    """Take an account out of a workspace; without any left it is disabled. False where it had none there."""
    gone = await connection.fetchval(
        "delete from account_role where name = $1 and workspace = $2 returning true", name, workspace
    )
    await connection.execute(
        "update account set disabled_at = clock_timestamp() where name = $1"
        " and not exists (select from account_role where account_role.name = account.name)",
        name,
    )
    return bool(gone)


async def people_of(connection: Connection, workspace: str) -> list[Record]:
    rows: list[Record] = await connection.fetch(
        "select a.name, r.role, r.workspace, a.created_at, a.created_by, a.failures,"
        " (select max(s.created_at) from session s where s.account = a.name) as last_login"
        " from account_role r join account a on a.name = r.name"
        " where r.workspace in ($1, '*') and a.disabled_at is null order by a.name limit 1000",
        workspace,
    )
    return rows


async def note(connection: Connection, workspace: str, who: str, action: str, target: str, result: str) -> None:
    """Add to the record of what people did."""
    await connection.execute(
        "insert into audit (workspace_id, who, action, target, result) values ($1, $2, $3, $4, $5)",
        workspace,
        who,
        action,
        target,
        result[:500],
    )


async def noted(connection: Connection, workspace: str, before: int | None, limit: int) -> list[Record]:
    """What people did in a workspace, the latest first, from below the entry `before` on."""
    rows: list[Record] = await connection.fetch(
        "select audit_id, at, who, action, target, result from audit"
        " where workspace_id = $1 and ($2::bigint is null or audit_id < $2) order by audit_id desc limit $3",
        workspace,
        before,
        limit,
    )
    return rows
