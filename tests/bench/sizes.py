"""Bytes on disk: of each table with its indexes, and of each topic."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import asyncpg
from local_stack.services import SERVICES

Sizes = dict[str, dict[str, int]]
LEAST_BYTES = 1.0
_TABLES = """
select coalesce(pg_partition_root(c.oid), c.oid)::regclass::text as name,
       sum(pg_table_size(c.oid))::bigint as heap, sum(pg_indexes_size(c.oid))::bigint as indexes
from pg_class c where c.relkind = 'r' and c.relnamespace = 'public'::regnamespace group by 1
"""


class Stored(Protocol):
    """What has databases, and Kafka's files in its state directory."""

    @property
    def state(self) -> Path: ...

    def database(self, service: str) -> str: ...


async def sizes_of(system: Stored) -> Sizes:
    tables: dict[str, int] = {}
    for service in SERVICES:
        parts = await table_bytes(system.database(service))
        tables |= {f"{service}.{name}": sum(each.values()) for name, each in parts.items()}
    return {"PostgreSQL": tables, "Kafka": topic_bytes(system.state / "kafka" / "data")}


async def table_bytes(url: str) -> dict[str, dict[str, int]]:
    """By table: bytes of its heap and of its indexes, those of all its partitions together."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(_TABLES)
    finally:
        await connection.close()
    return {row["name"]: {"heap": row["heap"], "indexes": row["indexes"]} for row in rows}


def topic_bytes(data: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for log in data.glob("*/*.log"):
        name = re.sub(r"-\d+$", "", log.parent.name)
        found[name] = found.get(name, 0) + log.stat().st_size
    return found


def per_message(before: Sizes, after: Sizes, messages: int) -> dict[str, dict[str, float]]:
    """What has grown, the largest first."""
    told: dict[str, dict[str, float]] = {}
    for store, sizes in after.items():
        grown = {name: (size - before[store].get(name, 0)) / messages for name, size in sizes.items()}
        ordered: list[tuple[str, float]] = sorted(grown.items(), key=lambda row: -row[1])
        told[store] = {name: round(size, 1) for name, size in ordered if size >= LEAST_BYTES}
    return told


def total(sizes: Mapping[str, float]) -> float:
    return sum(sizes.values())
