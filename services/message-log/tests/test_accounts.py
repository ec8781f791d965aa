"""Local accounts on real PostgreSQL, and over the pages: who gets in, who gives access, what is noted."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import httpx
import pytest
from message_log import accounts
from message_log.login import Person
from message_log_builders import ADMIN, VIEWER, WORKSPACE
from sendwhy.access import Role, Token
from sendwhy.problems import Problem

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
PASSWORD = "correct horse battery"
SAME_SITE = {"sec-fetch-site": "same-origin"}


@pytest.fixture
async def database(migrated_database: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(migrated_database)
    await accounts.save(connection, "ana", PASSWORD, {"acme": Role.OPERATOR}, "admin")
    yield connection
    await connection.close()


def always(connection: asyncpg.Connection) -> Callable[[], AbstractAsyncContextManager[asyncpg.Connection]]:
    return lambda: nullcontext(connection)


@pytest.mark.postgres
async def test_only_the_right_password_gets_in(database: asyncpg.Connection) -> None:
    connect = always(database)
    tried = (("ana", PASSWORD, True), ("ana", "wrong", False), ("bob", PASSWORD, False), ("nul\0", PASSWORD, False))
    for name, password, gets_in in tried:
        assert await accounts.check_password(connect, name, password, NOW) is gets_in
    await accounts.take_role(database, "ana", "acme")
    assert not await accounts.check_password(connect, "ana", PASSWORD, NOW)
    assert await accounts.roles_of(database, "ana") == {}


@pytest.mark.postgres
async def test_who_guesses_has_to_wait_and_the_right_password_waits_too(database: asyncpg.Connection) -> None:
    connect = always(database)
    for _ in range(accounts.FREE_FAILURES):
        await accounts.check_password(connect, "ana", "wrong", NOW)
    wait = accounts.wait_after(accounts.FREE_FAILURES)
    assert not await accounts.check_password(connect, "ana", PASSWORD, NOW + wait - timedelta(seconds=1))
    assert await accounts.check_password(connect, "ana", PASSWORD, NOW + wait)


@pytest.mark.postgres
async def test_guesses_at_once_are_as_guesses_one_by_one(migrated_database: str, database: asyncpg.Connection) -> None:
    """Those beyond the free ones aren't looked at, however fast they come: even the right one is too soon."""
    async with asyncpg.create_pool(migrated_database, min_size=0, max_size=4) as pool:
        wrong = [accounts.check_password(pool.acquire, "ana", "wrong", NOW) for _ in range(accounts.LOGINS_MAX)]
        assert not any(await asyncio.gather(*wrong))
        assert await database.fetchval("select failures from account where name = 'ana'") == accounts.FREE_FAILURES
        assert not await accounts.check_password(pool.acquire, "ana", PASSWORD, NOW)


@pytest.mark.postgres
async def test_who_waits_to_be_looked_at_holds_no_connection(database: asyncpg.Connection) -> None:
    """So a flood of logins leaves connections to stages and pages; who comes on top of it is told so at once."""
    held, left = 0, asyncio.Semaphore(0)

    @asynccontextmanager
    async def connect() -> AsyncIterator[asyncpg.Connection]:
        nonlocal held
        held += 1
        async with one_by_one:
            yield database
        held -= 1
        left.release()

    one_by_one, may_hash = asyncio.Lock(), threading.Event()
    for _ in range(2):
        accounts.HASHERS.submit(may_hash.wait)
    try:
        flood = [
            asyncio.create_task(accounts.check_password(connect, "nobody", "guess", NOW))
            for _ in range(accounts.LOGINS_MAX)
        ]
        for _ in flood:
            await asyncio.wait_for(left.acquire(), 20)
        assert held == 0
        with pytest.raises(Problem) as refused:
            await accounts.check_password(connect, "ana", PASSWORD, NOW)
        assert refused.value.status_code == 503
    finally:
        may_hash.set()
    assert not any(await asyncio.gather(*flood))
    assert await accounts.check_password(connect, "ana", PASSWORD, NOW)


def test_waits_grow_and_end() -> None:
    waits = [accounts.wait_after(failures) for failures in range(40)]
    assert waits == sorted(waits)
    assert (waits[0], waits[accounts.FREE_FAILURES - 1], waits[-1]) == (timedelta(), timedelta(), accounts.WAIT_MAX)


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        ({"acme": Role.VIEWER}, Token("ana", Role.VIEWER, "acme")),
        ({"*": Role.VIEWER, "acme": Role.ADMIN}, Token("ana", Role.ADMIN, "acme")),
        ({"*": Role.ADMIN, "acme": Role.VIEWER}, Token("ana", Role.ADMIN, "*")),
        ({"other": Role.ADMIN}, None),
    ],
)
def test_the_better_role_counts(roles: dict[str, Role], expected: Token | None) -> None:
    assert Person("ana", roles).in_workspace("acme") == expected


def browser(message_log: Any, **form: str) -> httpx.Client:
    answer = httpx.post(f"{message_log.url}/login", data=form, headers=SAME_SITE, trust_env=False)
    assert answer.status_code == 303, answer.text
    return httpx.Client(
        base_url=message_log.url, cookies=answer.cookies, timeout=60, trust_env=False, headers=SAME_SITE
    )


def test_an_admin_gives_access_and_takes_it_away_and_both_are_noted(message_log: Any) -> None:
    people = f"/w/{WORKSPACE}/people"
    with browser(message_log, token=ADMIN) as admin:
        given = admin.post(people, data={"name": "ben", "role": "VIEWER", "password": PASSWORD})
        assert (given.status_code, "ben" in admin.get(people).text) == (303, True)
        with browser(message_log, name="ben", password=PASSWORD) as ben:
            assert ben.get(f"/w/{WORKSPACE}/messages").status_code == 200
            assert ben.get("/w/elsewhere/messages").status_code == 404
            assert ben.get(people).status_code == 403
            assert ben.post(people, data={"name": "eve", "role": "ADMIN", "password": PASSWORD}).status_code == 403
            assert admin.post(f"{people}/ben/remove").status_code == 303
            assert ben.get(f"/w/{WORKSPACE}/messages").status_code == 303
        noted = admin.get(f"/w/{WORKSPACE}/audit").text
        assert ("give access" in noted, "take access" in noted) == (True, True)
        assert admin.post(people, data={"name": "ben"}, headers={"sec-fetch-site": "cross-site"}).status_code == 403


@pytest.mark.parametrize(
    "form",
    [
        {"name": "x", "role": "VIEWER", "password": PASSWORD},
        {"name": "nul\0", "role": "VIEWER", "password": PASSWORD},
        {"name": "carl", "role": "KING", "password": PASSWORD},
        {"name": "carl", "role": "VIEWER", "password": "short"},
        {"name": "carl", "role": "VIEWER"},
        {},
    ],
)
def test_what_can_not_be_an_account_is_told(message_log: Any, form: dict[str, str]) -> None:
    with browser(message_log, token=ADMIN) as admin:
        answer = admin.post(f"/w/{WORKSPACE}/people", data=form)
        assert (answer.status_code, 'role="alert"' in answer.text) == (422, True)


def test_a_viewer_sees_no_people(message_log: Any) -> None:
    with browser(message_log, token=VIEWER) as viewer:
        assert viewer.get(f"/w/{WORKSPACE}/people").status_code == 403
        assert "/people" not in viewer.get(f"/w/{WORKSPACE}/messages").text
