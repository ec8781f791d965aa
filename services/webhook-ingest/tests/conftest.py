"""One webhook-ingest as a process of its own on real Kafka and PostgreSQL, for the whole session.

Its consumer group's offsets live in Kafka, so a second one with an empty database would rightly refuse to start: the
tests keep apart by numbers and workspaces instead.
"""

import asyncio
import os
import shutil
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

# pytest's importlib mode puts no folder on the path, and the helpers are shared by several test files.
sys.path.insert(0, str(Path(__file__).parent))

from ingest_service import Ingest
from sendwhy.kafka import create_topics
from sendwhy.settings import KafkaSettings
from webhook_ingest.app import MIGRATIONS


@pytest.fixture
def migrations() -> Path:
    return MIGRATIONS


@pytest.fixture(scope="session")
def ingest(kafka_bootstrap: str, postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ingest]:
    asyncio.run(create_topics(KafkaSettings(kafka_bootstrap_servers=kafka_bootstrap)))
    name = f"webhook_ingest_{uuid.uuid4().hex}"
    asyncio.run(_create_database(postgres_url, name))
    database_url = urlsplit(postgres_url)._replace(path=f"/{name}").geturl()
    service = Ingest(kafka_bootstrap, database_url, tmp_path_factory.mktemp("webhook-ingest") / "out.log")
    service.start(os.environ)
    try:
        yield service
    finally:
        service.stop()


async def _create_database(url: str, name: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(f"create database {name}")
    await connection.close()


@pytest.fixture
def own_kafka() -> Iterator[Any]:
    """A broker that a test may stop: `run(kafka.stop())`, `kafka.process.signal(…)`."""
    folder = Path(tempfile.mkdtemp(prefix="sendwhy-test-"))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(120)

    kafka = import_module("local_stack.kafka").Kafka(folder)
    run(kafka.start())
    yield kafka, run
    run(kafka.stop())
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    shutil.rmtree(folder)
