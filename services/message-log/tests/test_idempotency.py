"""Every write of the API under an Idempotency-Key: the same answer to the same request, and 409 to another one."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import jsonschema  # type: ignore[import-untyped]  # no stubs
import message_log.audience_store as stored
import pytest
from audience_desk import Audience, Json, jsonl, line, open_audience
from message_log.api import FILLED_IN
from message_log.app import make_app
from message_log.store import EventRow, add_events
from message_log_builders import ADMIN, T0, WORKSPACE, event_id, rejected, requested
from other_services import ACTING_KEY
from pages_desk import settings_of_desk
from pydantic import SecretStr
from sendwhy.events import To
from sendwhy.reasons import ReasonCode

pytestmark = pytest.mark.postgres
HOME = "/v1/workspaces/{w}"
LETTER = event_id("a dead letter")
MESSAGE: Json = {"to": {"phone": "+525512345678"}, "content": {"type": "text", "text": {"body": "Hola"}}}


def repaired(message_id: str) -> bytes:
    return json.dumps({"body": requested(message_id=message_id).to_json().decode()}).encode()


def as_json(**body: Any) -> bytes:
    return json.dumps(body).encode()


@dataclass(frozen=True)
class Write:
    """A write route, and two bodies for it. `runs`: what it is for goes on."""

    route: str
    body: bytes
    other: bytes
    runs: bool = False


WRITES = (
    Write("/messages", as_json(**MESSAGE), as_json(**MESSAGE, purpose="transactional")),
    Write("/dead-letters/{dead_letter_id}/resubmit", repaired("dead"), repaired("other")),
    Write("/audience-checks", jsonl(line("a"), line("b")), jsonl(line("a"), line("c"))),
    Write("/audience-checks/{id}/again", b"", b"{}"),
    Write("/audience-checks/{id}/cancel", b"", b"{}", runs=True),
    Write("/send-again", b"", b"{}"),
    Write("/send-again/{id}/again", b"", b"{}"),
    Write("/send-again/{id}/cancel", b"", b"{}", runs=True),
    Write("/send-again/{id}/confirm", as_json(messages=1, credits=1), as_json(messages=1, credits=2)),
)


@pytest.fixture
async def desk(migrated_database: str) -> AsyncIterator[Audience]:
    async with open_audience(migrated_database) as desk:
        yield desk


async def path_of(desk: Audience, client: httpx.AsyncClient, write: Write) -> str:
    """The route's path, to something that was judged, or that runs in a process elsewhere."""
    to = To(contact_id="c-failed", phone="+525512345678")
    failed = rejected(ReasonCode.INSUFFICIENT_CREDITS, message_id="failed", to=to)
    await desk.tell(requested(message_id="failed", to=to), failed)
    letter = EventRow(
        LETTER, T0, WORKSPACE, "dead", None, "consent", "dead_letter", b"{}", "send.requested: unreadable"
    )
    async with desk.pool.acquire() as connection:
        await add_events(connection, [letter])
    if "{id}" not in write.route:
        return write.route.format(dead_letter_id=LETTER)
    kind = write.route.split("/")[1]
    body = jsonl(line("a")) if kind == "audience-checks" else b""
    made = (await client.post(f"/{kind}", content=body)).json()
    await desk.done(client, f"/{kind}/{made['id']}")
    if write.runs:
        async with desk.pool.acquire() as connection:
            assert await stored.claim(connection, WORKSPACE, made["id"], "running", ["judged"])
    return write.route.format(id=made["id"])


async def settled(desk: Audience, *, but: bool) -> None:
    """Wait until no run of this process goes on."""
    async with asyncio.timeout(120):
        while not but and await states(desk, "state in ('running', 'sending')"):
            await asyncio.sleep(0.02)


async def states(desk: Audience, where: str = "true") -> dict[Any, tuple[str, int]]:
    async with desk.pool.acquire() as connection:
        rows = await connection.fetch(f"select audience_id, state, run from audience where {where}")
    return {row["audience_id"]: (row["state"], row["run"]) for row in rows}


async def set_back(desk: Audience, before: dict[Any, tuple[str, int]]) -> None:
    """The states as they were, so that the same could be done once more."""
    async with desk.pool.acquire() as connection:
        for audience_id, (state, _) in before.items():
            await connection.execute("update audience set state = $2 where audience_id = $1", audience_id, state)


async def done(desk: Audience) -> Any:
    """All that writes do."""
    async with desk.pool.acquire() as connection:
        notes = await connection.fetchval("select count(*) from audit")
    return await states(desk), len(await desk.outbox()), notes


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.route)
async def test_under_one_key_a_write_is_done_once_and_answered_alike(desk: Audience, write: Write) -> None:
    key = {"Idempotency-Key": "k-1", "content-type": "application/json"}
    async with desk.client(ADMIN) as client:
        path = await path_of(desk, client, write)
        before = await states(desk)
        first = await client.post(path, content=write.body, headers=key)
        assert first.status_code == 202, first.text
        await settled(desk, but=write.runs)
        await set_back(desk, before)
        did = await done(desk)
        again = await client.post(path, content=write.body, headers=key)
        other = await client.post(path, content=write.other, headers=key)
        elsewhere = await client.post(f"{path}?name=other", content=write.body, headers=key)
        await settled(desk, but=write.runs)
        assert await done(desk) == did
        assert (again.status_code, again.content) == (202, first.content)
        assert again.headers.get("location") == first.headers.get("location")
        assert again.headers["idempotent-replayed"] == "true"
        assert (other.status_code, elsewhere.status_code) == (409, 409)
        assert [one["field"] for one in other.json()["errors"]] == ["Idempotency-Key"]
        # What the answer tells of may be gone by then.
        async with desk.pool.acquire() as connection:
            await connection.execute("delete from audience")
            await connection.execute("delete from message")
            kept = await connection.fetchrow("select octet_length(digest) as digest, answer from idempotency_key")
        assert kept is not None
        assert (kept["digest"], kept["answer"]) == (32, first.content)
        assert (await client.post(path, content=write.body, headers=key)).content == first.content


async def test_a_file_that_comes_twice_at_once_is_taken_once(desk: Audience) -> None:
    async with desk.client(ADMIN) as client:
        body, key = jsonl(*(line(f"m{number}") for number in range(600))), {"Idempotency-Key": "k-1"}
        answers = await asyncio.gather(*(client.post("/audience-checks", content=body, headers=key) for _ in range(3)))
        assert [answer.status_code for answer in answers] == [202] * 3
        assert len({answer.content for answer in answers}) == len(await states(desk)) == 1
        await settled(desk, but=False)


async def test_what_was_refused_takes_no_key(desk: Audience) -> None:
    key = {"Idempotency-Key": "k-1"}
    async with desk.client(ADMIN) as client:
        assert (await client.post("/audience-checks", content=b"\n", headers=key)).status_code == 422
        assert (await client.post("/audience-checks", content=jsonl(line("a")), headers=key)).status_code == 202
        await settled(desk, but=False)


def openapi() -> Json:
    url = "postgresql://nowhere/none"
    return make_app(settings_of_desk(url, SecretStr(ACTING_KEY))).openapi()


def test_every_write_is_in_the_table_and_takes_a_key() -> None:
    told = openapi()["paths"]
    writes = {
        path: {one["name"] for one in operations[method].get("parameters", ())}
        for path, operations in told.items()
        for method in operations
        if method != "get"
    }
    assert writes.keys() == {f"{HOME}{write.route}" for write in WRITES}
    assert [path for path, names in writes.items() if "Idempotency-Key" not in names] == []


@pytest.mark.parametrize(
    ("body", "is_one"),
    [
        (MESSAGE, True),
        (MESSAGE | {"message_id": "m-1", "workspace_id": WORKSPACE, "origin": {"kind": "test"}}, True),
        ({name: value for name, value in MESSAGE.items() if name != "to"}, False),
        (MESSAGE | {"origin": {}}, False),
        (MESSAGE | {"message_id": "no spaces"}, False),
    ],
)
async def test_openapi_tells_what_a_message_needs(desk: Audience, body: Json, is_one: bool) -> None:
    told = openapi()
    shape = told["paths"][f"{HOME}/messages"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    validator = jsonschema.Draft202012Validator(shape | {"components": told["components"]})
    assert validator.is_valid(body) == is_one
    async with desk.client(ADMIN) as client:
        answer = await client.post("/messages", json=body)
    assert (answer.status_code == 202) == is_one, answer.text
    assert not {*FILLED_IN} & {*told["components"]["schemas"]["MessageRequest"]["required"]}
