"""`sendwhy up` as an operator would run it elsewhere: Kafka by SASL_SSL with a user and rights for each service,
PostgreSQL by TLS. Kafka's open listener is left to the test itself, which gives the rights."""

import asyncio
import os
import runpy
import ssl
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.admin import CreateAclsRequest
from authority import Authority
from front import Front
from local_stack.janitor import Janitor
from local_stack.kafka import Kafka
from local_stack.postgres import Postgres
from local_stack.progress import Progress
from local_stack.services import SERVICES
from local_stack.supervisor import Options, Stack

HOST = "127.0.0.1"
USERS = (*SERVICES, "upstream", "deploy")
RIGHTS = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "generate.py"))["rights"]()
KINDS = {"topic": 2, "group": 3}
PATTERNS = {"literal": 3, "prefixed": 4}
OPERATIONS = {"Read": 3, "Write": 4, "Create": 5, "Describe": 8}
ALLOW = 3
PROPERTIES = """
listeners=PLAINTEXT://{host}:{open},SECURE://{host}:{secure},MUTUAL://{host}:{mutual},CONTROLLER://{host}:{controller}
advertised.listeners=PLAINTEXT://{host}:{open},SECURE://{host}:{secure},MUTUAL://{host}:{mutual}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL,MUTUAL:SSL
ssl.keystore.type=PEM
ssl.keystore.location={keystore}
ssl.truststore.type=PEM
ssl.truststore.location={authority}
listener.name.mutual.ssl.client.auth=required
listener.name.secure.sasl.enabled.mechanisms=SCRAM-SHA-512,PLAIN
listener.name.secure.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.secure.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
user_deploy="{plain}";
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
"""


class SecureKafka(Kafka):
    """SASL_SSL at `secure`, with SCRAM-SHA-512 (for `deploy` also PLAIN); TLS with client certificates at `mutual`."""

    def __init__(self, state_dir: Path, authority: Authority, janitor: Janitor | None = None) -> None:
        super().__init__(state_dir, janitor)
        self.trusted = self.state.path / "authority.pem"
        self.trusted.write_text(authority.pem)
        self._keystore = self.state.path / "kafka.pem"
        certificate, key = authority.issue(HOST)
        self._keystore.write_text(key + certificate)

    @property
    def secure(self) -> str:
        return f"{HOST}:{self.state.read_json('ports.json')['kafka_secure']}"

    @property
    def mutual(self) -> str:
        return f"{HOST}:{self.state.read_json('ports.json')['kafka_mutual']}"

    def password(self, user: str) -> str:
        return self.state.secret(f"kafka_{user}")

    def properties(self) -> str:
        told = super().properties()
        ports = self.state.ports("kafka_secure", "kafka_mutual")
        remembered = self.state.read_json("ports.json")
        return told + PROPERTIES.format(
            host=HOST,
            open=remembered["kafka"],
            controller=remembered["kafka_controller"],
            secure=ports["kafka_secure"],
            mutual=ports["kafka_mutual"],
            keystore=self._keystore,
            authority=self.trusted,
            plain=self.password("deploy"),
        )

    def format_options(self) -> list[str]:
        users = (f"SCRAM-SHA-512=[name={user},password={self.password(user)}]" for user in USERS)
        return [part for user in users for part in ("--add-scram", user)]

    async def start(self) -> None:
        await super().start()
        client = AIOKafkaClient(bootstrap_servers=self.bootstrap)
        await client.bootstrap()
        try:
            for user, kind, name, pattern, operation in RIGHTS:
                request = CreateAclsRequest(
                    KINDS[kind], name, PATTERNS[pattern], f"User:{user}", "*", OPERATIONS[operation], ALLOW
                )
                answer = await client.send(client.get_random_node(), request)
                assert [code for code, _ in answer.creation_responses] == [0], answer
        finally:
            await client.close()

    def settings_of(self, user: str) -> dict[str, str]:
        return {
            "KAFKA_BOOTSTRAP_SERVERS": self.secure,
            "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
            "KAFKA_SASL_USERNAME": user,
            "KAFKA_SASL_PASSWORD": self.password(user),
            "KAFKA_SSL_CAFILE": str(self.trusted),
        }


class SecurePostgres(Postgres):
    """Gives its databases' addresses by TLS only; the superuser's is the open one."""

    def __init__(self, state_dir: Path, authority: Authority, janitor: Janitor | None = None) -> None:
        super().__init__(state_dir, janitor)
        served = self.state.path / "postgres.pem"
        served.write_text("".join(authority.issue(HOST)))
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(served)
        self.front = Front(context, HOST)

    async def start(self) -> None:
        await super().start()
        await self.front.start(urlsplit(self.url).port or 0)

    async def stop(self) -> None:
        await self.front.stop()
        await super().stop()

    async def ensure_database(self, name: str) -> str:
        url = urlsplit(await super().ensure_database(name))
        return url._replace(
            netloc=url.netloc.replace(f":{url.port}", f":{self.front.port}"),
            query=f"sslmode=verify-full&sslrootcert={self.state.path / 'authority.pem'}",
        ).geturl()


class SecureStack(Stack):
    def __init__(self, state_dir: Path, authority: Authority) -> None:
        super().__init__(Options(state_dir), Progress())
        self.kafka = self._kafka = SecureKafka(state_dir, authority, self._janitor)
        self.postgres = self._postgres = SecurePostgres(state_dir, authority, self._janitor)
        self.logs = self._state.logs
        self.said: list[str] = []

    async def _start_kafka(self, ready: asyncio.Event) -> None:
        await self.kafka.start()
        # The services are let go before there are topics: their start waits.
        ready.set()
        while not all(self._waits(service) for service in SERVICES):
            await asyncio.sleep(0.1)
        # As a deployment does it: by a user that may make topics and nothing else.
        settings = self.kafka.settings_of("deploy") | {"KAFKA_SASL_MECHANISM": "PLAIN"}
        self.said.append(await say("sendwhy", "topics", settings))

    def _waits(self, service: str) -> bool:
        log = self.logs / f"{service}.log"
        return log.exists() and "python -m sendwhy topics" in log.read_text()

    def _environment(self, name: str) -> dict[str, str]:
        own = {f"SENDWHY_{key}": value for key, value in self.kafka.settings_of(self._service_of(name)).items()}
        return super()._environment(name) | own

    def environment_of(self, service: str) -> dict[str, str]:
        return self._environment(service)

    def database_of(self, service: str) -> str:
        return self._databases[service]


async def say(module: str, command: str, settings: dict[str, str], environment: Any = os.environ) -> str:
    """The last words of a command of ours, with its exit code before them."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, command),
        env=environment | {f"SENDWHY_{key}": value for key, value in settings.items()},
        stderr=asyncio.subprocess.PIPE,
    )
    _, words = await process.communicate()
    return f"{process.returncode} {words.decode()}"
