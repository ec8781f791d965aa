"""Imports of contacts as they run: one at a time in a workspace, in transactions of 500 rows.

What an import has come to stands in PostgreSQL with each of its batches. A process that dies leaves it at that; its
imports are given up by the others (or itself, started again), and the file may be sent again.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID, uuid4

import structlog
from sendwhy.logs import describe
from sendwhy.postgres import TRANSIENT_ERRORS, Connection, add_to_outbox, time_of
from sendwhy.problems import Problem
from sendwhy.reasons import Service
from sendwhy.service import Runtime
from sendwhy.topics import outgoing

from consent import import_store, store
from consent.contacts import Book, Key
from consent.import_changes import Cause, apply_to, changes_of, fields_of_row, marks_of_refused, name_of
from consent.import_csv import Batch, RefusedRow, read_batches
from consent.import_job import Job
from consent.import_store import SHOWN, RefusedLine
from consent.import_view import view_of
from consent.settings import Settings

BEAT_SECONDS = 5.0
PRUNE_SECONDS = 600.0
TURN_SECONDS = 0.2
# Of all workspaces; each holds a file on disk, and those that run a connection for each batch.
HELD_AT_ONCE = 32
RUNNING_AT_ONCE = 2
TRIES = 5

log = structlog.get_logger("sendwhy")


class GivenUp(Exception):
    """Another process took this one for dead."""


@dataclass(slots=True)
class Tally:
    """What an import has come to. `repeated`: (row, the earlier row on the same contact), the first 100 of them."""

    read: int = 0
    imported: int = 0
    unchanged: int = 0
    refused_count: int = 0
    repeated_count: int = 0
    refused: list[RefusedRow] = field(default_factory=list)
    repeated: list[tuple[int, int]] = field(default_factory=list)

    def add(self, counts: Sequence[int], refused: Sequence[RefusedRow], repeated: Sequence[tuple[int, int]]) -> None:
        self.read += counts[0]
        self.imported += counts[1]
        self.unchanged += counts[2]
        self.refused_count += counts[3]
        self.repeated_count += counts[4]
        self.refused += refused[: SHOWN - len(self.refused)]
        self.repeated += repeated[: SHOWN - len(self.repeated)]


class _Seen:
    """On which row a file had which contact, kept on disk (SQLite's own temporary file): a million ids are too many."""

    def __init__(self) -> None:
        self._base = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._base.execute("pragma journal_mode = off")
        self._base.execute("create table seen (id integer primary key, row integer not null)")

    def note(self, batch: Batch) -> list[tuple[int, int]]:
        """Note a batch's rows; returns those on a contact that an earlier row is on too, with that row."""
        named = [(name_of(row.row.contact_id), row.number) for row in batch.rows]
        marks = ",".join("?" * len(named))
        query = f"select id, row from seen where id in ({marks})"  # noqa: S608 - question marks only
        known: dict[int, int] = dict(self._base.execute(query, [name for name, _ in named]))
        repeated = []
        for name, number in named:
            if (earlier := known.get(name)) is not None:
                repeated.append((number, earlier))
            known[name] = number
        self._base.execute("begin")
        self._base.executemany("insert or replace into seen values (?, ?)", named)
        self._base.execute("commit")
        return repeated

    def close(self) -> None:
        self._base.close()


class Imports:
    def __init__(self, runtime: Runtime, settings: Settings) -> None:
        self._runtime = runtime
        self._tagger = store.Tagger(settings.privacy_key.get_secret_value())
        self._held = 0
        self._running = asyncio.Semaphore(RUNNING_AT_ONCE)
        self._tasks: dict[UUID, asyncio.Task[bytes]] = {}
        runtime.every(BEAT_SECONDS, "imports", self.beat)
        runtime.every(PRUNE_SECONDS, "prune imports", self._prune)
        runtime.at_end(self.stop)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Room for one more file on this process's disk, or 503."""
        if self._held + len(self._tasks) >= HELD_AT_ONCE:
            busy = f"{HELD_AT_ONCE} imports are under way here; try again when some have ended."
            raise Problem(503, busy, headers={"retry-after": "30"})
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    def begin(self, job: Job) -> "asyncio.Task[bytes]":
        """Run a noted import to its end, whoever waits for it. The task's result is its last state, as JSON."""

        def end(task: "asyncio.Task[bytes]") -> None:
            self._tasks.pop(job.import_id, None)
            if not task.cancelled():
                # It is logged and in the database; nobody has to wait for it.
                task.exception()

        task = asyncio.create_task(self._run(job), name=f"import {job.import_id}")
        self._tasks[job.import_id] = task
        task.add_done_callback(end)
        return task

    async def stop(self) -> None:
        """At the service's end: what still runs is cut short, and says so."""
        tasks = dict(self._tasks)
        for task in tasks.values():
            task.cancel()
        if tasks:
            await asyncio.wait(tasks.values(), timeout=10)
            await self._fail(tasks, import_store.INTERRUPTED)

    async def beat(self) -> None:
        async with self._runtime.pool.acquire(timeout=30) as connection, connection.transaction():
            await import_store.beat(connection, self._tasks)
            if dead := await import_store.give_up_dead(connection):
                log.warning("imports were interrupted: the processes that ran them are no more", count=dead)

    async def preview(self, job: Job) -> Tally:
        """Read and judge all rows; nothing is stored."""
        tally = Tally()
        async with self._running:
            async for batch, repeated in _batches(job):
                now = datetime.now(UTC)
                async with self._runtime.pool.acquire(timeout=30) as connection:
                    book = await store.open_book(connection, self._tagger, changes_of(batch.rows, job.cause, now), now)
                refused, counts = _judge(book, batch, repeated, job.cause, now)
                tally.add(counts, refused, repeated)
        return tally

    async def _run(self, job: Job) -> bytes:
        try:
            await self._turn(job)
            async with self._running:
                return await self._take_in(job)
        except asyncio.CancelledError:
            raise
        except GivenUp:
            log.error("an import was taken for dead while it ran", import_id=str(job.import_id))
            raise Problem(503, import_store.INTERRUPTED) from None
        except Exception as error:
            bug = None if isinstance(error, TRANSIENT_ERRORS) else error
            log.warning("an import failed", import_id=str(job.import_id), error=describe(error), exc_info=bug)
            await self._fail([job.import_id], f"{_fault(error)} Send the file again: rows that are in change nothing.")
            raise
        finally:
            job.upload.file.close()

    async def _turn(self, job: Job) -> None:
        while True:
            async with self._runtime.pool.acquire(timeout=30) as connection:
                if await import_store.claim(connection, job.import_id):
                    return
                if await import_store.state_of(connection, job.import_id) != "waiting":
                    raise GivenUp
            await asyncio.sleep(TURN_SECONDS)

    async def _take_in(self, job: Job) -> bytes:
        repeated: list[tuple[int, int]] = []
        read = 0
        async for batch, again in _batches(job):
            await self._apply_patiently(job, batch, again, read)
            read += len(batch)
            repeated += again[: SHOWN - len(repeated)]
        async with self._runtime.pool.acquire(timeout=30) as connection, connection.transaction():
            row = await import_store.finish(connection, job, repeated)
            if row is None:
                raise GivenUp
            refused = await import_store.refused_of(connection, job.import_id, 0, SHOWN)
            answer = view_of(row, refused).model_dump_json().encode()
            if job.key is not None:
                await import_store.keep_answer(connection, job, 200, answer)
        counts = {name: row[name] for name in ("read", "imported", "unchanged", "refused_count")}
        log.info("contacts were imported", import_id=str(job.import_id), **counts)
        return answer

    async def _apply_patiently(self, job: Job, batch: Batch, repeated: Sequence[tuple[int, int]], read: int) -> None:
        """A batch is all or nothing, so it may be tried again; a database that is restarted costs no import."""
        for left in reversed(range(TRIES)):
            try:
                async with self._runtime.pool.acquire(timeout=30) as connection, connection.transaction():
                    await self.apply(connection, job, batch, repeated, read)
            except TRANSIENT_ERRORS as error:
                if not left:
                    raise
                log.warning("a batch of an import is tried again", error=describe(error))
                await asyncio.sleep(TRIES - left)
            else:
                self._runtime.publish_soon()
                return

    async def apply(
        self, connection: Connection, job: Job, batch: Batch, repeated: Sequence[tuple[int, int]], read: int
    ) -> None:
        """One batch, after `read` rows; nothing if it is in already, as after a commit whose answer was lost."""
        so_far = await import_store.read_of(connection, job.import_id)
        if so_far is None:
            raise GivenUp
        if so_far > read:
            return
        workspace, now = job.caller.workspace, datetime.now(UTC)
        await store.lock_workspaces(connection, [workspace])
        book = await store.open_book(connection, self._tagger, changes_of(batch.rows, job.cause, now), now)
        before = {key: contact.version for key, contact in book.contacts.items()}
        refused, counts = _judge(book, batch, repeated, job.cause, now)
        if not await import_store.go_on(connection, job.import_id, batch.read_bytes, counts):
            raise GivenUp
        await store.save_book(connection, self._tagger, book)
        events = [event for event in book.events() if event.version != before.get(Key(workspace, event.contact_id))]
        if events:
            told = [(uuid4(), outgoing(event, source=Service.CONSENT)) for event in events]
            await add_to_outbox(connection, told)
        if refused:
            lines = [self._line(workspace, one) for one in refused]
            await import_store.add_refused(connection, job.import_id, workspace, lines, now)

    def _line(self, workspace: str, refused: RefusedRow) -> RefusedLine:
        tags = tuple(self._tagger(mark) for mark in marks_of_refused(workspace, refused))
        return refused.number, refused.field, refused.detail, refused.cells, tags

    async def _fail(self, import_ids: Iterable[UUID], fault: str) -> None:
        try:
            async with self._runtime.pool.acquire(timeout=10) as connection, connection.transaction():
                await import_store.fail(connection, import_ids, fault)
        except TRANSIENT_ERRORS as error:
            # Then the import is given up as a dead one, as soon as the database is back.
            log.warning("that an import failed could not be noted", error=describe(error))

    async def _prune(self) -> None:
        async with self._runtime.pool.acquire(timeout=30) as connection:
            await import_store.prune(connection, await time_of(connection))


def _fault(error: Exception) -> str:
    return "The database was away too long." if isinstance(error, TRANSIENT_ERRORS) else "Sendwhy failed here."


async def _batches(job: Job) -> AsyncIterator[tuple[Batch, list[tuple[int, int]]]]:
    """The file's batches, each with the rows that repeat an earlier one's contact; read beside the event loop."""
    batches, seen = read_batches(job.upload.file, job.layout), _Seen()
    try:
        while (read := await asyncio.to_thread(_next, batches, seen)) is not None:
            yield read
    finally:
        seen.close()


def _next(batches: Iterator[Batch], seen: _Seen) -> tuple[Batch, list[tuple[int, int]]] | None:
    batch = next(batches, None)
    if batch is None:
        return None
    for row in batch.rows:
        # Numbers are read here, where nobody waits for it; the transaction finds them in the cache.
        _ = fields_of_row(row).reading
    return batch, seen.note(batch)


def _judge(
    book: Book, batch: Batch, repeated: Sequence[tuple[int, int]], cause: Cause, now: datetime
) -> tuple[list[RefusedRow], tuple[int, int, int, int, int]]:
    """Apply a batch to its book; returns all its refused rows, and its counts as `import_store.go_on` takes them."""
    outcome = apply_to(book, batch.rows, cause, now)
    # Of an erased person nothing is kept but which row it was.
    erased = [RefusedRow(batch.rows[i].number, (), "contact_id", why) for i, why in outcome.refused]
    refused = sorted([*batch.refused, *erased], key=lambda one: one.number)
    imported = len(batch.rows) - len(erased)
    return refused, (len(batch), imported, outcome.unchanged, len(refused), len(repeated))
