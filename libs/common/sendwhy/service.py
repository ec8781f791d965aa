"""What every service is made of while it runs: pool, producer, stages, timers, health. `make_app` of a service wires
these with its own handlers and routes; nothing opens before the app's lifespan starts.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal
from uuid import UUID

import asyncpg
import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from asyncpg.pool import PoolConnectionProxy
from fastapi import FastAPI, Query, Response

from sendwhy import logs, problems, tenancy
from sendwhy.acting import Acting
from sendwhy.connections import (
    CannotStart,
    Fault,
    ask_kafka,
    ask_postgres,
    once_kafka_serves,
    postgres_fault,
    reach,
)
from sendwhy.http import Authenticated, BodyLimit, HeadAsGet, is_ending, serve
from sendwhy.joint import Act, Joint
from sendwhy.kafka import (
    BATCH_MAX_RECORDS,
    FETCH_WAIT_MS,
    REST_SECONDS,
    Producer,
    PublishError,
    TopicsMissing,
    make_broker,
)
from sendwhy.logs import describe
from sendwhy.measured import Measured
from sendwhy.metrics import Metric, Metrics
from sendwhy.postgres import (
    SERVER_SETTINGS,
    TRANSIENT_ERRORS,
    connect_pool,
    load_reached,
    mark_published,
    migrate,
    prune,
    unpublished,
)
from sendwhy.problems import problem_response
from sendwhy.reasons import Service
from sendwhy.recovery import Gaps, Place, Recovery, committed_in, gaps_in, last_known, places_of, reader, since_of
from sendwhy.settings import ServiceSettings, SystemExit2, load
from sendwhy.stage import Committed, Handle, HandleUnreadable, Parse, Stage, T, consumer_group
from sendwhy.topics import Outgoing, Topic

# Of every service; some have others beside them.
COMMANDS = ("migrate", "serve", "rewind")
SWEEP_SECONDS = 2.0
SWEEP_LIMIT = 500
# Younger rows are about to be published by whoever wrote them.
SWEEP_OLDER_THAN_SECONDS = 3.0
COMMITTED_WITHIN_SECONDS = 0.1
WATCH_SECONDS = 10.0
PRUNE_SECONDS = 600.0
EXIT_GRACE_SECONDS = 20.0
READY_ASK_SECONDS = 2.0
# Kafka notices a killed replica after its session's 10 s.
REPLICAS_GONE_SECONDS, REPLICAS_GONE_PAUSE_SECONDS = 60.0, 2.0
EXIT_SOFTWARE_FAILURE = 70
EXIT_TERMINATED = 143
# Some 20 MB of garbage at most before it is looked for; nearly all goes by reference counting anyway.
GC_YOUNG_OBJECTS = 50_000
PASSING_ERRORS: tuple[type[BaseException], ...] = (*TRANSIENT_ERRORS, PublishError, KafkaError)
DATABASE_ERRORS: tuple[type[BaseException], ...] = (*TRANSIENT_ERRORS, asyncpg.PostgresError)

log = structlog.get_logger("sendwhy")


class StillRunning(Exception):
    """A replica of the service reads its topics."""


class DatabaseIsOlder(Exception):
    """The consumer group has committed offsets that this database has never reached: it is a restored backup."""


class Runtime:
    """One service's connections and tasks. Register stages and timers before the app starts, then `make_api`.

    `session`: what its sessions ask of PostgreSQL beyond, or otherwise than, `SERVER_SETTINGS`."""

    def __init__(
        self, service: Service, settings: ServiceSettings, *, session: Mapping[str, str] | None = None
    ) -> None:
        self.service = service
        self.settings = settings
        self._session = {**SERVER_SETTINGS, **(session or {})}
        self.metrics = Metrics(service)
        self.producer = Producer(settings, self.metrics)
        self.group = f"sendwhy-{service}"
        self.stages: list[Stage[Any]] = []
        self._timers: list[tuple[str, float, Callable[[], Awaitable[None]]]] = []
        self._tasks: list[tuple[str, Callable[[], Awaitable[None]]]] = []
        self._before_rewind: list[Callable[[Recovery], Awaitable[None]]] = []
        self._closers: list[Callable[[], Awaitable[None]]] = []
        self._pool: asyncpg.Pool | None = None
        self._reader: str | None = None
        self._broker = make_broker(settings)
        self._wake_sweep = asyncio.Event()
        self._is_outbox_written = False
        self._to_publish: dict[UUID, Outgoing] = {}
        self._published: set[UUID] = set()
        self.database_is_older = False
        self.refusal: CannotStart | None = None
        self._app: FastAPI | None = None

    @property
    def pool(self) -> asyncpg.Pool:
        assert self._pool is not None, "the service has not started"
        return self._pool

    def within(
        self, workspace: str | None, *, wait_seconds: float = 10, snapshot: bool = False
    ) -> contextlib.AbstractAsyncContextManager[PoolConnectionProxy]:
        """A transaction in which only this workspace's rows exist (tenancy.within); None: all rows, as for stages."""
        return tenancy.within(self.pool, self._reader, workspace, wait_seconds=wait_seconds, snapshot=snapshot)

    def stage(
        self,
        topic: Topic,
        parse: Parse[T],
        handle: Handle[T] | Joint,
        *,
        on_unreadable: HandleUnreadable | None = None,
        on_committed: Committed[T] | None = None,
        rest_seconds: float = REST_SECONDS,
        fetch_wait_ms: int = FETCH_WAIT_MS,
    ) -> None:
        """Consume `topic` in this service's group for it; see stage.py for what handlers get and give, kafka.py for
        what the times mean."""
        stage = Stage(
            topic,
            parse,
            handle,
            service=self.service,
            pool=lambda: self.pool,
            producer=self.producer,
            metrics=self.metrics,
            on_unreadable=on_unreadable,
            on_committed=on_committed,
            rest_seconds=rest_seconds,
            fetch_wait_ms=fetch_wait_ms,
        )
        stage.subscribe(self._broker)
        self.stages.append(stage)

    def joint(self, handle: Act, *, max_records: int = BATCH_MAX_RECORDS) -> Joint:
        """A handler for several stages, which writes in one transaction what all of them have read (joint.py)."""
        joint = Joint(handle, group=self.group, pool=lambda: self.pool, max_records=max_records)
        self.at_end(joint.close)
        return joint

    def every(self, seconds: float, name: str, act: Callable[[], Awaitable[None]]) -> None:
        """Call `act` every so many seconds, first at start; a passing failure is logged and tried again."""
        self._timers.append((name, seconds, act))

    def background(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run a task for the service's whole life; if it ends or fails, the process ends."""
        self._tasks.append((name, run))

    def before_rewind(self, act: Callable[[Recovery], Awaitable[None]]) -> None:
        """Do something with the database before a restored backup reads again what came after it. Done anew after an
        interruption, so twice must be as once."""
        self._before_rewind.append(act)

    def at_end(self, close: Callable[[], Awaitable[None]]) -> None:
        """Close something of the service's own after all its tasks have ended."""
        self._closers.append(close)

    def publish_soon(self) -> None:
        """Tell the sweep that a transaction with outbox rows was committed, or (by a stage's handler) soon will be."""
        self._read_outbox()
        # A sweep that comes before the commit finds nothing and would leave the rows to the slow one.
        asyncio.get_running_loop().call_later(COMMITTED_WITHIN_SECONDS, self._read_outbox)

    def _read_outbox(self) -> None:
        self._is_outbox_written = True
        self._wake_sweep.set()

    def publish_committed(self, events: Iterable[tuple[UUID, Outgoing]]) -> None:
        """Give the sweep what a transaction has put into the outbox and committed, so that it need not read it there.
        What this process can't publish any more is read by the next sweep."""
        self._to_publish.update(events)
        self._wake_sweep.set()

    def make_api(self, title: str, *, body_limits: Mapping[str, int] | None = None) -> problems.Api:
        """The FastAPI app with health and metrics; its lifespan opens and closes everything."""
        app = problems.Api(title=title, version="0.1.0", lifespan=self._lifespan, docs_url=None, redoc_url=None)
        app.state.tokens = self.settings.tokens
        app.state.acting = Acting(self.settings.acting_key)
        app.state.runtime = self
        problems.install(app)
        app.add_middleware(BodyLimit, limits=body_limits or {})
        app.add_middleware(Authenticated)
        app.add_middleware(Measured, metrics=self.metrics)
        app.add_middleware(HeadAsGet)
        app.add_api_route("/livez", self._livez, include_in_schema=False)
        app.add_api_route("/readyz", self._readyz, include_in_schema=False)
        app.add_api_route("/metrics", self._metrics_text, include_in_schema=False)
        self._app = app
        return app

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """With its database open and nothing else: enough to answer what needs no Kafka."""
        url = self.settings.database_url.get_secret_value()
        self._pool = await connect_pool(url, service=self.service, server_settings=self._session)
        try:
            async with self._pool.acquire(timeout=30) as connection:
                self._reader = await tenancy.reader_of(connection)
            yield
        finally:
            await _close_pool(self._pool)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self.connected())
            stack.push_async_callback(self._forget_published_at_end)
            for close in self._closers:
                stack.push_async_callback(close)
            stack.push_async_callback(self.producer.stop)
            await self._once_kafka_serves(self.producer.start)
            await self._once_kafka_serves(self._find_topics)
            await self._once_kafka_serves(self._refuse_older_database)
            stack.push_async_callback(self._broker.stop)
            await self._start_consumers()
            tasks = [asyncio.create_task(self._guard(name, run), name=name) for name, run in self._all_tasks()]
            stack.push_async_callback(_cancel, tasks)
            log.info("service is running", stages=[stage.name for stage in self.stages])
            yield

    async def _start_consumers(self) -> None:
        """All at once: beside another replica each waits until that one's heartbeat tells it of the new member (3 s).
        `broker.start` takes one after the other, which made a minute of message-log's start."""
        await self._broker.connect()
        async with asyncio.TaskGroup() as starting:
            for subscriber in self._broker.subscribers:
                starting.create_task(subscriber.start())

    async def _once_kafka_serves(self, act: Callable[[], Awaitable[None]]) -> None:
        try:
            await once_kafka_serves(act, self.settings.kafka_security_protocol)
        except CannotStart as refusal:
            self.refusal = refusal
            raise

    async def _find_topics(self) -> None:
        unled = await self.producer.unled({stage.topic for stage in self.stages})
        if unled:
            raise TopicsMissing(", ".join(sorted(unled)))

    def _all_tasks(self) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
        def repeated(name: str, seconds: float, act: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
            return lambda: self._repeat(name, seconds, act)

        timers = [(name, repeated(name, seconds, act)) for name, seconds, act in self._timers]
        return [
            *self._tasks,
            *timers,
            ("sweep", self._sweep),
            ("watch", repeated("watch", WATCH_SECONDS, self._watch)),
            ("prune", repeated("prune", PRUNE_SECONDS, self._prune)),
        ]

    async def _guard(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        try:
            await run()
            log.error("a task ended although it never should", task=name)
        except Exception as error:
            log.error("a task failed, the process ends", task=name, exc_info=error)
        self.fail()

    def fail(self) -> None:
        """End this process with exit code 70, hard if an orderly end takes too long."""
        timer = threading.Timer(EXIT_GRACE_SECONDS, os._exit, (EXIT_SOFTWARE_FAILURE,))
        timer.daemon = True
        timer.start()
        if self._app is not None:
            self._app.state.failed = True
            end = getattr(self._app.state, "end", None)
            if end is not None:
                end()

    async def _repeat(self, name: str, seconds: float, act: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await act()
            except PASSING_ERRORS as error:
                log.warning("a timer failed, it is tried again", timer=name, error=describe(error))
            await asyncio.sleep(seconds)

    async def _sweep(self) -> None:
        read_again_at, left = 0.0, 0
        while True:
            self._wake_sweep.clear()
            try:
                await self._publish_committed()
                # However often others wake it, what nobody tells of is looked for.
                is_due = time.monotonic() >= read_again_at or left >= SWEEP_LIMIT
                left = 0
                if is_due or self._is_outbox_written:
                    read_again_at = time.monotonic() + SWEEP_SECONDS
                    left = await self._publish_unpublished()
            except PASSING_ERRORS as error:
                log.warning("the sweep failed, it is tried again", error=describe(error))
                await asyncio.sleep(1)
            if left < SWEEP_LIMIT:
                # Not wait_for: until Python 3.12 it can swallow a cancellation that comes with the event.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(SWEEP_SECONDS):
                        await self._wake_sweep.wait()

    async def _publish_committed(self) -> None:
        events, self._to_publish = self._to_publish, {}
        if events:
            await self.producer.publish(list(events.values()))
            self._published |= events.keys()
        if len(self._published) >= SWEEP_LIMIT:
            await self._forget_published()

    async def _publish_unpublished(self) -> int:
        older_than_seconds = 0 if self._is_outbox_written else SWEEP_OLDER_THAN_SECONDS
        self._is_outbox_written = False
        # Else they would be read again; other replicas read only what is older than they may become.
        await self._forget_published()
        async with self.pool.acquire(timeout=30) as connection:
            rows = await unpublished(connection, older_than_seconds=older_than_seconds, limit=SWEEP_LIMIT)
        self.metrics.set(Metric.UNPUBLISHED, len(rows))
        if rows:
            for event_id in rows:
                self._to_publish.pop(event_id, None)
            await self.producer.publish(list(rows.values()))
            if len(rows) < SWEEP_LIMIT:
                # What was written just now and is out at once has waited for nobody.
                self.metrics.set(Metric.UNPUBLISHED, 0)
            self._published |= rows.keys()
            await self._forget_published()
        return len(rows)

    async def _forget_published(self) -> None:
        """Delete what Kafka has from the outbox: of what was published from memory, many rows at once."""
        published, self._published = self._published, set()
        if published:
            async with self.pool.acquire(timeout=30) as connection:
                await mark_published(connection, published)

    async def _forget_published_at_end(self) -> None:
        with contextlib.suppress(*DATABASE_ERRORS):
            await self._forget_published()

    async def _prune(self) -> None:
        async with self.pool.acquire(timeout=30) as connection:
            await prune(connection)

    async def _watch(self) -> None:
        if not await self.producer.answers():
            # While Kafka is away everything stands still, and a new process would help nobody.
            for stage in self.stages:
                stage.excuse()
            log.error("Kafka can't be used", fault=str(await self._why_kafka_is_silent()))
            return
        # At once: each waits until Kafka has answered what its consumer asks already, which may take seconds.
        await asyncio.gather(*map(_watch_stage, self.stages))
        still = [stage.name for stage in self.stages if stage.stands_still]
        if still and await self.producer.answers():
            log.error("a consumer stands still while records wait, the process ends", stages=still)
            self.fail()

    async def _livez(self) -> Response:
        still = [stage.name for stage in self.stages if stage.stands_still]
        if still:
            return problem_response(503, f"Consumers stand still: {', '.join(still)}")
        return Response('{"status":"ok"}', media_type="application/json")

    async def _readyz(self, exclude: Annotated[Literal["database", "kafka"] | None, Query()] = None) -> Response:
        """`exclude`: what may be away, for a balancer before requests that the other alone can answer."""
        if self._app is not None and is_ending(self._app):
            return problem_response(503, "Not ready: it is ending")
        probes = {"database": self._ping_database, "kafka": self._ping_kafka}
        asked = {name: probe for name, probe in probes.items() if name != exclude}
        missing = [f"{name} ({fault})" for name, probe in asked.items() if (fault := await probe()) is not None]
        if missing:
            return problem_response(503, f"Not ready: {', '.join(missing)}")
        return Response('{"status":"ok"}', media_type="application/json")

    async def _ping_database(self) -> Fault | None:
        try:
            async with self.pool.acquire(timeout=3) as connection:
                await connection.fetchval("select true", timeout=3)
        except DATABASE_ERRORS as error:
            return postgres_fault(error)
        return None

    async def _ping_kafka(self) -> Fault | None:
        return None if await self.producer.answers() else await self._why_kafka_is_silent()

    async def _why_kafka_is_silent(self) -> Fault:
        """The producer's own error says only that it got no answer."""
        slow = Fault("KAFKA_BOOTSTRAP_SERVERS", "Kafka answers slowly or not at all")
        try:
            return await asyncio.wait_for(ask_kafka(self.settings), READY_ASK_SECONDS) or slow
        except TimeoutError:
            return slow

    async def _metrics_text(self) -> Response:
        size, idle, most = self.pool.get_size(), self.pool.get_idle_size(), self.pool.get_max_size()
        for state, count in (("busy", size - idle), ("idle", idle), ("unopened", most - size)):
            self.metrics.set(Metric.DATABASE_CONNECTIONS, count, state=state)
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _refuse_older_database(self) -> None:
        behind = await self.positions_ahead_of_database()
        if behind:
            self.database_is_older = True
            raise DatabaseIsOlder(", ".join(f"{topic}/{partition}" for topic, partition in behind))

    async def positions_ahead_of_database(self) -> Gaps:
        """Partitions whose committed offset lies beyond what this database has reached."""
        reached = await self._reached()
        asking = (self._ahead_in(stage.topic, reached) for stage in self.stages)
        ahead: Gaps = {}
        # All of them have ended before one's error is told: the start asks again after it.
        for found in await asyncio.gather(*asking, return_exceptions=True):
            if isinstance(found, BaseException):
                raise found
            ahead |= found
        # Other replicas go on meanwhile; what they committed stood in the database before, so it stands there now.
        now = await self._reached() if ahead else {}
        return {place: gap for place, gap in ahead.items() if now.get(place, 0) < gap.committed}

    async def _reached(self) -> dict[Place, int]:
        async with self.pool.acquire(timeout=30) as connection:
            return await load_reached(connection, self.group)

    async def _ahead_in(self, topic: Topic, reached: Mapping[Place, int]) -> Gaps:
        async with self._consumer_of(topic) as consumer:
            committed = await committed_in(consumer, await places_of(consumer, topic))
        return await gaps_in(self.settings, committed, reached)

    async def _places_of(self, topic: Topic) -> list[TopicPartition]:
        async with reader(self.settings) as consumer:
            return await places_of(consumer, topic)

    def _consumer_of(self, topic: Topic) -> contextlib.AbstractAsyncContextManager[AIOKafkaConsumer]:
        """A consumer in the group that reads `topic`; it joins nothing."""
        return reader(self.settings, consumer_group(self.service, topic))

    async def rewind(self) -> Gaps:
        """Set the group's offsets back to what this database has reached: the remedy after a restored backup.

        Before that, `before_rewind`'s acts take from the topics what this service did after the backup: what is read
        again then must not be done again. Raises StillRunning, and has changed nothing, while a replica reads.
        """
        self._pool = await connect_pool(self.settings.database_url.get_secret_value(), service=self.service)
        try:
            committed = await self._once_nobody_reads()
            gaps = await self.positions_ahead_of_database()
            if self._before_rewind:
                recovery = Recovery(self.settings, self.service, gaps, committed, await self._since())
                for act in self._before_rewind:
                    await act(recovery)
            # The acts may have handled some of it already.
            reached = await self._reached()
            for stage in self.stages:
                await self._set_back(stage.topic, gaps, reached)
        finally:
            await _close_pool(self._pool)
        return gaps

    async def _once_nobody_reads(self) -> dict[Place, int]:
        """The groups' offsets. Kafka takes them from a stranger only if no replica is in the group."""
        until = time.monotonic() + REPLICAS_GONE_SECONDS
        while True:
            try:
                found = await asyncio.gather(*(self._committed(stage.topic) for stage in self.stages))
            except KafkaError as error:
                if time.monotonic() >= until:
                    raise StillRunning(describe(error)) from error
                log.warning("a replica still reads; waiting until Kafka has noticed that it ended")
                await asyncio.sleep(REPLICAS_GONE_PAUSE_SECONDS)
            else:
                return {place: offset for each in found for place, offset in each.items()}

    async def _committed(self, topic: Topic) -> dict[Place, int]:
        partitions = await self._places_of(topic)
        async with self._consumer_of(topic) as consumer:
            committed = await committed_in(consumer, partitions)
            consumer.assign(partitions)
            if committed:
                places = {TopicPartition(*place): offset for place, offset in committed.items()}
                await asyncio.wait_for(consumer.commit(places), 30)
        return committed

    async def _since(self) -> datetime | None:
        reached = await self._reached()

        async def of(topic: Topic) -> datetime | None:
            async with reader(self.settings) as consumer:
                return await last_known(consumer, topic, reached)

        return since_of(await asyncio.gather(*(of(stage.topic) for stage in self.stages)))

    async def read_from_the_beginning(self) -> None:
        """Set the offsets to the first records that Kafka still has. Raises KafkaError while a replica reads."""
        for stage in self.stages:
            places = await self._places_of(stage.topic)
            async with self._consumer_of(stage.topic) as consumer:
                consumer.assign(places)
                await asyncio.wait_for(consumer.commit(await consumer.beginning_offsets(places)), 30)

    async def _set_back(self, topic: Topic, gaps: Gaps, reached: Mapping[Place, int]) -> None:
        places = {
            TopicPartition(*place): reached.get(place, gap.reached) for place, gap in gaps.items() if place[0] == topic
        }
        if places:
            async with self._consumer_of(topic) as consumer:
                consumer.assign(list(places))
                await consumer.commit(places)


async def _watch_stage(stage: Stage[Any]) -> None:
    try:
        await stage.watch()
    except PASSING_ERRORS as error:
        log.warning("a consumer's position is not known", stage=stage.name, error=describe(error))


async def _close_pool(pool: asyncpg.Pool) -> None:
    try:
        await asyncio.wait_for(pool.close(), 10)
    except TimeoutError:
        pool.terminate()


async def _cancel(tasks: list["asyncio.Task[None]"]) -> None:
    """Cancel until they have ended: a cancellation can be swallowed by what a task just awaits."""
    pending = {task for task in tasks if not task.done()}
    for _ in range(int(EXIT_GRACE_SECONDS)):
        for task in pending:
            task.cancel()
        if not pending:
            return
        _, pending = await asyncio.wait(pending, timeout=1)
    log.error("tasks don't end", tasks=[task.get_name() for task in pending])


# What a service's command does with its app and the words behind it; returns the exit code.
Command = Callable[[FastAPI, Sequence[str]], Coroutine[Any, Any, int]]


def main(
    service: Service,
    settings_kind: type[Any],
    make_app: Callable[[Any], FastAPI],
    migrations: Path,
    *,
    commands: Mapping[str, Command] = MappingProxyType({}),
) -> None:
    """A service's command line: `migrate`, `serve`, `rewind` (after a restored backup), or one of its own."""
    command = sys.argv[1] if len(sys.argv) == 2 or (sys.argv[1:2] and sys.argv[1] in commands) else ""
    settings = load(settings_kind)
    logs.set_up(service, settings.replica)
    if command == "migrate":
        asyncio.run(_reach(settings, kafka=False))
        try:
            applied = asyncio.run(migrate(settings.database_url.get_secret_value(), migrations))
        except RuntimeError as error:
            raise SystemExit2(str(error)) from None
        log.info("migrations are applied", new=applied)
    elif command == "serve":
        app = make_app(settings)
        spare_the_collector()
        asyncio.run(_reach(settings))
        code = _serve(service, app, settings)
        sys.exit(code)
    elif command == "rewind":
        asyncio.run(_reach(settings))
        sys.exit(asyncio.run(_rewind(make_app(settings))))
    elif command in commands:
        asyncio.run(_reach(settings))
        sys.exit(asyncio.run(commands[command](make_app(settings), sys.argv[2:])))
    else:
        words = " | ".join((*COMMANDS, *commands))
        raise SystemExit2(f"usage: python -m {service.replace('-', '_')} {words}")


async def _reach(settings: ServiceSettings, *, kafka: bool = True) -> None:
    """Before anything of ours runs: end with one line that names the wrong setting, or wait for a starting server."""
    # As a container's first process nothing would end us while we wait.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, _end_at_once)
    try:
        url = settings.database_url.get_secret_value()
        await reach("PostgreSQL", lambda: ask_postgres(url))
        if kafka:
            await reach("Kafka", lambda: ask_kafka(settings))
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)


def _end_at_once() -> None:
    os._exit(EXIT_TERMINATED)


def _serve(service: Service, app: FastAPI, settings: ServiceSettings) -> int:
    runtime: Runtime = app.state.runtime
    # uvicorn's own words on a start that we refuse: a traceback, where one line of ours says what to do.
    logging.getLogger("uvicorn.error").addFilter(lambda _record: runtime.refusal is None)
    try:
        return serve(app, host=settings.http_host, port=settings.http_port, drain_seconds=settings.drain_seconds)
    except SystemExit:
        # uvicorn's own end when a start fails; it has logged the error.
        if runtime.refusal is not None:
            log.error("the service can't start", why=runtime.refusal.line)
            return runtime.refusal.code
        if not runtime.database_is_older:
            raise
        log.error(
            "the database is older than the group's offsets, as after a restored backup: nothing was started",
            remedy=f"run `python -m {service.replace('-', '_')} rewind`, then start again",
        )
        return 2


def spare_the_collector() -> None:
    """A batch's objects all live until its commit: with Python's own thresholds the collector would walk them, and all
    modules, dozens of times a batch, and find nothing. What is loaded by now stays for the process' life."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_YOUNG_OBJECTS, 10, 10)


async def _rewind(app: FastAPI) -> int:
    runtime: Runtime = app.state.runtime
    try:
        gaps = await runtime.rewind()
    except StillRunning as error:
        log.error(
            "nothing was set back: a replica still reads, or Kafka refuses",
            error=str(error),
            remedy="stop all replicas of this service, and repeat",
        )
        return 1
    records = sum(gap.committed - gap.reached for gap in gaps.values())
    log.info(
        "offsets are set back to what the database has reached; start the service",
        partitions=len(gaps),
        records_at_most=records,
    )
    return 0
