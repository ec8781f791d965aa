"""How a message's cost grows: with the batch, with what is stored, with who there is, and with replicas.

    make bench ARGS="growth --quick"                 two minutes
    make bench ARGS="growth"                         a quarter of an hour, a million rows in every table
    make bench ARGS="growth --backlog 10000000"      takes some 100 GB and hours

Of the stages (way.py) on a PostgreSQL of their own: microseconds of CPU per message, of the stages' code and of
PostgreSQL, the median of some batches; of replicas (`--replicas`): of the whole system in a burst, all processes. What
is stored comes from one batch that has gone the whole way, copied with other ids until every table has so many rows.
A shared machine can be three times as fast a minute later: a fixed loop of Python is timed beside each batch (`loop`),
and `scaled` is the total as if that had taken 15 ms. Flat is good; figures are printed, plotted and written, never
asserted.
"""

import argparse
import asyncio
import contextlib
import os
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import asyncpg
import psutil
import report
from local_stack.postgres import Postgres
from phases import Phase, Runner
from processes import best_loop_ms, loop_ms
from report import PUBLISHED, console
from rich.table import Table
from sendwhy.service import spare_the_collector
from system import Shape, running
from way import Crowd, desk

OUT = Path(".state/bench/growth.json")
BATCH = 500
# So many messages a point, in three to thirty batches.
MESSAGES = 1_500
LOOP_MS = 15.0
ROWS_AT_ONCE = 100_000
FIRST_VERSION = 1_000_000_000


@dataclass(frozen=True)
class Point:
    """CPU µs per message: of the stages, by service, and of PostgreSQL for all of them. `loop`: ms of `loop_ms` then;
    `pace`: messages/s, of replicas."""

    axis: str
    at: int
    stages: dict[str, float]
    postgres: float
    load: float
    loop: float
    pace: float | None = None

    @property
    def total(self) -> float:
        return sum(self.stages.values()) + self.postgres

    @property
    def scaled(self) -> float:
        return self.total * LOOP_MS / self.loop


class Clock:
    """CPU by service while their batches are handled."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def around(self, stage: str) -> Iterator[None]:
        before = time.process_time()
        yield
        self.seconds[stage.partition(":")[0]] += time.process_time() - before


@dataclass
class Ground:
    """A PostgreSQL on which points are measured."""

    server: Postgres
    points: list[Point]

    async def batches(self, axis: str, at: int, *, crowd: Crowd, batch: int = BATCH, rows: int = 0) -> None:
        """The median of some batches of that size, on fresh databases with so many rows in every table."""
        clock, found = Clock(), []
        count = max(3, min(30, MESSAGES // batch))
        async with desk(self.server.url, crowd, clock.around) as way:
            await way.set_up((count + 1) * batch)
            await way.go(range(batch))
            for pool in way.pools.values():
                await fill(pool, rows)
            # As a service does once it has started.
            spare_the_collector()
            for number in range(1, count + 1):
                clock.seconds.clear()
                before = self._postgres_seconds()
                await way.go(range(number * batch, (number + 1) * batch))
                spent = (self._postgres_seconds() - before) / batch * 1e6
                stages = {name: seconds / batch * 1e6 for name, seconds in clock.seconds.items()}
                found.append(Point(axis, at, stages, spent, os.getloadavg()[0], loop_ms()))
        found.sort(key=lambda point: point.scaled)
        median = found[len(found) // 2]
        self.points.append(median)
        console.print(f"{axis} {at:,}: {median.total:,.0f} µs, {median.scaled:,.0f} to scale (load {median.load:.0f})")

    def _postgres_seconds(self) -> float:
        """CPU of the server and the backends that it has, to the nanosecond (Linux): a batch takes less than a tick."""
        server = psutil.Process(self.server.process.pid)
        told = [Path(f"/proc/{one.pid}/schedstat").read_text() for one in (server, *server.children())]
        return sum(int(text.split()[0]) for text in told) / 1e9


_TABLES = """
select c.oid::regclass::text as name from pg_class c
where c.relkind in ('r', 'p') and not c.relispartition and c.relnamespace = 'public'::regnamespace
  and exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'message_id')
"""
_COLUMNS = """
select attname as name, atttypid::regtype::text as type from pg_attribute
where attrelid = $1::regclass and attnum > 0 and not attisdropped and attidentity = '' and attgenerated = ''
  and attname <> 'changed_by'
order by attnum
"""


async def fill(pool: asyncpg.Pool, rows: int) -> None:
    """Copies what is in each table that grows with messages until it has so many rows: other ids, all else alike."""
    async with pool.acquire() as connection:
        await connection.execute("set session_replication_role = replica; set statement_timeout = 0")
        for table in [row["name"] for row in await connection.fetch(_TABLES)]:
            own = await connection.fetchval(f"select count(*) from {table}")
            columns = {row["name"]: row["type"] for row in await connection.fetch(_COLUMNS, table)}
            names = ", ".join(columns)
            step = max(1, ROWS_AT_ONCE // max(1, own))
            for start in range(0, rows // own if own else 0, step):
                until = min(start + step, rows // own) - 1
                values = ", ".join(_copied(name, kind, start * own) for name, kind in columns.items())
                own_rows = f"(select * from {table} where message_id not like '%~%') t"
                copies = f"select {values} from {own_rows}, generate_series({start}, {until}) n"
                await connection.execute(f"insert into {table} ({names}) {copies}", timeout=3600)
            await connection.execute(f"vacuum analyze {table}", timeout=3600)
        await connection.execute("reset session_replication_role; reset statement_timeout")


def _copied(name: str, kind: str, done: int) -> str:
    """A column of a copy, of which so many are made: what tells rows apart is new, all else as it was."""
    if kind == "uuid":
        return "gen_random_uuid()"
    if name == "version":  # of the ledger, counted by account
        return f"{FIRST_VERSION + done} + row_number() over ()"
    if name in ("message_id", "wamid", "provider_message_id"):
        return f"t.{name} || '~' || n"
    return f"t.{name}"


async def replicas(counts: Sequence[int], messages: int) -> list[Point]:
    """Of everything but the door, which Meta reaches at one address."""
    found = []
    for count in counts:
        each = dict.fromkeys(("consent", "billing", "dispatcher", "message-log"), count)
        shape = Shape(contacts=messages, senders=4, replicas=each)
        async with running(shape) as system:
            runner = Runner(system, shape)
            await runner.run(Phase("warm-up", 500, rate=250))
            result = await runner.run(Phase("burst", messages))
        own: defaultdict[str, float] = defaultdict(float)
        for name, us in result.cpu_us.items():
            if name not in ("postgres", "load", "meta"):
                own[re.sub(r"-\d+$", "", name)] += us
        postgres, load = result.cpu_us["postgres"], os.getloadavg()[0]
        cost = Point("replicas", count, dict(own), postgres, load, best_loop_ms(), result.pace)
        console.print(
            f"replicas {count}: {cost.total:,.0f} µs, {cost.scaled:,.0f} to scale, {cost.pace:,.0f} messages/s"
        )
        found.append(cost)
    return found


async def main(options: argparse.Namespace) -> list[Point]:
    few = options.quick
    spread = (1, 100, 1_000) if few else (1, 100, 1_000, 10_000)
    points: list[Point] = []
    async with Postgres(Path(tempfile.mkdtemp(prefix="sendwhy-growth-"))) as server:
        ground = Ground(server, points)
        for batch in (1, 10, 100, 500) if few else (1, 5, 20, 100, 250, 500):
            await ground.batches("records in a batch", batch, crowd=Crowd(), batch=batch)
        for rows in (1_000, 10_000, 100_000, 1_000_000, 10_000_000):
            if rows <= options.backlog:
                await ground.batches("rows in every table", rows, crowd=Crowd(), rows=rows)
        for count in spread:
            await ground.batches("workspaces", count, crowd=Crowd(workspaces=count))
        for count in spread:
            await ground.batches("numbers", count, crowd=Crowd(senders=count))
        for count in spread:
            await ground.batches("campaigns", count, crowd=Crowd(campaigns=count))
    if options.replicas:
        points += await replicas(range(1, options.replicas + 1), options.messages)
    return points


def show(points: Sequence[Point]) -> None:
    services = list(dict.fromkeys(name for point in points for name in point.stages))
    figures = ("PostgreSQL", "all", "ms a loop", "to scale", "load", "messages/s")
    table = Table("", "", *services, *figures, title="CPU µs per message")
    axis = ""
    for point in points:
        if point.axis != axis:
            table.add_section()
        shown, axis = point.axis if point.axis != axis else "", point.axis
        cells = [f"{point.stages.get(name, 0):,.0f}" for name in services]
        cells += [f"{point.postgres:,.0f}", f"{point.total:,.0f}", f"{point.loop:.0f}", f"{point.scaled:,.0f}"]
        cells += [f"{point.load:.0f}", f"{point.pace:,.0f}" if point.pace else ""]
        table.add_row(shown, f"{point.at:,}", *cells)
    console.print(table)


def write(points: Sequence[Point], path: Path) -> None:
    from plots import draw_growth  # matplotlib, which only `make bench` installs

    told = [asdict(point) | {"total": point.total, "scaled": point.scaled} for point in points]
    report.write(path, told)
    draw_growth(told, path.with_suffix(".svg"))


def command(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer points, to 100,000 rows and 1,000 of anything")
    parser.add_argument("--backlog", type=int, help="the most rows in every table (1,000,000; quick: 100,000)")
    parser.add_argument("--replicas", type=int, default=0, help="also of the whole system, with 1 to so many")
    parser.add_argument("--messages", type=int, default=5_000, help="in each burst of --replicas (5,000)")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--publish", action="store_true", help="also as docs/performance/growth.json and .svg")
    options = parser.parse_args(arguments)
    options.backlog = options.backlog or (100_000 if options.quick else 1_000_000)
    points = asyncio.run(main(options))
    show(points)
    write(points, options.out)
    if options.publish:
        write(points, PUBLISHED / "growth.json")
