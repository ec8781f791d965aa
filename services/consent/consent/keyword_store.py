"""The table of workspaces' own keywords. Every function works inside the caller's transaction."""

from collections.abc import Iterable

import asyncpg
from sendwhy.postgres import Connection

from consent.keywords import LISTS, Kept, Keywords
from consent.words import Own

_LATEST = """
select distinct on (k.workspace_id) k.* from keywords k
where k.workspace_id = any($1::text[]) order by k.workspace_id, k.version desc
"""
_ADD = """
insert into keywords (workspace_id, version, stop, start, stop_buttons, start_buttons, ignore, changed_by, changed_at)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
"""
_CHANGES = "select * from keywords where workspace_id = $1 and version < $2 order by version desc limit $3"


async def owns_of(connection: Connection, workspaces: Iterable[str]) -> dict[str, Own]:
    """What these workspaces made their own; those that didn't are not in it."""
    rows = await connection.fetch(_LATEST, sorted(set(workspaces)))
    return {row["workspace_id"]: _kept(row).keywords.own for row in rows}


async def keywords_of(connection: Connection, workspace: str) -> Kept:
    rows = await connection.fetch(_LATEST, [workspace])
    return _kept(rows[0]) if rows else Kept()


async def add_keywords(connection: Connection, workspace: str, kept: Kept) -> None:
    words = [kept.keywords.named(name) for name in LISTS]
    await connection.execute(_ADD, workspace, kept.version, *words, kept.changed_by, kept.changed_at)


async def changes_of(connection: Connection, workspace: str, before: int, limit: int) -> list[Kept]:
    """Every state that held, newest first, of versions below `before`."""
    return [_kept(row) for row in await connection.fetch(_CHANGES, workspace, before, limit)]


def _kept(row: asyncpg.Record) -> Kept:
    keywords = Keywords(**{name: tuple(row[name]) for name in LISTS})
    return Kept(keywords, row["version"], row["changed_by"], row["changed_at"])
