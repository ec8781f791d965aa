"""All services over TLS: Kafka by SASL_SSL with a user for each and no more rights than docs/kafka-acls.md gives,
PostgreSQL by verify-full only. One start for all tests."""

import asyncio
import contextlib
import json
import os
import shutil
import ssl
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import GroupAuthorizationFailedError, TopicAuthorizationFailedError
from authority import Authority
from local_stack.services import SERVICES, module_of
from sendwhy.connections import Fault, ask_kafka, ask_postgres
from sendwhy.http import Loop
from sendwhy.kafka import connection_options
from sendwhy.settings import KafkaSettings
from sendwhy.topics import TOPICS, Topic
from servers import HOST, SecureStack, say

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]
PATIENCE_SECONDS = 120
WORKSPACE = "/v1/workspaces/demo"
Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("Sendwhy's tests")


@pytest.fixture(scope="module")
def stack(authority: Authority) -> Iterator[SecureStack]:
    # On a loop of its own thread, which lives as long as the processes: see Process.
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    # Not pytest's own folder: PostgreSQL's user must get in.
    folder = Path(tempfile.mkdtemp(prefix="sendwhy-secure-"))
    folder.chmod(0o711)
    running = SecureStack(folder / "state", authority)
    try:
        run(running.start())
        yield running
    finally:
        run(running.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        shutil.rmtree(folder)


def kafka_settings(stack: SecureStack, user: str, **changes: str | None) -> KafkaSettings:
    told = {name.lower(): value for name, value in stack.kafka.settings_of(user).items()} | changes
    return KafkaSettings.model_validate({name: value for name, value in told.items() if value is not None})


async def _closed_beside_a_silent_server(served: Path, trusted: Path) -> None:
    """Raises TimeoutError where the client waits for what the server, which reads no more, never says."""
    server_side, client_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    server_side.load_cert_chain(served)
    client_side.load_verify_locations(trusted)
    over = asyncio.Event()

    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        transport = cast("asyncio.Transport", writer.transport)
        transport.pause_reading()
        await over.wait()
        transport.abort()

    server = await asyncio.start_server(say_nothing, HOST, 0, ssl=server_side)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), ssl=client_side)
    closed: asyncio.Future[None] = asyncio.ensure_future(writer.wait_closed())
    writer.close()
    try:
        # Less than the half minute of uvloop's own.
        async with asyncio.timeout(15):
            await asyncio.wait([closed])
    finally:
        over.set()
        server.close()
        await asyncio.wait([closed])
        closed.exception()


def test_who_closes_a_connection_does_not_wait_for_a_last_word_that_does_not_come(
    authority: Authority, tmp_path: Path
) -> None:
    served, trusted = tmp_path / "served.pem", tmp_path / "trusted.pem"
    served.write_text("".join(authority.issue(HOST)))
    trusted.write_text(authority.pem)
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(_closed_beside_a_silent_server(served, trusted))


async def until(condition: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await condition():
            await asyncio.sleep(0.1)


async def test_a_message_goes_its_whole_way(stack: SecureStack) -> None:
    assert stack.said == [f"0 {len(TOPICS)} topics created\n"]
    told = json.loads((stack.logs.parent / "stack.json").read_text())
    consent, message_log = told["services"]["consent"], told["services"]["message-log"]
    headers = {"authorization": f"Bearer {told['admin_token']}"}
    async with httpx.AsyncClient(headers=headers, timeout=30, trust_env=False) as http:
        contact = {"phone": "+525512345678", "marketing_state": "SUBSCRIBED", "source": "import"}
        (await http.put(f"{consent}{WORKSPACE}/contacts/ines", json=contact)).raise_for_status()
        template = {"name": "hello_world", "language": {"code": "en_US"}}
        request = {
            "message_id": "secure-1",
            "workspace_id": "demo",
            "to": {"contact_id": "ines"},
            "origin": {"kind": "api"},
            "content": {"type": "template", "template": template},
            "requested_at": datetime.now(UTC).isoformat(),
        }
        async with AIOKafkaProducer(**connection_options(kafka_settings(stack, "upstream"))) as producer:
            await producer.send_and_wait(Topic.SEND_REQUESTED, json.dumps(request).encode(), key=b"ines")

        async def is_read() -> bool:
            answer = await http.get(f"{message_log}{WORKSPACE}/messages/secure-1")
            return answer.is_success and answer.json()["status"] == "read"

        await until(is_read)
    assert not await letters(stack)


async def letters(stack: SecureStack) -> list[Any]:
    async with AIOKafkaConsumer(
        Topic.DEAD_LETTERS, bootstrap_servers=stack.kafka.bootstrap, auto_offset_reset="earliest"
    ) as consumer:
        found = await consumer.getmany(timeout_ms=500)
    return [record for records in found.values() for record in records]


async def test_every_session_at_the_database_came_by_tls(stack: SecureStack) -> None:
    connection = await asyncpg.connect(stack.postgres.url)
    try:
        sessions = await connection.fetch(
            "select usename, application_name, client_port from pg_stat_activity where usename <> current_user"
        )
    finally:
        await connection.close()
    assert {session["usename"] for session in sessions} == set(map(module_of, SERVICES))
    assert "sendwhy-dispatcher-locks" in {session["application_name"] for session in sessions}
    assert {session["client_port"] for session in sessions} <= stack.postgres.front.client_ports


WRITES = [("billing", Topic.SEND_REQUESTED), ("upstream", Topic.SEND_FUNDED), ("consent", Topic.STATUS_UPDATED)]


@pytest.mark.parametrize(("user", "topic"), WRITES)
async def test_a_user_writes_only_what_is_its_own_to_tell(stack: SecureStack, user: str, topic: Topic) -> None:
    async with AIOKafkaProducer(**connection_options(kafka_settings(stack, user))) as producer:
        with pytest.raises(TopicAuthorizationFailedError):
            await producer.send_and_wait(topic, b"{}")


async def test_a_user_reads_only_what_it_needs_and_in_its_own_groups(stack: SecureStack) -> None:
    options = connection_options(kafka_settings(stack, "billing"))
    consumer = AIOKafkaConsumer(Topic.WEBHOOK_RECEIVED, **options)
    try:
        with pytest.raises(TopicAuthorizationFailedError):
            await consumer.start()
    finally:
        await consumer.stop()
    async with AIOKafkaConsumer(**options, group_id="sendwhy-consent.send.requested") as consumer:
        with pytest.raises(GroupAuthorizationFailedError):
            await consumer.committed(TopicPartition(Topic.SEND_REQUESTED, 0))


async def test_a_client_certificate_is_shown_where_the_broker_asks_for_one(
    stack: SecureStack, authority: Authority, tmp_path: Path
) -> None:
    certificate, key = authority.issue("consent", password="locked")
    (tmp_path / "own.pem").write_text(certificate)
    (tmp_path / "own.key").write_text(key)
    plain: dict[str, Any] = {
        "kafka_bootstrap_servers": stack.kafka.mutual,
        "kafka_security_protocol": "SSL",
        "kafka_ssl_cafile": stack.kafka.trusted,
    }
    own = {
        "kafka_ssl_certfile": tmp_path / "own.pem",
        "kafka_ssl_keyfile": tmp_path / "own.key",
        "kafka_ssl_key_password": "locked",
    }
    assert await ask_kafka(KafkaSettings.model_validate(plain | own)) is None
    fault = await ask_kafka(KafkaSettings.model_validate(plain))
    assert fault is not None
    assert fault.setting == "KAFKA_SSL_CERTFILE"


async def faults(stack: SecureStack, stranger: Path) -> dict[str, tuple[str, Fault | None]]:
    """What is wrong, the setting that should be named for it, and the fault that was found."""
    port = urlsplit(f"//{stack.kafka.secure}").port
    no_user = {"kafka_sasl_mechanism": None, "kafka_sasl_username": None, "kafka_sasl_password": None}
    wrong: list[tuple[str, str, dict[str, str | None]]] = [
        ("password", "KAFKA_SASL_PASSWORD", {"kafka_sasl_password": "secret-canary"}),
        ("user", "KAFKA_SASL_PASSWORD", {"kafka_sasl_username": "nobody"}),
        ("password, PLAIN", "KAFKA_SASL_PASSWORD", {"kafka_sasl_mechanism": "PLAIN"}),
        ("mechanism", "KAFKA_SASL_MECHANISM", {"kafka_sasl_mechanism": "SCRAM-SHA-256"}),
        ("authority", "KAFKA_SSL_CAFILE", {"kafka_ssl_cafile": str(stranger)}),
        ("host name", "KAFKA_BOOTSTRAP_SERVERS", {"kafka_bootstrap_servers": f"localhost:{port}"}),
        ("TLS to an open port", "KAFKA_SECURITY_PROTOCOL", {"kafka_bootstrap_servers": stack.kafka.bootstrap}),
        ("no user", "KAFKA_SECURITY_PROTOCOL", {"kafka_security_protocol": "SSL", **no_user}),
        (
            "no TLS",
            "KAFKA_SECURITY_PROTOCOL",
            {"kafka_security_protocol": "PLAINTEXT", "kafka_ssl_cafile": None, **no_user},
        ),
        ("nobody there", "KAFKA_BOOTSTRAP_SERVERS", {"kafka_bootstrap_servers": f"{HOST}:1"}),
    ]
    return {
        what: (setting, await ask_kafka(kafka_settings(stack, "consent", **changes)))
        for what, setting, changes in wrong
    }


async def test_a_wrong_setting_for_kafka_is_named(stack: SecureStack, tmp_path: Path) -> None:
    (tmp_path / "stranger.pem").write_text(Authority("somebody else").pem)
    found = await faults(stack, tmp_path / "stranger.pem")
    assert {what: fault.setting if fault else None for what, (_, fault) in found.items()} == {
        what: setting for what, (setting, _) in found.items()
    }
    # What a broker that starts may cause as well is waited for; the rest ends the process.
    passing = {what for what, (_, fault) in found.items() if fault and not fault.is_certain}
    assert passing == {"TLS to an open port", "no user", "no TLS", "nobody there"}
    assert await ask_kafka(kafka_settings(stack, "consent")) is None
    # One wrong server beside a right one is Kafka's own affair.
    two = kafka_settings(stack, "consent", kafka_bootstrap_servers=f"{HOST}:1,{stack.kafka.secure}")
    assert await ask_kafka(two) is None


@contextlib.asynccontextmanager
async def listening(certificate: str, key: str, folder: Path) -> AsyncIterator[str]:
    """Anything that speaks TLS with this certificate."""
    (folder / "served.pem").write_text(certificate + key)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "served.pem")
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), HOST, 0, ssl=context)
    async with server:
        yield f"{HOST}:{server.sockets[0].getsockname()[1]}"


async def test_an_expired_certificate_is_told_apart(stack: SecureStack, authority: Authority, tmp_path: Path) -> None:
    async with listening(*authority.issue(HOST, days=-1), tmp_path) as address:
        fault = await ask_kafka(kafka_settings(stack, "consent", kafka_bootstrap_servers=address))
    assert fault == Fault("KAFKA_BOOTSTRAP_SERVERS", "the server's certificate has expired")


async def test_a_wrong_address_of_the_database_is_told_by_its_cause(stack: SecureStack, tmp_path: Path) -> None:
    (tmp_path / "stranger.pem").write_text(Authority("somebody else").pem)
    (tmp_path / "junk.pem").write_text("junk")
    url = stack.database_of("billing")
    right = urlsplit(url)
    trusted = right.query.partition("sslrootcert=")[2]
    wrong = {
        "password": right._replace(netloc=f"billing:secret-canary@{HOST}:{right.port}"),
        "role": right._replace(netloc=f"nobody:x@{HOST}:{right.port}"),
        "another service's database": right._replace(path="/consent"),
        "no such database": right._replace(path="/nothing"),
        "host name": right._replace(netloc=right.netloc.replace(HOST, "localhost")),
        "authority": right._replace(query=f"sslmode=verify-full&sslrootcert={tmp_path}/stranger.pem"),
        "no authority": right._replace(query=f"sslmode=verify-full&sslrootcert={tmp_path}/none.pem"),
        "junk": right._replace(query=f"sslmode=verify-full&sslrootcert={tmp_path}/junk.pem"),
        "no TLS": right._replace(query="sslmode=disable"),
        "not a mode": right._replace(query=f"sslmode=perhaps&sslrootcert={trusted}"),
    }
    found = {what: await ask_postgres(each.geturl()) for what, each in wrong.items()}
    assert all(fault is not None and fault.is_certain and fault.setting == "DATABASE_URL" for fault in found.values())
    said = {what: fault.what if fault else "" for what, fault in found.items()}
    assert "password" in said["password"]
    assert said["role"] == said["password"]
    assert "may not enter" in said["another service's database"]
    assert "no such database" in said["no such database"]
    assert "another host name" in said["host name"]
    assert "sslrootcert" in said["authority"]
    assert "sslrootcert" in said["no authority"]
    assert "sslrootcert" in said["junk"]
    assert "sslmode=verify-full" in said["no TLS"]
    assert "sslmode" in said["not a mode"]
    assert await ask_postgres(url) is None


async def test_the_command_sends_to_a_kafka_by_its_settings(stack: SecureStack, tmp_path: Path) -> None:
    (tmp_path / "requests.jsonl").write_text(json.dumps({"message_id": "junk", "to": {"contact_id": "ines"}}))
    arguments = ("send", str(tmp_path / "requests.jsonl"), "--kafka-settings")
    upstream = stack.kafka.settings_of("upstream")
    code, said = await sendwhy(upstream, *arguments)
    assert code == 0, said
    code, said = await sendwhy(upstream | {"KAFKA_SASL_PASSWORD": "secret-canary"}, *arguments)
    assert code == 5, said
    assert "SENDWHY_KAFKA_SASL_PASSWORD: the broker refuses it" in said
    assert "secret-canary" not in said


async def sendwhy(settings: dict[str, str], *arguments: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).parent / "sendwhy"), *arguments),
        env=os.environ | {f"SENDWHY_{key}": value for key, value in settings.items()},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, words = await process.communicate()
    return process.returncode, words.decode()


LINES = [
    ("billing", "serve", "KAFKA_SASL_PASSWORD", "2 sendwhy: SENDWHY_KAFKA_SASL_PASSWORD: the broker refuses it"),
    ("billing", "migrate", "DATABASE_URL", "2 sendwhy: SENDWHY_DATABASE_URL: the server refuses the role or its"),
    ("sendwhy", "topics", "KAFKA_SASL_PASSWORD", "2 sendwhy: SENDWHY_KAFKA_SASL_PASSWORD: the broker refuses it"),
]


@pytest.mark.parametrize(("module", "command", "setting", "line"), LINES)
async def test_a_wrong_password_ends_the_process_with_one_line(
    stack: SecureStack, module: str, command: str, setting: str, line: str
) -> None:
    right = stack.environment_of("billing")
    password = urlsplit(stack.database_of("billing")).password or ""
    wrong = {
        "KAFKA_SASL_PASSWORD": "secret-canary",
        "DATABASE_URL": stack.database_of("billing").replace(password, "secret-canary"),
    }
    said = await say(module, command, {setting: wrong[setting]}, right)
    ours = [each for each in said.splitlines() if "sendwhy: " in each]
    assert len(ours) == 1, said
    assert line in said.replace("\n", " "), said
    assert "secret-canary" not in said
