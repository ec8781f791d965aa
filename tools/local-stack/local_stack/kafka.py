"""Apache Kafka (KRaft, one node) from its jars, on 127.0.0.1."""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

from local_stack.errors import StackError
from local_stack.janitor import Janitor
from local_stack.kafka_files import KafkaFiles
from local_stack.process import Command
from local_stack.server import Server

MESSAGE_BYTES_MAX = 8 * 2**20
PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{broker}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
message.max.bytes={bytes_max}
replica.fetch.max.bytes={bytes_max}

# One broker: one copy of everything, few partitions of Kafka's own.
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=2
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=2

# No waiting for company: a lone commit or group member is served at once.
group.coordinator.append.linger.ms=0
group.initial.rebalance.delay.ms=0

# A killed broker may come back only when its predecessor counts as dead (9 s by default). Much shorter, and a
# machine that is busy with other things would count a living one as dead.
broker.session.timeout.ms=5000
broker.heartbeat.interval.ms=1000

# Two cores, half a gigabyte of heap (the cleaner's buffer alone is 128 MB by default).
num.network.threads=2
num.io.threads=4
log.cleaner.dedupe.buffer.size=16777216
log.index.size.max.bytes=2097152
"""
JAVA_OPTIONS = [
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:+ExitOnOutOfMemoryError",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
    # Java's own remarks on an ahead-of-time cache that doesn't fit; it then does without.
    "-Xlog:aot*=off",
]
# The environment's wishes beside these, as for a stack that lives for minutes (README, "In tests").
JAVA_OPTIONS_ASKED = "SENDWHY_LOCAL_JAVA_OPTIONS"


class Kafka(Server):
    """One broker with its data in `state_dir/kafka`. Ready when a metadata request is answered."""

    def __init__(
        self,
        state_dir: Path,
        janitor: Janitor | None = None,
        files: KafkaFiles | None = None,
        java_options: Sequence[str] = (),
    ) -> None:
        super().__init__(state_dir, janitor)
        self._files = files or KafkaFiles()
        self._java_options = java_options
        self._home = self.state.path / "kafka"
        self._port = 0

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self._port}"

    async def prepare(self) -> None:
        await asyncio.to_thread(self._files.ensure_jars)
        self._home.mkdir(exist_ok=True, mode=0o700)
        if not (self._home / "data" / "meta.properties").exists():
            await asyncio.to_thread(self._format)

    def command(self) -> Command:
        asked = os.environ.get(JAVA_OPTIONS_ASKED, "").split()
        argv = [*self._java(*JAVA_OPTIONS, *asked, *self._java_options), "kafka.Kafka", str(self._configure())]
        return Command("kafka", argv, env=_environment())

    async def answers(self) -> bool:
        return await _accepts(self._port) and await _tells_metadata(self.bootstrap)

    def _configure(self) -> Path:
        path = self._home / "server.properties"
        path.write_text(self.properties())
        return path

    def properties(self) -> str:
        """Made anew for each start, since the ports may have changed."""
        ports = self.state.ports("kafka", "kafka_controller")
        self._port = ports["kafka"]
        return PROPERTIES.format(
            broker=self._port,
            controller=ports["kafka_controller"],
            data=self._home / "data",
            bytes_max=MESSAGE_BYTES_MAX,
        )

    def _format(self) -> None:
        # A format that was killed half way has not written meta.properties, and is done again.
        tool = ["kafka.tools.StorageTool", "format", "--ignore-formatted", f"--cluster-id={_cluster_id()}"]
        tool += [*self.format_options(), "-c", str(self._configure())]
        done = subprocess.run(
            [*self._java("-Xmx128m", "-XX:+UseSerialGC", "-Xlog:aot*=off"), *tool],
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode != 0:
            raise StackError(f"Kafka's storage can't be formatted: {(done.stderr or done.stdout).strip()}")

    def format_options(self) -> list[str]:
        """What else the storage is made with, as users that must be there from the first start on."""
        return []

    def _java(self, *options: str) -> list[str]:
        aot = self._files.aot_cache
        cached = [f"-XX:AOTCache={aot}"] if aot.exists() else []
        return [str(self._files.java), *options, *cached, "-cp", self._files.classpath]


def _cluster_id() -> str:
    """22 characters of URL-safe base64. A first "-" would be taken for an option: once in 64 starts."""
    return "A" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]


async def fetch(files: KafkaFiles) -> None:
    """Fills the cache: the jars, and what Java learns about them in a run under load (40 s in all, once)."""
    await asyncio.to_thread(files.ensure_jars)
    if files.aot_cache.exists():
        return
    with files.exclusive(), tempfile.TemporaryDirectory(dir=files.cache, prefix="learning-") as folder:
        learnt = Path(folder) / "kafka.aot"
        if not files.aot_cache.exists():
            await _learn(Kafka(Path(folder), files=files, java_options=[f"-XX:AOTCacheOutput={learnt}"]))
            learnt.replace(files.aot_cache)


async def _learn(kafka: Kafka) -> None:
    async with kafka:
        await _exercise(kafka.bootstrap)
        # Java writes the file while it ends, which takes longer than an ordinary stop.
        await kafka.process.stop(120)


async def _exercise(bootstrap: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic("exercise", num_partitions=6, replication_factor=1)])
    finally:
        await admin.close()
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all") as producer:
        for _ in range(20):
            await asyncio.gather(*[await producer.send("exercise", b"x" * 500) for _ in range(500)])


async def _accepts(port: int) -> bool:
    """Asked first: aiokafka would log an error each time that nothing listens yet."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


async def _tells_metadata(bootstrap: str) -> bool:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=2_000)
    try:
        await admin.start()
        await admin.describe_cluster()
    except (KafkaError, TimeoutError):
        return False
    finally:
        await admin.close()
    return True


def _environment() -> dict[str, str]:
    # JAVA_TOOL_OPTIONS and the like are meant for somebody else's Java.
    return {"LC_ALL": "C.UTF-8", "TZ": "UTC"}
