"""Who has a copy of the database, or may write to it, has no token, no password and no session by that."""

import base64

import asyncpg
import pytest
from cryptography.fernet import Fernet
from dispatcher import store as senders
from dispatcher.store import NewSender
from dispatcher.tokens import TokenUnreadable, TokenVault, token_tag
from houses import OTHER, OWN, as_superuser, open_house, token_of
from message_log import accounts
from message_log.login import COOKIE, SECURE_COOKIE
from pydantic import SecretStr
from sendwhy.access import Role
from sendwhy.postgres import Connection
from sendwhy.reasons import Service
from test_authorisation import sealed_long_ago

pytestmark = pytest.mark.postgres

SAME_SITE = {"sec-fetch-site": "same-origin"}
TOKENS = {OWN: "EAAcanaryOfAcmeWhichIsAsLongAsATokenIs", OTHER: "EAAcanaryOfGlobexWhichIsAsLongAsATokenIs"}
SENDERS = {OWN: "100000000000001", OTHER: "100000000000002"}


async def dump(superuser: str, database_url: str) -> str:
    """Every row of every table, as text."""
    connection = await asyncpg.connect(as_superuser(superuser, database_url))
    try:
        tables = await connection.fetch("select tablename as name from pg_tables where schemaname = 'public'")
        parts = [
            await connection.fetchval(f"""select coalesce(string_agg(t::text, E'\\n'), '') from "{row["name"]}" t""")
            for row in tables
        ]
        return "\n".join(parts)
    finally:
        await connection.close()


def traces(secret: str) -> list[str]:
    """A secret as a dump would show it: as it is, as bytes, and packed."""
    return [secret, secret.encode().hex(), base64.b64encode(secret.encode()).decode().rstrip("=")[:-1]]


async def put(connection: Connection, vault: TokenVault, workspace: str) -> None:
    sender, token = SENDERS[workspace], TOKENS[workspace]
    new = NewSender(sender, workspace, "300", "400", None, True, vault.seal(workspace, sender, token), token_tag(token))
    assert await senders.put_sender(connection, new, await connection.fetchval("select now()"))


async def test_a_copy_of_the_database_holds_no_token_of_metas(postgres_url: str) -> None:
    vault = TokenVault(SecretStr(Fernet.generate_key().decode()))
    async with open_house(postgres_url, Service.DISPATCHER) as house:
        async with house.runtime.pool.acquire() as connection, connection.transaction():
            await put(connection, vault, OWN)
        dumped = await dump(postgres_url, house.database_url)
    assert SENDERS[OWN] in dumped
    assert not [trace for trace in traces(TOKENS[OWN]) if trace in dumped]


async def test_a_token_that_was_moved_to_another_row_is_refused(postgres_url: str) -> None:
    """Who may write to the database can't have another workspace's number speak with their own token, or vice versa."""
    vault = TokenVault(SecretStr(Fernet.generate_key().decode()))
    async with (
        open_house(postgres_url, Service.DISPATCHER) as house,
        house.runtime.pool.acquire() as connection,
        connection.transaction(),
    ):
        for workspace in TOKENS:
            await put(connection, vault, workspace)
        before = await senders.senders(connection, SENDERS.values())
        await connection.execute("update sender s set token = o.token from sender o where o.sender_id <> s.sender_id")
        after = await senders.senders(connection, SENDERS.values())
    for workspace, sender in SENDERS.items():
        assert vault.open(workspace, sender, before[sender].token) == TOKENS[workspace]
        with pytest.raises(TokenUnreadable):
            vault.open(workspace, sender, after[sender].token)


async def test_a_copy_of_the_database_lets_nobody_in(postgres_url: str) -> None:
    """Neither a password nor a session's id nor an API token stands in it."""
    password, token = "a password of some length", token_of(Role.ADMIN, OWN)
    async with open_house(postgres_url, Service.MESSAGE_LOG) as house:
        async with house.runtime.pool.acquire() as connection:
            await accounts.save(connection, "ines", password, {OWN: Role.VIEWER}, "test")
        secrets = [password, token]
        for form in ({"name": "ines", "password": password}, {"token": token}):
            answer = await house.client.post("/login", data=form, headers=SAME_SITE)
            assert answer.status_code == 303
            secrets.append(answer.cookies[COOKIE])
            house.client.cookies.clear()
        dumped = await dump(postgres_url, house.database_url)
    assert "ines" in dumped
    assert not [trace for secret in secrets for trace in traces(secret) if trace in dumped]


async def test_a_session_is_new_at_each_login_and_ends_on_the_server(postgres_url: str) -> None:
    home = f"/w/{OWN}/messages"
    async with open_house(postgres_url, Service.MESSAGE_LOG, public_url="https://log.example") as house:

        async def log_in(**cookies: str) -> str:
            house.client.cookies.clear()
            headers = SAME_SITE | {"cookie": "; ".join(f"{name}={value}" for name, value in cookies.items())}
            answer = await house.client.post("/login", data={"token": token_of(Role.VIEWER, OWN)}, headers=headers)
            told = answer.headers["set-cookie"]
            assert told.startswith(f"{SECURE_COOKIE}=")
            assert {"HttpOnly", "Secure", "SameSite=lax", "Path=/"} <= {part.strip() for part in told.split(";")}
            assert "Domain" not in told
            house.client.cookies.clear()
            return told.partition("=")[2].partition(";")[0]

        async def is_in(session: str, cookie: str = SECURE_COOKIE) -> bool:
            answer = await house.client.get(home, headers={"cookie": f"{cookie}={session}"})
            return answer.status_code == 200

        planted = "planted-by-somebody-else-before-the-login"
        first, second = await log_in(**{SECURE_COOKIE: planted}), await log_in()
        assert len({planted, first, second}) == 3
        assert min(len(first), len(second)) >= 43, "256 bits"
        assert [await is_in(one) for one in (planted, first, second)] == [False, True, True]
        assert not await is_in(first, COOKIE), "a neighbouring site can plant this name"
        await house.client.post("/logout", headers=SAME_SITE | {"cookie": f"{SECURE_COOKIE}={first}"})
        assert [await is_in(one) for one in (first, second)] == [False, True]
        async with house.runtime.pool.acquire() as connection:
            await connection.execute("update session set expires_at = now()")
        assert not await is_in(second)


async def test_an_acting_token_acts_for_a_minute(postgres_url: str) -> None:
    async with open_house(postgres_url, Service.BILLING) as house:
        headers = {"authorization": f"Bearer {sealed_long_ago()}"}
        assert (await house.client.get(f"/v1/workspaces/{OWN}/account", headers=headers)).status_code == 401
