"""Real Kafka and PostgreSQL: they keep their data, find ports, and let each service see only its own."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import UnknownTopicOrPartitionError
from local_stack.errors import StackError
from local_stack.kafka import JAVA_OPTIONS_ASKED, Kafka
from local_stack.postgres import Postgres


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def create_topic(bootstrap: str, name: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(name, num_partitions=1, replication_factor=1)])
    await admin.close()


async def publish(bootstrap: str, topic: str, value: bytes) -> None:
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, max_request_size=8 * 2**20) as producer:
        await producer.send_and_wait(topic, value)


async def first_value(bootstrap: str, topic: str) -> bytes | None:
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap) as consumer:
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        value: bytes | None = (await consumer.getone()).value
        return value


@pytest.mark.kafka
async def test_kafka_keeps_its_data_over_a_restart_on_another_port(state_dir: Path) -> None:
    large = b"x" * 7_000_000
    async with Kafka(state_dir) as kafka:
        first_port = kafka.bootstrap
        await create_topic(kafka.bootstrap, "kept")
        await publish(kafka.bootstrap, "kept", large)
    with socket.create_server(("127.0.0.1", int(first_port.split(":")[1]))):
        async with Kafka(state_dir) as kafka:
            assert kafka.bootstrap != first_port
            assert await first_value(kafka.bootstrap, "kept") == large


@pytest.mark.kafka
async def test_kafka_takes_javas_options_from_the_environment(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JAVA_OPTIONS_ASKED, "-XX:TieredStopAtLevel=1  -Dtold.by=us")
    async with Kafka(state_dir) as kafka:
        told = Path(f"/proc/{kafka.process.pid}/cmdline").read_bytes().split(b"\0")  # noqa: ASYNC240 - a test
    assert {b"-XX:TieredStopAtLevel=1", b"-Dtold.by=us"} < set(told)


@pytest.mark.kafka
async def test_kafka_creates_no_topic_by_accident(kafka_bootstrap: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    await admin.start()
    try:
        [answer] = await admin.describe_topics(["misspelt"])
        assert answer["error_code"] == UnknownTopicOrPartitionError.errno
        assert "misspelt" not in await admin.list_topics()
    finally:
        await admin.close()


@pytest.mark.postgres
async def test_postgres_keeps_its_data_and_its_port_over_a_restart(state_dir: Path) -> None:
    async with Postgres(state_dir) as postgres:
        url = await postgres.ensure_database("billing")
        async with connected(url) as connection:
            await connection.execute("create table kept as select 42 as answer")
    async with Postgres(state_dir) as postgres:
        assert await postgres.ensure_database("billing") == url
        async with connected(url) as connection:
            assert await connection.fetchval("select answer from kept") == 42


SETTINGS = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "max_connections": "200",
    "server_encoding": "UTF8",
    "listen_addresses": "127.0.0.1",
    "password_encryption": "scram-sha-256",
}


@pytest.mark.postgres
async def test_postgres_survives_a_kill_of_its_first_process(state_dir: Path) -> None:
    """And has the settings that the guarantees lean on."""
    async with Postgres(state_dir) as postgres:
        async with connected(postgres.url) as connection:
            asked = [f"current_setting('{name}') as {name}" for name in SETTINGS]
            row = await connection.fetchrow(f"select {', '.join(asked)}")
            assert row is not None
            assert dict(row) == SETTINGS
            await connection.execute("create table kept as select 42 as answer")
        await postgres.process.kill()
        await postgres.start()
        async with connected(postgres.url) as connection:
            assert await connection.fetchval("select answer from kept") == 42


@pytest.mark.postgres
async def test_a_role_connects_to_its_own_database_only(state_dir: Path) -> None:
    names = ["consent", "billing"]
    async with Postgres(state_dir) as postgres:
        urls = {name: await postgres.ensure_database(name) for name in names}
        for name, url in urls.items():
            async with connected(url) as connection:
                assert await connection.fetchval("select current_user || ' ' || current_database()") == f"{name} {name}"
                assert not await connection.fetchval("select rolsuper from pg_roles where rolname = current_user")
            for other in {*names, "postgres", "template1"} - {name}:
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await asyncpg.connect(url.rpartition("/")[0] + f"/{other}")


@pytest.mark.postgres
@pytest.mark.parametrize("name", ["Billing", "a-b", "x; drop table y", "", "postgres'"])
async def test_a_database_name_is_a_plain_word(name: str, state_dir: Path) -> None:
    with pytest.raises(ValueError, match="not a plain database name"):
        await Postgres(state_dir).ensure_database(name)


@pytest.mark.postgres
async def test_a_wrong_password_is_refused(postgres_url: str) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(postgres_url, password="guess")


@pytest.mark.postgres
async def test_lost_secrets_are_named(state_dir: Path) -> None:
    async with Postgres(state_dir):
        pass
    (state_dir / "secrets.json").write_text(json.dumps({}))
    with pytest.raises(StackError, match=r"other passwords than secrets\.json"):
        await Postgres(state_dir).start()
