"""Migrations expand, then contract: the last release must go on to work on what they make of its tables.

Judged by what PostgreSQL makes of them, not by their text. What contracts says so in its file:

    -- contract: sender.hold_strikes: not read since 1.4
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import pytest
from released import RELEASE, digest, migrations

RELEASED: Mapping[str, str] = json.loads(RELEASE.read_text())["migrations"]
NOW = migrations()
PACKAGES = sorted({name.partition("/")[0] for name in NOW} - {"sendwhy"})
CONTRACT = re.compile(r"^-- contract: ([\w.]+): \S.*$", re.MULTILINE)

_COLUMNS = """
select c.relname as table, a.attname as name, format_type(a.atttypid, a.atttypmod) as type, a.attnotnull as needed,
       a.atthasdef or a.attidentity <> '' as filled
from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace
where n.nspname = 'public' and c.relkind in ('r', 'p', 'v', 'm') and a.attnum > 0 and not a.attisdropped
"""
_RULES = """
select conrelid::regclass::text as table, pg_get_constraintdef(oid) as rule from pg_constraint
where connamespace = 'public'::regnamespace and conrelid <> 0 and contype in ('c', 'f', 'x')
"""
_KEYS = """
select c.relname as table, regexp_replace(pg_get_indexdef(i.indexrelid), '.* ON (ONLY )?(\\w+\\.)?\\w+ ', '') as rule
from pg_index i join pg_class c on c.oid = i.indrelid join pg_namespace n on n.oid = c.relnamespace
where n.nspname = 'public' and i.indisunique
"""


@dataclass(frozen=True)
class Column:
    type: str
    needed: bool
    filled: bool


@dataclass(frozen=True)
class Schema:
    """Columns by table and name; what rows must fulfil, and what must be unique, by table."""

    columns: dict[tuple[str, str], Column]
    rules: frozenset[tuple[str, str]] = field(default_factory=frozenset)
    keys: frozenset[tuple[str, str]] = field(default_factory=frozenset)

    @property
    def tables(self) -> set[str]:
        return {table for table, _ in self.columns}


async def schema_of(connection: asyncpg.Connection) -> Schema:
    columns = {
        (row["table"], row["name"]): Column(row["type"], row["needed"], row["filled"])
        for row in await connection.fetch(_COLUMNS)
    }
    rules, keys = await connection.fetch(_RULES), await connection.fetch(_KEYS)
    return Schema(
        columns, frozenset((row["table"], row["rule"]) for row in rules), frozenset((*row.values(),) for row in keys)
    )


def faults(old: Schema, new: Schema) -> Iterator[tuple[str, str]]:
    """What a release that knows `old` would stumble over in `new`: the thing, and what became of it."""
    yield from ((table, "is gone") for table in sorted(old.tables - new.tables))
    stay = old.tables & new.tables
    for (table, name), column in sorted(old.columns.items(), key=lambda each: each[0]):
        if table in stay and (what := _became(column, new.columns.get((table, name)))) is not None:
            yield f"{table}.{name}", what
    for (table, name), column in sorted(new.columns.items(), key=lambda each: each[0]):
        if table in stay and (table, name) not in old.columns and column.needed and not column.filled:
            yield f"{table}.{name}", "must be given, and the last release doesn't know it"
    tighter, looser = sorted(new.rules - old.rules | new.keys - old.keys), sorted(old.keys - new.keys)
    yield from ((table, f"refuses rows that it took: {rule}") for table, rule in tighter if table in stay)
    yield from ((table, f"has no key for `on conflict` any more: {rule}") for table, rule in looser if table in stay)


def _became(column: Column, now: Column | None) -> str | None:
    if now is None:
        return "is gone"
    if now.type != column.type:
        return f"was {column.type}, is {now.type}"
    return "may not be null any more" if now.needed and not column.needed else None


def allowed(files: Iterable[Path]) -> set[str]:
    return {name for file in files for name in CONTRACT.findall(file.read_text())}


def of_package(names: Iterable[str], package: str) -> list[str]:
    """The migrations that a service's database gets."""
    return [name for owner in ("sendwhy", package) for name in names if name.startswith(f"{owner}/")]


async def apply(connection: asyncpg.Connection, names: Iterable[str]) -> Schema:
    for name in names:
        async with connection.transaction():
            await connection.execute(NOW[name].read_text())
    return await schema_of(connection)


def test_what_was_released_is_still_there_and_unchanged() -> None:
    assert {name: digest(NOW[name]) if name in NOW else "is gone" for name in RELEASED} == RELEASED


@pytest.mark.postgres
@pytest.mark.parametrize("package", PACKAGES)
async def test_the_last_release_can_work_on_the_new_tables(package: str, fresh_database: str) -> None:
    before, all_names = of_package(RELEASED, package), of_package(NOW, package)
    new = [name for name in all_names if name not in before]
    connection = await asyncpg.connect(fresh_database)
    try:
        old = await apply(connection, before)
        left = allowed(NOW[name] for name in new)
        found = [f"{name} {what}" for name, what in faults(old, await apply(connection, new)) if name not in left]
    finally:
        await connection.close()
    assert found == []


@pytest.mark.postgres
async def test_each_kind_of_fault_is_found(fresh_database: str) -> None:
    connection = await asyncpg.connect(fresh_database)
    try:
        await connection.execute(
            "create table a (id int primary key, gone int, retyped int, empty int, known int);"
            " create table b (id int primary key)"
        )
        old = await schema_of(connection)
        assert list(faults(old, old)) == []
        await connection.execute(
            "alter table a drop column gone, alter retyped type text, alter empty set not null, add more int,"
            " add needed int not null, add harmless int not null default 0, add check (known > 0);"
            " create unique index on a (known); create table c (id int not null); drop table b"
        )
        found = list(faults(old, await schema_of(connection)))
    finally:
        await connection.close()
    assert {name for name, _ in found} == {"b", "a", "a.gone", "a.retyped", "a.empty", "a.needed"}
    assert [what for name, what in found if name == "a"] == [
        "refuses rows that it took: CHECK ((known > 0))",
        "refuses rows that it took: USING btree (known)",
    ]


def test_what_contracts_on_purpose_is_said_in_its_file(tmp_path: Path) -> None:
    file = tmp_path / "0009_less.sql"
    file.write_text("-- contract: sender.hold_strikes: not read since 1.4\n-- contract: a.b:\nalter table …")
    assert allowed([file]) == {"sender.hold_strikes"}
