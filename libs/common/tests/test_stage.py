"""The stage loop on real Kafka and PostgreSQL: what fails, fails alone, and nothing is lost."""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, RecordsToDelete
from fastapi import FastAPI
from pydantic import SecretStr
from sendwhy.events import SendCancelled
from sendwhy.kafka import (
    Producer,
    PublishError,
    as_it_came,
    create_topics,
    in_turns,
    make_broker,
    rest_after,
    undecoded,
)
from sendwhy.metrics import Metric, Metrics
from sendwhy.partitions import partition_of
from sendwhy.postgres import PRUNE_AT_ONCE, Connection, add_to_outbox, migrate, prune
from sendwhy.reasons import Service
from sendwhy.service import DatabaseIsOlder, Runtime, _serve
from sendwhy.settings import KafkaSettings, ServiceSettings
from sendwhy.stage import Record, Unreadable, consumer_group, parse_json
from sendwhy.topics import TOPICS, Outgoing, Topic, outgoing

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]
TOPIC = Topic.SEND_CANCELLED
# One that doesn't read this topic: a real service of another test would be in the same consumer group.
SERVICE = Service.BILLING
# A stage with a transaction of its own, or one with others'.
JOINTLY = pytest.mark.parametrize("jointly", [False, True], ids=["alone", "jointly"])
SCHEMA = """
create table seen (message_id text primary key, note text check (note <> 'refused'));
create index on seen (note, (reverse(note)), (note || ''));
"""
# A third of what an entry of an index has no room for, since nothing compresses it.
_DRAWN = random.Random(1)
TOO_WIDE = "".join(chr(_DRAWN.randrange(0x20000, 0x2A6D0)) for _ in range(256))


@dataclass
class World:
    """A service with one stage on send.cancelled; a fresh workspace keeps tests of one session apart."""

    settings: ServiceSettings
    workspace: str
    seen_calls: int = 0
    fail_with: list[BaseException] = field(default_factory=list)
    publish: list[Outgoing] = field(default_factory=list)
    jointly: bool = False
    told_of: list[tuple[int, list[str | None], int]] = field(default_factory=list)
    parse: Callable[[Record[None]], SendCancelled] = field(default_factory=lambda: parse_json(SendCancelled))

    async def handle(self, connection: Connection, records: Sequence[Record[SendCancelled]]) -> Sequence[Outgoing]:
        self.seen_calls += 1
        mine = [record.event for record in records if record.event.workspace_id == self.workspace]
        if mine and self.fail_with:
            raise self.fail_with.pop()
        if any(event.note == "a bug" for event in mine):
            raise KeyError("a bug")
        await connection.execute(
            "insert into seen select * from unnest($1::text[], $2::text[]) on conflict do nothing",
            [event.message_id for event in mine],
            [event.note for event in mine],
        )
        return self.publish

    async def on_unreadable(
        self, connection: Connection, unreadable: Sequence[Unreadable], readable: Sequence[Record[SendCancelled]]
    ) -> Sequence[Outgoing]:
        mine = [one for one in unreadable if self.workspace.encode() in (one.record.value or b"")]
        if mine:
            names = [one.event.message_id for one in readable if one.event.workspace_id == self.workspace]
            self.told_of.append((len(mine), names, await connection.fetchval("select count(*) from seen")))
        return []

    def app(self) -> FastAPI:
        runtime = Runtime(SERVICE, self.settings)
        handle = runtime.joint(self.handle) if self.jointly else self.handle
        runtime.stage(TOPIC, self.parse, handle, on_unreadable=self.on_unreadable)
        return runtime.make_api("test")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Runtime]:
        app = self.app()
        async with app.router.lifespan_context(app):
            yield app.state.runtime

    async def seen(self) -> set[str]:
        connection = await asyncpg.connect(self.settings.database_url.get_secret_value())
        try:
            return {row["message_id"] for row in await connection.fetch("select message_id from seen")}
        finally:
            await connection.close()

    async def send(self, *values: bytes, headers: Sequence[tuple[str, bytes | None]] = ()) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=self.settings.kafka_bootstrap_servers)
        await producer.start()
        for value in values:
            await producer.send_and_wait(TOPIC, value, key=b"k", headers=list(headers))
        await producer.stop()

    def cancel(self, message_id: str, note: str = "x") -> bytes:
        return SendCancelled(workspace_id=self.workspace, message_id=message_id, note=note).to_json()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():
            await asyncio.sleep(0.1)


@pytest.fixture
async def world(kafka_bootstrap: str, fresh_database: str, tmp_path: Path) -> World:
    (tmp_path / "0001_test.sql").write_text(SCHEMA)
    await migrate(fresh_database, tmp_path)
    await create_topics(KafkaSettings(kafka_bootstrap_servers=kafka_bootstrap))
    settings = ServiceSettings(
        kafka_bootstrap_servers=kafka_bootstrap, database_url=SecretStr(fresh_database), api_tokens=SecretStr("")
    )
    await forget_group(settings)
    return World(settings, workspace=uuid.uuid4().hex)


async def forget_group(settings: ServiceSettings) -> None:
    """Set the group back to the topic's end: each test has a database that has reached nothing."""
    group = consumer_group(SERVICE, TOPIC)
    consumer = AIOKafkaConsumer(
        TOPIC, bootstrap_servers=settings.kafka_bootstrap_servers, group_id=group, enable_auto_commit=False
    )
    await consumer.start()
    await until(lambda: _assigned(consumer))
    await consumer.commit(dict.fromkeys(consumer.assignment(), 0))
    await consumer.stop()


async def _assigned(consumer: AIOKafkaConsumer) -> bool:
    return bool(consumer.assignment())


async def dead_letters(bootstrap: str, workspace: str) -> list[Any]:
    """What stands there now; a stage that has stopped has published all of its batch."""
    places = [TopicPartition(Topic.DEAD_LETTERS, number) for number in range(TOPICS[Topic.DEAD_LETTERS].partitions)]
    found: list[Any] = []
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest") as consumer:
        consumer.assign(places)
        ends = sum((await consumer.end_offsets(places)).values())
        while sum([await consumer.position(place) for place in places]) < ends:
            for records in (await consumer.getmany(timeout_ms=1000)).values():
                found += records
    # Of our stage: others may read the same topic in this session.
    ours = [record for record in found if dict(record.headers).get("service") == Service.BILLING.encode()]
    return [record for record in ours if workspace.encode() in record.value]


async def test_of_the_unreadable_is_told_first_whatever_becomes_of_their_neighbours(world: World) -> None:
    """Also with a neighbour that the database refuses; and they are told what else is in their batch."""
    broken = b'{"workspace_id": "%s"}' % world.workspace.encode()
    await world.send(broken, world.cancel("bad", "refused"), world.cancel("good"))

    async def handled() -> bool:
        return await world.seen() == {"good"}

    async with world.running():
        await until(handled)
    assert world.told_of == [(1, ["bad", "good"], 0)]


async def test_a_record_that_is_nested_too_deeply_for_its_parser_is_put_aside(world: World) -> None:
    def parse(record: Record[None]) -> SendCancelled:
        # As msgspec does: no ValueError.
        if b"deep" in (record.value or b""):
            raise RecursionError
        return SendCancelled.model_validate_json(record.value or b"")

    await world.send(world.cancel("a"), world.cancel("deep"), world.cancel("b"))
    world.parse = parse

    async def both() -> bool:
        return await world.seen() == {"a", "b"}

    async with world.running():
        await until(both)
    letters = await dead_letters(world.settings.kafka_bootstrap_servers, world.workspace)
    assert [letter.value for letter in letters] == [world.cancel("deep")]


@pytest.mark.parametrize(
    ("header", "trace"),
    [
        (b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", True),
        # What the columns of stored headers are told apart by.
        (b"00-1\x1e\xff", False),
        (b"00-1\x1fname", False),
        (b"0" * 129, False),
        (b"", False),
        (None, False),
    ],
)
async def test_what_can_not_be_a_traceparent_is_not_handed_on(header: Any, trace: bool) -> None:
    record = Record(None, TOPIC, 0, 0, datetime.now(UTC), None, b"", (("traceparent", header),))
    assert record.trace == (header if trace else None)


async def test_one_unreadable_record_is_put_aside_and_its_neighbours_go_on(world: World) -> None:
    bad = b'{"workspace_id": "' + world.workspace.encode() + b'", "message_id": 7}'
    await world.send(world.cancel("a"), bad, world.cancel("b"))

    async def both() -> bool:
        return await world.seen() == {"a", "b"}

    async with world.running():
        await until(both)
    letters = await dead_letters(world.settings.kafka_bootstrap_servers, world.workspace)
    assert [letter.value for letter in letters] == [bad]
    headers = dict(letters[0].headers)
    assert headers["topic"] == b"send.cancelled"
    assert b"message_id" in headers["error"]


@pytest.mark.parametrize("header", [b"\xff", None])
async def test_a_header_that_is_no_text_loses_no_batch(world: World, header: bytes | None) -> None:
    await world.send(world.cancel("a"), headers=[("traceparent", header)])
    await world.send(world.cancel("b"))

    async def both() -> bool:
        return await world.seen() == {"a", "b"}

    async with world.running():
        await until(both)


@JOINTLY
@pytest.mark.parametrize("note", ["refused", TOO_WIDE], ids=["refused", "too wide"])
async def test_a_record_that_the_database_refuses_is_found_by_halving(world: World, note: str, jointly: bool) -> None:
    world.jointly = jointly
    good = [world.cancel(f"m{number}") for number in range(30)]
    await world.send(*good[:17], world.cancel("poison", note), *good[17:])

    async def all_good() -> bool:
        return len(await world.seen()) == 30

    async with world.running():
        await until(all_good)
    letters = await dead_letters(world.settings.kafka_bootstrap_servers, world.workspace)
    assert [letter.value for letter in letters] == [world.cancel("poison", note)]


@JOINTLY
async def test_a_record_that_our_code_can_not_handle_holds_up_nobody_for_ever(world: World, jointly: bool) -> None:
    world.jointly = jointly
    good = [world.cancel(f"m{number}") for number in range(5)]
    await world.send(*good[:2], world.cancel("poison", "a bug"), *good[2:])

    async def all_good() -> bool:
        return len(await world.seen()) == 5

    async with world.running():
        await until(all_good)
    letters = await dead_letters(world.settings.kafka_bootstrap_servers, world.workspace)
    assert [letter.value for letter in letters] == [world.cancel("poison", "a bug")]


@JOINTLY
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a bug"),
        asyncio.CancelledError(),
        asyncpg.DeadlockDetectedError("x"),
        asyncpg.UniqueViolationError("two at once"),
    ],
)
async def test_a_failing_batch_is_tried_again_and_a_stray_cancel_kills_nobody(
    world: World, error: BaseException, jointly: bool
) -> None:
    world.jointly = jointly
    world.fail_with = [error, error]
    await world.send(world.cancel("a"))

    async def there() -> bool:
        return await world.seen() == {"a"}

    async with world.running():
        await until(there)
    assert not world.fail_with


async def test_a_database_older_than_the_log_is_refused_until_it_is_rewound(world: World) -> None:
    await world.send(world.cancel("a"), world.cancel("b"))

    async def both() -> bool:
        return await world.seen() == {"a", "b"}

    async with world.running():
        await until(both)
    connection = await asyncpg.connect(world.settings.database_url.get_secret_value())
    await connection.execute("delete from seen; delete from reached")
    await connection.close()
    with pytest.raises(DatabaseIsOlder):
        async with world.running():
            pass
    on_any_port = world.settings.model_copy(update={"http_port": 0})
    assert await asyncio.to_thread(_serve, SERVICE, world.app(), on_any_port) == 2
    await world.app().state.runtime.rewind()
    async with world.running():
        await until(both)


async def test_what_kafka_has_deleted_unread_is_told(world: World) -> None:
    async def is_seen(message_id: str) -> bool:
        return message_id in await world.seen()

    await world.send(world.cancel("before"))
    async with world.running() as runtime:
        await until(lambda: is_seen("before"))
        assert missed(runtime) == 0
    await world.send(*(world.cancel(f"unread-{number}") for number in range(3)), world.cancel("after"))
    place = TopicPartition(TOPIC, partition_of(b"k", range(TOPICS[TOPIC].partitions), []))
    bootstrap = world.settings.kafka_bootstrap_servers
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap) as consumer:
        last = (await consumer.end_offsets([place]))[place] - 1
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.delete_records({place: RecordsToDelete(before_offset=last)})
    await admin.close()
    world.fail_with = [KeyError("told once, however often the batch is tried")]
    async with world.running() as runtime:
        await until(lambda: is_seen("after"))
        assert missed(runtime) == 3


def missed(runtime: Runtime) -> float:
    (line,) = (
        line
        for line in runtime.metrics.text().decode().splitlines()
        if line.startswith("sendwhy_records_missed_total{")
    )
    return float(line.rpartition(" ")[2])


async def test_partitions_that_were_added_are_read_from_the_beginning_too(world: World) -> None:
    topic = Topic.WEBHOOK_REFUSED
    admin = AIOKafkaAdminClient(bootstrap_servers=world.settings.kafka_bootstrap_servers)
    await admin.start()
    (told,) = await admin.describe_topics([topic])
    added = TopicPartition(topic, len(told["partitions"]))
    await admin.create_partitions({topic: NewPartitions(added.partition + 1)})
    await admin.close()
    runtime = Runtime(SERVICE, world.settings)
    runtime.stage(topic, parse_json(SendCancelled), world.handle)
    group = consumer_group(SERVICE, topic)
    options = {"bootstrap_servers": world.settings.kafka_bootstrap_servers, "group_id": group}
    async with AIOKafkaConsumer(**options, enable_auto_commit=False) as consumer:
        consumer.assign([added])
        await consumer.commit({added: 7})
        await runtime.read_from_the_beginning()
    async with AIOKafkaConsumer(**options, enable_auto_commit=False) as consumer:
        assert await consumer.committed(added) == 0


async def test_a_stage_tells_of_each_partition_once_all_of_it_is_handled(world: World) -> None:
    async with world.running() as runtime:
        (stage,) = runtime.stages

        async def is_all_read() -> bool:
            return set(await stage.read_until()) == set(range(TOPICS[TOPIC].partitions))

        await until(is_all_read)
        for message_id in ("one", "two"):
            await world.send(world.cancel(message_id))
            await until(is_all_read)
            assert message_id in await world.seen()


async def test_what_was_committed_and_never_published_is_published_by_the_sweep(world: World) -> None:
    event = SendCancelled(workspace_id=world.workspace, message_id="from-the-outbox")
    connection = await asyncpg.connect(world.settings.database_url.get_secret_value())
    await add_to_outbox(connection, [(uuid.uuid4(), outgoing(event, source="test"))])
    await connection.close()

    async def came_back() -> bool:
        return await world.seen() == {"from-the-outbox"}

    async with world.running() as runtime:
        await until(came_back)
        async with runtime.pool.acquire() as pooled:
            assert await pooled.fetchval("select count(*) from outbox") == 0


async def test_what_has_gone_out_at_once_is_not_told_as_unpublished(world: World) -> None:
    """Else a dispatcher that tells something all the time would have something unpublished all the time."""
    event = SendCancelled(workspace_id=world.workspace, message_id="went-out")
    connection = await asyncpg.connect(world.settings.database_url.get_secret_value())
    async with world.running() as runtime:
        await add_to_outbox(connection, [(uuid.uuid4(), outgoing(event, source="test"))])
        runtime.publish_soon()
        async with asyncio.timeout(20):
            while await connection.fetchval("select exists (select from outbox)"):
                await asyncio.sleep(0)
        assert runtime.metrics.told(Metric.UNPUBLISHED) == {(): 0}
    await connection.close()


async def test_what_was_just_committed_is_published_without_being_read(world: World) -> None:
    event = SendCancelled(workspace_id=world.workspace, message_id="from-memory")
    told = (uuid.uuid4(), outgoing(event, source="test"))

    async def came_back() -> bool:
        return await world.seen() == {"from-memory"}

    async def is_known() -> bool:
        is_left = await connection.fetchval("select exists (select from outbox)")
        return told[0] in runtime._published or not is_left

    connection = await asyncpg.connect(world.settings.database_url.get_secret_value())
    async with world.running() as runtime:
        await add_to_outbox(connection, [told])
        runtime.publish_committed([told])
        await until(came_back)
        await until(is_known)
    assert await connection.fetchval("select count(*) from outbox") == 0
    await connection.close()


async def test_what_can_not_be_published_from_memory_is_read_by_a_later_sweep(world: World) -> None:
    event = SendCancelled(workspace_id=world.workspace, message_id="read-again")
    told = (uuid.uuid4(), outgoing(event, source="test"))

    async def came_back() -> bool:
        return await world.seen() == {"read-again"}

    async def taken_up() -> bool:
        return not runtime._to_publish

    async with world.running() as runtime:
        await runtime.producer.stop()
        async with runtime.pool.acquire() as connection:
            await add_to_outbox(connection, [told])
            runtime.publish_committed([told])
        await until(taken_up)
        await runtime.producer.start()
        await until(came_back)


async def test_many_records_at_once_arrive_each_where_its_key_stands(world: World) -> None:
    producer = Producer(world.settings, Metrics(SERVICE))
    await producer.start()
    keys = [f"{world.workspace}/{n % 50}".encode() for n in range(200)]
    records = [Outgoing(TOPIC, key, f"{n}".encode(), (("n", b"1"),)) for n, key in enumerate(keys)]
    # Larger than any batch is to be.
    records[100] = Outgoing(TOPIC, keys[100], b"x" * 3_000_000)
    async with AIOKafkaConsumer(bootstrap_servers=world.settings.kafka_bootstrap_servers) as consumer:
        places = [TopicPartition(TOPIC, number) for number in range(TOPICS[TOPIC].partitions)]
        consumer.assign(places)
        for place, end in (await consumer.end_offsets(places)).items():
            consumer.seek(place, end)
        await producer.publish(records)
        await producer.publish([Outgoing(TOPIC, keys[n], b"later") for n in range(5)])
        came: dict[bytes, list[tuple[int, bytes]]] = {}
        while sum(map(len, came.values())) < 205:
            for batch in (await consumer.getmany(timeout_ms=1000)).values():
                for one in batch:
                    if one.key in keys:
                        came.setdefault(one.key, []).append((one.partition, one.value))
    await producer.stop()
    for key, there in came.items():
        assert {partition for partition, _ in there} == {partition_of(key, range(len(places)), [])}
        wanted = [one.value for one in records if one.key == key] + [b"later"] * (key in keys[:5])
        assert [value for _, value in there] == wanted


HOUR_MS = 3_600_000


class Asked:
    """Stands for a consumer of the partitions a and b, and tells what was asked of it, in which order."""

    def __init__(self, *answers: dict[str, list[str]]) -> None:
        self.calls: list[str] = []
        self._answers = iter(answers)

    def assignment(self) -> set[str]:
        return {"a", "b"}

    def paused(self) -> set[str]:
        return {"a"}

    def pause(self, *places: str) -> None:
        self.calls.append(f"pause {sorted(places)}")

    def resume(self, *places: str) -> None:
        self.calls.append(f"resume {sorted(places)}")

    async def getmany(self, *, timeout_ms: int, max_records: int) -> dict[str, list[str]]:
        assert (timeout_ms, max_records) == (HOUR_MS, 3)
        self.calls.append("getmany")
        return next(self._answers)


def subscriber_in_turns(rest_seconds: float) -> Any:
    broker = make_broker(KafkaSettings(kafka_bootstrap_servers="localhost:1"))
    subscriber = broker.subscriber(TOPIC, group_id="g", batch=True, max_records=3, batch_timeout_ms=HOUR_MS)
    in_turns(subscriber, rest_seconds)
    return subscriber


async def test_an_idle_subscriber_and_one_that_is_behind_poll_again_at_once() -> None:
    subscriber = subscriber_in_turns(rest_seconds=3600)
    consumer = Asked({}, {"a": ["1", "2"], "b": ["3"]}, {"a": ["4"]})
    got = [await subscriber.get_msg(consumer) for _ in range(3)]
    assert got == [(), ("1", "2", "3"), ("4",)]
    assert consumer.calls == ["resume ['a']", "getmany", "pause ['a', 'b']"] * 3


async def test_a_batch_that_was_not_full_is_followed_by_a_rest() -> None:
    subscriber = subscriber_in_turns(rest_seconds=3600)
    consumer = Asked({"a": ["1", "2"]})
    await subscriber.get_msg(consumer)
    asked = list(consumer.calls)
    resting = asyncio.create_task(subscriber.get_msg(consumer))
    for _ in range(5):
        await asyncio.sleep(0)
    assert consumer.calls == asked
    resting.cancel()


@pytest.mark.parametrize(
    ("took", "rest", "expected"),
    [
        (0.0, 0.08, 0.08),
        (0.02, 0.08, 0.06),
        (0.04, 0.08, 0.04),
        (0.06, 0.08, 0.09),
        (0.12, 0.08, 0.36),
        (0.12, 1.0, 0.88),
        (9, 0.08, 0.5),
    ],
)
def test_a_stage_rests_more_than_in_proportion_to_what_its_batch_took_but_not_for_long(
    took: float, rest: float, expected: float
) -> None:
    assert rest_after(took, rest) == pytest.approx(expected)


async def test_no_partition_waits_until_a_question_about_the_others_ends(world: World) -> None:
    """Each question stays open for half a minute: records that had to wait for the end of one would come too late."""
    broker = make_broker(world.settings)
    subscriber = broker.subscriber(
        TOPIC, group_id=uuid.uuid4().hex, batch=True, max_records=3, parser=as_it_came, decoder=undecoded,
        auto_offset_reset="latest", fetch_max_wait_ms=30_000, consumer_timeout_ms=30_000,
    )  # fmt: skip
    in_turns(subscriber, 0.0)
    came: set[bytes] = set()

    @subscriber
    async def on_batch(batch: tuple[Any, ...]) -> None:
        came.update(record.value for record in batch)

    producer = AIOKafkaProducer(bootstrap_servers=world.settings.kafka_bootstrap_servers)
    async with producer, broker:
        await subscriber.start()
        consumer = subscriber.consumer
        assert consumer is not None
        await until(lambda: _assigned(consumer))
        for place in sorted(consumer.assignment()):
            await consumer.seek_to_end(place)
        async with asyncio.timeout(25):
            for turn in range(6):
                values = {f"{world.workspace} {turn} {n}".encode() for n in range(7)}
                for value in values:
                    await producer.send_and_wait(TOPIC, value, partition=turn % 2)
                while not values <= came:
                    await asyncio.sleep(0.02)


async def test_a_refused_record_does_not_poison_the_producer(world: World) -> None:
    producer = Producer(world.settings, Metrics(SERVICE))
    await producer.start()
    too_large = Outgoing(TOPIC, b"k", b"x" * (4 * 1024 * 1024 + 100_000))
    with pytest.raises(PublishError):
        await producer.publish([too_large])

    async def published() -> bool:
        # The producer is replaced beside its callers, who are refused meanwhile.
        with suppress(PublishError):
            await producer.publish([Outgoing(TOPIC, b"k", world.cancel("after"))])
            return True
        return False

    await until(published)
    await producer.stop()


async def test_migrations_are_applied_once_and_never_changed(fresh_database: str, tmp_path: Path) -> None:
    (tmp_path / "0001_test.sql").write_text(SCHEMA)
    both = await asyncio.gather(migrate(fresh_database, tmp_path), migrate(fresh_database, tmp_path))
    assert sorted(map(len, both)) == [0, 2]
    (tmp_path / "0001_test.sql").write_text(SCHEMA + " -- changed")
    with pytest.raises(RuntimeError, match="changed"):
        await migrate(fresh_database, tmp_path)


async def test_a_migration_that_fails_names_its_file_and_no_value(fresh_database: str, tmp_path: Path) -> None:
    (tmp_path / "0001_test.sql").write_text(SCHEMA)
    values = "insert into seen values ('+525512345678', ''), ('+525512345678', '')"
    (tmp_path / "0002_test.sql").write_text(f"alter table seen add column more text; {values}")
    with pytest.raises(RuntimeError) as failed:
        await migrate(fresh_database, tmp_path)
    assert str(failed.value) == "0002_test.sql failed, nothing of it stands: UniqueViolationError"
    (tmp_path / "0002_test.sql").write_text("alter table seen add column more text")
    assert await migrate(fresh_database, tmp_path) == ["0002_test.sql"]


async def test_a_migration_that_waits_for_a_table_holds_up_nobody_behind_it(
    fresh_database: str, tmp_path: Path
) -> None:
    (tmp_path / "0001_test.sql").write_text(SCHEMA)
    await migrate(fresh_database, tmp_path)
    (tmp_path / "0002_test.sql").write_text("alter table seen add column more text")
    backup, service = await asyncpg.connect(fresh_database), await asyncpg.connect(fresh_database)

    async def it_waits() -> bool:
        return bool(await backup.fetchval("select exists (select from pg_locks where not granted)"))

    async with backup.transaction():
        await backup.execute("lock table seen in access share mode")
        migration = asyncio.create_task(migrate(fresh_database, tmp_path))
        await until(it_waits)
        await service.execute("insert into seen values ('meanwhile', '')", timeout=30)
    assert await migration == ["0002_test.sql"]
    await backup.close()
    await service.close()


async def test_old_decisions_and_keys_are_forgotten_however_many(fresh_database: str, tmp_path: Path) -> None:
    await migrate(fresh_database, tmp_path)
    connection = await asyncpg.connect(fresh_database)
    await connection.execute(
        "insert into decision (workspace_id, message_id, step, event_id, topic, headers, prune_after)"
        " select 'acme', n::text, 'x', gen_random_uuid(), 't', '', clock_timestamp() + (n - 3) * interval '1 hour'"
        " from generate_series(1, 5) n"
    )
    await connection.execute(
        "insert into idempotency_key (workspace_id, key, digest, created_at)"
        " select 'acme', n::text, '', clock_timestamp() - case when n = 1 then interval '6 days' else '8 days' end"
        " from generate_series(1, $1) n",
        PRUNE_AT_ONCE + 2,
    )
    assert [await prune(connection), await prune(connection)] == [3 + PRUNE_AT_ONCE + 1, 0]
    await connection.close()
