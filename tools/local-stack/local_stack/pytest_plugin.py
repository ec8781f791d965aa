"""Real Kafka, PostgreSQL and Chromium for tests: started at the first request, once a session, and ended with it.

SENDWHY_TEST_KAFKA (`host:port`) and SENDWHY_TEST_POSTGRES (a superuser's URL) name running ones to use instead.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

if TYPE_CHECKING:
    from playwright.async_api import Browser

    from local_stack.server import Server

# Heavy imports stand inside the fixtures: pytest loads this module in every run.

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]


@pytest.fixture(scope="session")
def _run() -> Iterator[Run[Any]]:
    """Runs coroutines on a loop of its own thread, which stays as long as the servers (see Process)."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield lambda coroutine: asyncio.run_coroutine_threadsafe(coroutine, loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="session")
def _server_dir() -> Iterator[Path]:
    # Not pytest's own folder: another run of pytest as root would shut PostgreSQL's user out of it.
    folder = Path(tempfile.mkdtemp(prefix="sendwhy-test-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def kafka_bootstrap(_run: Run[Any], _server_dir: Path) -> Iterator[str]:
    """`host:port` of a broker without topics; tests of one session share it."""
    if running := os.environ.get("SENDWHY_TEST_KAFKA"):
        yield running
        return
    from local_stack.kafka import Kafka

    kafka = Kafka(_server_dir)
    yield from _served(_run, kafka, lambda: kafka.bootstrap)


@pytest.fixture(scope="session")
def postgres_url(_run: Run[Any], _server_dir: Path) -> Iterator[str]:
    """The superuser's URL of a server that tests of one session share. It is never killed, so it doesn't wait for the
    disk."""
    if running := os.environ.get("SENDWHY_TEST_POSTGRES"):
        yield running
        return
    from local_stack.postgres import Postgres
    from local_stack.process import Command

    class Forgetful(Postgres):
        def command(self) -> Command:
            command = super().command()
            return replace(command, argv=[*command.argv, "-c", "fsync=off", "-c", "full_page_writes=off"])

    postgres = Forgetful(_server_dir)
    yield from _served(_run, postgres, lambda: postgres.url)


@pytest.fixture
def fresh_database(postgres_url: str, _run: Run[Any]) -> Iterator[str]:
    """The URL of an empty database of one test's own, dropped after it."""
    yield from _database(postgres_url, _run, "template1")


@pytest.fixture(scope="session")
def _migrated(postgres_url: str, _run: Run[Any]) -> Iterator[Callable[[Path], str]]:
    """The name of a database with all that a folder's migrations make; made once."""
    from sendwhy.postgres import migrate

    names: dict[Path, str] = {}

    def name_of(folder: Path) -> str:
        if folder not in names:
            name = f"migrated_{uuid.uuid4().hex}"
            _run(_execute(postgres_url, f"create database {name}"))
            _run(migrate(_url_of(postgres_url, name), folder))
            names[folder] = name
        return names[folder]

    yield name_of
    for name in names.values():
        _run(_execute(postgres_url, f"drop database {name} with (force)"))


@pytest.fixture
def migrated_database(
    postgres_url: str, _run: Run[Any], _migrated: Callable[[Path], str], migrations: Path
) -> Iterator[str]:
    """As `fresh_database`, with all that the migrations make whose folder the fixture `migrations` names: a copy, which
    takes a fraction of the time that applying them does."""
    yield from _database(postgres_url, _run, _migrated(migrations))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chromium() -> AsyncIterator[Browser]:
    """One Chromium for all; each test opens contexts of its own. Tests that use it run in the session's loop."""
    executable = shutil.which("chromium")
    if executable is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is missing: apt-get install chromium")
        pytest.skip("chromium is missing: apt-get install chromium")
    from playwright.async_api import async_playwright, expect

    # As long as Playwright waits for everything else: 5 s is little on a machine with others on it.
    expect.set_options(timeout=30_000)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        await browser.close()


def _database(postgres_url: str, run: Run[Any], template: str) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    run(_execute(postgres_url, f"create database {name} template {template}"))
    yield _url_of(postgres_url, name)
    run(_execute(postgres_url, f"drop database {name} with (force)"))


def _url_of(postgres_url: str, name: str) -> str:
    return urlsplit(postgres_url)._replace(path=f"/{name}").geturl()


def _served(run: Run[Any], server: Server, address: Callable[[], str]) -> Iterator[str]:
    run(server.start())
    yield address()
    run(server.stop())


async def _execute(url: str, statement: str) -> None:
    import asyncpg

    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
