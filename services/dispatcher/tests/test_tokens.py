"""Access tokens at rest, in rotation, and on their way to Meta: nowhere else do they or their proofs appear."""

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
from cryptography.fernet import Fernet
from dispatcher import store
from dispatcher.answers import NotTaken
from dispatcher.clock import utc_now
from dispatcher.meta import Meta, MetaRefused, MetaUnreachable
from dispatcher.resealing import STEP, Resealer
from dispatcher.settings import Settings
from dispatcher.store import NewSender
from dispatcher.tokens import Access, TokenUnreadable, TokenVault, token_tag
from pydantic import SecretStr, ValidationError
from sendwhy import logs
from sendwhy.metrics import Metrics
from sendwhy.postgres import connect_pool
from sendwhy.reasons import Service
from sendwhy.settings import parse_secrets

TOKEN, SECRET = "CanaryTokenThatNobodyMayEverSee0123456789", "CanarySecretOfTheApp"
PROOF = hmac.digest(SECRET.encode(), TOKEN.encode(), "sha256").hex()
SENDER = "100000000000001"


def vault(*keys: bytes, apps: str = "") -> TokenVault:
    return TokenVault(SecretStr(",".join(key.decode() for key in keys)), parse_secrets(apps, "app_id"))


def test_a_token_opens_for_its_own_sender_only() -> None:
    one = vault(Fernet.generate_key())
    sealed = one.seal("acme", "100", "EAAtoken")
    assert b"EAAtoken" not in sealed
    assert one.open("acme", "100", sealed) == "EAAtoken"
    for workspace, sender in (("acme", "101"), ("evil", "100")):
        with pytest.raises(TokenUnreadable):
            one.open(workspace, sender, sealed)


def test_a_rotated_key_still_opens_what_the_former_sealed() -> None:
    old, new = Fernet.generate_key(), Fernet.generate_key()
    sealed = vault(old).seal("acme", "100", "EAAtoken")
    both = vault(new, old)
    assert both.open("acme", "100", sealed) == "EAAtoken"
    assert not both.is_newest(sealed)
    assert both.is_newest(both.seal("acme", "100", "EAAtoken"))
    with pytest.raises(TokenUnreadable):
        vault(new).open("acme", "100", sealed)


def test_senders_that_share_a_token_are_known_by_a_tag_that_tells_nothing() -> None:
    assert token_tag(TOKEN) == token_tag(TOKEN)
    assert token_tag(TOKEN) != token_tag(TOKEN + "x")
    assert TOKEN[:6] not in token_tag(TOKEN)


def test_the_proof_is_made_with_the_newest_secret_of_the_senders_own_app() -> None:
    one = vault(Fernet.generate_key(), apps=f"17:{SECRET},17:an-older-secret,18:of-another-app")
    assert one.access(TOKEN, "17").proof == PROOF
    assert one.access(TOKEN, "18").proof not in (None, PROOF)
    assert one.access(TOKEN, "19").proof is None
    assert one.access(TOKEN, None).proof is None


@pytest.mark.parametrize("secrets", ["", f"17:{SECRET}", f"17:{SECRET}, 17:older-one"])
def test_app_secrets_are_optional(secrets: str) -> None:
    assert set(settings("http://meta", meta_app_secrets=SecretStr(secrets)).app_secrets) == (
        {"17"} if secrets else set()
    )


def test_app_secrets_that_cannot_be_read_are_named_and_not_shown() -> None:
    with pytest.raises(ValidationError) as refused:
        settings("http://meta", meta_app_secrets=SecretStr(SECRET))
    assert SECRET not in str(refused.value)


# --- rotation on PostgreSQL ---


class Rotation:
    """What the resealer needs of the runtime."""

    service = Service.DISPATCHER

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.pool = pool
        self.metrics = Metrics(Service.DISPATCHER)

    async def run(self, *keys: bytes) -> dict[str, float]:
        await Resealer(self, vault(*keys)).run()  # type: ignore[arg-type]
        lines = self.metrics.text().decode().splitlines()
        named = [line.split() for line in lines if line.startswith("sendwhy_tokens_to_seal_anew{")]
        return {name.split('"')[1]: float(value) for name, value in named}


@pytest.fixture
async def rotation(migrated_database: str) -> AsyncIterator[Rotation]:
    pool = await connect_pool(migrated_database, service="dispatcher-test")
    yield Rotation(pool)
    await pool.close()


@pytest.mark.postgres
async def test_after_a_rotation_the_older_key_can_go(rotation: Rotation, capfd: pytest.CaptureFixture[str]) -> None:
    logs.set_up("dispatcher")
    old, new, lost = (Fernet.generate_key() for _ in range(3))
    count = STEP + 7
    async with rotation.pool.acquire() as connection:
        for number in range(count):
            sender_id, sealing = f"1{number:014}", lost if number == 3 else old
            sealed = vault(sealing).seal("acme", sender_id, TOKEN)
            # As rows are that were there before tags were.
            await store.put_sender(
                connection, NewSender(sender_id, "acme", "300", "200", None, False, sealed), utc_now()
            )
    assert await rotation.run(new, old) == {"older_key": 0, "unreadable": 1}
    assert await rotation.run(new) == {"older_key": 0, "unreadable": 1}
    async with rotation.pool.acquire() as connection:
        await connection.execute("delete from sender where token_tag is null")
        rows = await store.sealed_tokens(connection, "", count)
    assert len(rows) == count - 1
    assert {vault(new).open("acme", row.sender_id, row.token) for row in rows} == {TOKEN}
    assert {row.tag for row in rows} == {token_tag(TOKEN)}
    told = capfd.readouterr().err
    assert '"anew": 106' in told
    assert TOKEN not in told


@pytest.mark.postgres
async def test_a_token_that_is_put_meanwhile_is_not_overwritten(rotation: Rotation) -> None:
    old, new = Fernet.generate_key(), Fernet.generate_key()
    async with rotation.pool.acquire() as connection:
        sealed = vault(old).seal("acme", SENDER, TOKEN)
        await store.put_sender(connection, NewSender(SENDER, "acme", "300", "200", None, True, sealed), utc_now())
        (before,) = await store.sealed_tokens(connection, "", 1)
        newer = NewSender(SENDER, "acme", "300", "200", None, True, vault(old).seal("acme", SENDER, "newer-token"))
        await store.put_sender(connection, newer, utc_now())
        assert await store.replace_tokens(connection, [(before, before)]) == 0
    await rotation.run(new, old)
    async with rotation.pool.acquire() as connection:
        (after,) = await store.sealed_tokens(connection, "", 1)
    assert vault(new).open("acme", SENDER, after.token) == "newer-token"


# --- on the way to Meta ---


def settings(url: str, **changes: Any) -> Settings:
    return Settings(
        kafka_bootstrap_servers="unused:1",
        database_url=SecretStr("postgresql://unused"),
        api_tokens=SecretStr(""),
        meta_graph_url=url,
        privacy_key=SecretStr("a key of tests only"),
        token_encryption_key=SecretStr(Fernet.generate_key().decode()),
        meta_connect_timeout_seconds=0.5,
        meta_read_timeout_seconds=0.5,
        **changes,
    )


Heard = list[tuple[str, dict[str, str]]]


@asynccontextmanager
async def meta_that(answers: Callable[[str], bytes], **changes: Any) -> AsyncIterator[tuple[Meta, Heard]]:
    """A server that answers each request line with bytes, and what it heard: addresses and headers."""
    heard: Heard = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        await reader.readexactly(int(headers.get("content-length", "0")))
        address = lines[0].split()[1]
        heard.append((address, headers))
        writer.write(answers(address))
        writer.close()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    meta = Meta(settings(f"http://127.0.0.1:{port}", **changes))
    try:
        yield meta, heard
    finally:
        await meta.close()
        listening.close()


def says(status: int, body: Any) -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return b"HTTP/1.1 %d X\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (status, len(raw)) + raw


async def test_every_call_carries_the_proof_and_the_version() -> None:
    def answer(address: str) -> bytes:
        if "after=2" in address:
            return says(200, {"data": []})
        page = f"http://{{}}/v99.0/300/message_templates?access_token={TOKEN}&appsecret_proof=old&after=2&limit=200"
        return says(200, {"messages": [{"id": "wamid.A"}], "data": [], "paging": {"next": page.format(here)}})

    async with meta_that(answer, meta_api_version="v99.0") as (meta, heard):
        here = urlsplit(meta._base).netloc
        for access in (Access(TOKEN, PROOF), Access(TOKEN)):
            heard.clear()
            await meta.send(SENDER, access, b"{}", attempt=1, may_start=lambda: True)
            await meta.number(SENDER, access)
            assert (await meta.templates("300", access)).entries == []
            paths = [urlsplit(address).path for address, _ in heard]
            assert paths == [
                f"/v99.0/{SENDER}/messages",
                f"/v99.0/{SENDER}",
                "/v99.0/300/message_templates",
                "/v99.0/300/message_templates",
            ]
            for address, headers in heard:
                assert parse_qs(urlsplit(address).query).get("appsecret_proof") == ([PROOF] if access.proof else None)
                assert headers["authorization"] == f"Bearer {TOKEN}"
                assert TOKEN not in address


@pytest.mark.parametrize("told", [{}, {"data": 5}, {"data": {"a": 1}}, {"paging": []}])
async def test_an_answer_without_a_list_of_templates_is_no_empty_list(told: Any) -> None:
    async with meta_that(lambda _address: says(200, told | {"planet": "Mars"})) as (meta, _):
        with pytest.raises(MetaUnreachable):
            await lists(meta)


async def test_a_list_of_templates_may_hold_anything() -> None:
    async with meta_that(lambda _address: says(200, {"data": [1, "x", None]})) as (meta, _):
        assert (await lists(meta)).entries == [{}, {}, {}]


QUOTING = {"error": {"message": f"Malformed access token {TOKEN}", "code": 190, "error_data": {"details": PROOF}}}
Ask = Callable[[Meta], Awaitable[Any]]


async def sends(meta: Meta) -> Any:
    return await meta.send(SENDER, Access(TOKEN, PROOF), b"{}", attempt=1, may_start=lambda: True)


async def asks(meta: Meta) -> Any:
    return await meta.number(SENDER, Access(TOKEN, PROOF))


async def lists(meta: Meta) -> Any:
    return await meta.templates("300", Access(TOKEN, PROOF))


@pytest.mark.parametrize("ask", [sends, asks, lists])
@pytest.mark.parametrize(
    "answer",
    [
        says(401, QUOTING),
        says(200, b"<html>" + PROOF.encode()),
        says(500, {"error": f"no {TOKEN}"}),
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 X\r\nContent-Length: 900\r\n\r\n{",
        b"",
        b"HTTP/1.1 302 X\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
    ],
    ids=["quoting", "html", "a proxy quoting", "junk", "half", "cut", "redirect"],
)
async def test_no_log_event_or_exception_tells_a_token_or_a_proof(
    ask: Ask, answer: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    log = logs.set_up("dispatcher")
    async with meta_that(lambda _address: answer) as (meta, _):
        try:
            outcome = await ask(meta)
        except (MetaRefused, MetaUnreachable) as error:
            log.error("as the driver logs it", exc_info=error, error=str(error))
            outcome = error
    told = repr(outcome) + repr(getattr(outcome, "error", None)) + repr(getattr(outcome, "__cause__", None))
    if isinstance(outcome, NotTaken):
        told += outcome.reason.model_dump_json()
    everything = told + "".join(capfd.readouterr())
    assert [one for one in (TOKEN, PROOF) if one in everything] == []


async def test_what_cannot_be_reached_tells_no_address(capfd: pytest.CaptureFixture[str]) -> None:
    log = logs.set_up("dispatcher")
    for url in ("http://127.0.0.1:1", "http://no-such-host.invalid"):
        meta = Meta(settings(url))
        assert isinstance(await sends(meta), NotTaken)
        with pytest.raises(MetaUnreachable) as unreachable:
            await asks(meta)
        log.error("as an unhandled one is logged", exc_info=unreachable.value)
        assert PROOF not in repr(unreachable.value)
        await meta.close()
    # asyncio tells of a task whose exception nobody fetched by its text.
    log.error(f"Task exception was never retrieved: ClientError('https://meta/?appsecret_proof={PROOF}')")
    everything = "".join(capfd.readouterr())
    assert PROOF not in everything
    assert TOKEN not in everything


def test_an_access_shows_nothing_of_itself() -> None:
    assert TOKEN not in repr(Access(TOKEN, PROOF))
    assert PROOF not in repr(Access(TOKEN, PROOF))
