"""Which setting an error names, and what a start waits for. tests/secure has the same with real servers."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    GroupCoordinatorNotAvailableError,
    IllegalSaslStateError,
    KafkaConnectionError,
    LeaderNotAvailableError,
    SaslAuthenticationFailed,
    UnknownTopicOrPartitionError,
    UnsupportedSaslMechanismError,
)
from httpx import ASGITransport, AsyncClient
from pydantic import SecretStr
from sendwhy.connections import CannotStart, Fault, kafka_fault, once_kafka_serves, postgres_fault, reach
from sendwhy.kafka import TopicsMissing, let_go
from sendwhy.postgres import Connection
from sendwhy.reasons import Service
from sendwhy.service import Runtime
from sendwhy.settings import ServiceSettings, SystemExit2
from sendwhy.stage import Record
from sendwhy.topics import Outgoing, Topic


def unverified(code: int) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = code, "unable to get local issuer certificate"
    return error


def tls(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, reason)
    error.reason = reason
    return error


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


async def test_a_connection_that_does_not_end_keeps_nobody_and_blames_nothing() -> None:
    """As over TLS, where the broker's last word may not come."""
    closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    await let_go(closing)
    assert closing.cancelled()
    failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    failed.set_exception(ConnectionResetError())
    await let_go(failed)


KAFKA = [
    (SaslAuthenticationFailed("secret-canary"), "KAFKA_SASL_PASSWORD", True),
    (UnsupportedSaslMechanismError(), "KAFKA_SASL_MECHANISM", True),
    (IllegalSaslStateError(), "KAFKA_SECURITY_PROTOCOL", True),
    (GroupAuthorizationFailedError(), "KAFKA_SASL_USERNAME", True),
    (unverified(20), "KAFKA_SSL_CAFILE", True),
    (unverified(18), "KAFKA_SSL_CAFILE", True),
    (unverified(10), "KAFKA_BOOTSTRAP_SERVERS", True),
    (unverified(62), "KAFKA_BOOTSTRAP_SERVERS", True),
    (unverified(64), "KAFKA_BOOTSTRAP_SERVERS", True),
    (tls("WRONG_VERSION_NUMBER"), "KAFKA_SECURITY_PROTOCOL", True),
    (caused(KafkaConnectionError("closed"), tls("TLSV13_ALERT_CERTIFICATE_REQUIRED")), "KAFKA_SSL_CERTFILE", True),
    (KafkaConnectionError("Connection at 127.0.0.1:1 closed"), "KAFKA_SECURITY_PROTOCOL", False),
    (ConnectionResetError(), "KAFKA_SECURITY_PROTOCOL", False),
    (ConnectionRefusedError("secret-canary"), "KAFKA_BOOTSTRAP_SERVERS", False),
    (OSError(-2, "Name or service not known"), "KAFKA_BOOTSTRAP_SERVERS", False),
    (TimeoutError(), "KAFKA_BOOTSTRAP_SERVERS", False),
    (GroupCoordinatorNotAvailableError(), "KAFKA_BOOTSTRAP_SERVERS", False),
    (TopicsMissing("send.requested"), "KAFKA_BOOTSTRAP_SERVERS", False),
]


@pytest.mark.parametrize(("error", "setting", "is_certain"), KAFKA)
def test_an_error_of_kafka_names_the_setting_to_change(error: Exception, setting: str, is_certain: bool) -> None:
    fault = kafka_fault(error, "SASL_SSL")
    assert (fault.setting, fault.is_certain) == (setting, is_certain)
    assert f"{fault}".startswith(f"SENDWHY_{setting}: ")
    assert "secret-canary" not in f"{fault}"
    assert "\n" not in f"{fault}"


POSTGRES = [
    (asyncpg.InvalidPasswordError("secret-canary"), "password", True),
    (asyncpg.InvalidAuthorizationSpecificationError("no pg_hba.conf entry"), "sslmode=verify-full", True),
    (asyncpg.InvalidCatalogNameError(), "no such database", True),
    (asyncpg.InsufficientPrivilegeError(), "may not enter", True),
    (unverified(20), "sslrootcert", True),
    (unverified(10), "expired", True),
    (unverified(62), "another host name", True),
    (ConnectionError('PostgreSQL server at "db:5432" rejected SSL upgrade'), "the server has none", True),
    (asyncpg.CannotConnectNowError("the database system is starting up"), "can't be reached", False),
    (asyncpg.TooManyConnectionsError(), "can't be reached", False),
    (ConnectionRefusedError(), "can't be reached", False),
]


@pytest.mark.parametrize(("error", "words", "is_certain"), POSTGRES)
def test_an_error_of_postgresql_says_what_of_its_address_is_wrong(
    error: Exception, words: str, is_certain: bool
) -> None:
    fault = postgres_fault(error)
    assert (fault.setting, fault.is_certain) == ("DATABASE_URL", is_certain)
    assert words in fault.what
    assert "secret-canary" not in f"{fault}"


def told(*answers: Fault | None) -> Callable[[], Awaitable[Fault | None]]:
    left = iter(answers)

    async def ask() -> Fault | None:
        return next(left)

    return ask


PASSING = Fault("KAFKA_BOOTSTRAP_SERVERS", "Kafka can't be used (ConnectionRefusedError)", is_certain=False)
CERTAIN = Fault("KAFKA_SASL_PASSWORD", "the broker refuses it")


async def test_what_may_pass_is_waited_for() -> None:
    await reach("Kafka", told(PASSING, PASSING, None), pause=0)


async def test_a_certain_fault_ends_the_process_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit2) as ended:
        await reach("Kafka", told(PASSING, CERTAIN), pause=0)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "sendwhy: SENDWHY_KAFKA_SASL_PASSWORD: the broker refuses it\n"


async def test_no_start_waits_for_ever(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        await reach("Kafka", told(PASSING, PASSING), seconds=0, pause=0)
    assert ended.value.code == 3
    assert capsys.readouterr().err.startswith("sendwhy: SENDWHY_KAFKA_BOOTSTRAP_SERVERS: Kafka can't be used")


TRANSIENT = [
    GroupCoordinatorNotAvailableError(),
    LeaderNotAvailableError(),
    UnknownTopicOrPartitionError(),
    TopicsMissing("send.requested"),
    TimeoutError(),
    KafkaConnectionError(),
]


@pytest.mark.parametrize("error", TRANSIENT)
async def test_a_start_waits_for_a_kafka_that_is_not_quite_there(error: Exception) -> None:
    tries: list[int] = []

    async def act() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise error

    await once_kafka_serves(act, "PLAINTEXT", pause=0)
    assert len(tries) == 3


@pytest.mark.parametrize("error", TRANSIENT)
async def test_a_kafka_that_does_not_get_there_ends_the_start(error: Exception) -> None:
    async def act() -> None:
        raise error

    with pytest.raises(CannotStart) as refused:
        await once_kafka_serves(act, "PLAINTEXT", seconds=0, pause=0)
    assert refused.value.code == 3
    assert "SENDWHY_KAFKA_" in refused.value.line


async def test_missing_rights_end_the_start_at_once() -> None:
    async def act() -> None:
        raise GroupAuthorizationFailedError

    with pytest.raises(CannotStart) as refused:
        await once_kafka_serves(act, "SASL_SSL", pause=0)
    assert "SENDWHY_KAFKA_SASL_USERNAME" in refused.value.line


async def test_a_missing_topic_is_told_with_the_command_that_makes_it() -> None:
    assert "python -m sendwhy topics" in kafka_fault(TopicsMissing("send.requested"), "PLAINTEXT").what


async def test_readiness_names_the_setting_of_what_it_misses() -> None:
    hangs_up = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    async with hangs_up:
        settings = ServiceSettings(
            kafka_bootstrap_servers=f"127.0.0.1:{hangs_up.sockets[0].getsockname()[1]}",
            database_url=SecretStr("postgresql://u:secret-canary@127.0.0.1:1/x"),
            api_tokens=SecretStr(""),
        )
        runtime = Runtime(Service.BILLING, settings)
        runtime._pool = asyncpg.create_pool(settings.database_url.get_secret_value(), min_size=0, timeout=1)
        app = runtime.make_api("billing")
        async with runtime.pool, AsyncClient(transport=ASGITransport(app), base_url="http://billing") as http:
            answer = await http.get("/readyz")
    assert answer.status_code == 503
    assert "database (SENDWHY_DATABASE_URL: PostgreSQL can't be reached" in answer.json()["detail"]
    assert "kafka (SENDWHY_KAFKA_SECURITY_PROTOCOL: is PLAINTEXT, and the broker hangs up" in answer.json()["detail"]
    assert "secret-canary" not in answer.text


@dataclass
class Alone:
    """A service that has a database and no Kafka, since when its consumer hasn't moved."""

    runtime: Runtime
    http: AsyncClient


@pytest.fixture
async def alone(fresh_database: str) -> AsyncIterator[Alone]:
    settings = ServiceSettings(
        kafka_bootstrap_servers="127.0.0.1:1", database_url=SecretStr(fresh_database), api_tokens=SecretStr("")
    )
    runtime = Runtime(Service.BILLING, settings)
    runtime.stage(Topic.SEND_CONSENTED, lambda record: record, no_outcome)
    runtime.stages[0].last_progress -= 3600
    runtime._pool = asyncpg.create_pool(fresh_database, min_size=0)
    app = runtime.make_api("billing")
    async with runtime.pool, AsyncClient(transport=ASGITransport(app), base_url="http://billing") as http:
        yield Alone(runtime, http)


async def no_outcome(_connection: Connection, _records: Sequence[Record[Any]]) -> Sequence[Outgoing]:
    return []


@pytest.mark.postgres
async def test_an_outage_of_kafka_is_no_reason_to_restart_a_process(alone: Alone) -> None:
    assert (await alone.http.get("/livez")).status_code == 503
    await alone.runtime._watch()
    assert (await alone.http.get("/livez")).status_code == 200


@pytest.mark.postgres
async def test_who_needs_only_the_database_is_ready_without_kafka(alone: Alone) -> None:
    queries = ("", "?exclude=kafka", "?exclude=database", "?exclude=both")
    answers = [await alone.http.get(f"/readyz{query}") for query in queries]
    assert [answer.status_code for answer in answers] == [503, 200, 503, 422]
    assert "kafka (SENDWHY_KAFKA_BOOTSTRAP_SERVERS" in answers[0].json()["detail"]


@pytest.mark.kafka
async def test_who_needs_only_kafka_is_ready_without_the_database(kafka_bootstrap: str) -> None:
    """The door for webhooks: what it takes lies in Kafka until the database is back."""
    settings = ServiceSettings(
        kafka_bootstrap_servers=kafka_bootstrap,
        database_url=SecretStr("postgresql://nobody@127.0.0.1:1/none"),
        api_tokens=SecretStr(""),
    )
    runtime = Runtime(Service.WEBHOOK_INGEST, settings)
    runtime._pool = asyncpg.create_pool(settings.database_url.get_secret_value(), min_size=0)
    app = runtime.make_api("door")
    await runtime.producer.start()
    try:
        async with runtime.pool, AsyncClient(transport=ASGITransport(app), base_url="http://door") as http:
            answers = [await http.get(f"/readyz{query}") for query in ("", "?exclude=kafka", "?exclude=database")]
    finally:
        await runtime.producer.stop()
    assert [answer.status_code for answer in answers] == [503, 503, 200]
