"""Imports over HTTP on real Kafka and PostgreSQL: what is stored, what is told, what survives."""

import asyncio
import csv
import io
import os
import socket
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import consent
import httpx
import pytest
import pytest_asyncio
from consent import import_store, store
from consent.app import make_app
from consent.contacts import Mark
from consent.import_api import ImportDesk
from consent.import_csv import examine, read_batches
from consent.import_job import Job, Upload
from consent.imports import GivenUp, Imports
from consent_desk import PHONE, settings
from fastapi import FastAPI, Response
from sendwhy.access import Role, Token
from sendwhy.http import Caller
from sendwhy.kafka import create_topics
from sendwhy.postgres import migrate
from sendwhy.problems import Problem

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.asyncio(loop_scope="module")]
MIGRATIONS = Path(consent.__file__).parent / "migrations"
CSV = {"content-type": "text/csv"}
ASYNC = CSV | {"prefer": "respond-async"}
SECONDS = 120
LIMIT = 2 * 1024 * 1024


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def app(kafka_bootstrap: str, postgres_url: str) -> AsyncIterator[FastAPI]:
    name = f"consent_{uuid4().hex}"
    admin = await asyncpg.connect(postgres_url)
    await admin.execute(f"create database {name}")
    database = urlsplit(postgres_url)._replace(path=f"/{name}").geturl()
    await migrate(database, MIGRATIONS)
    configured = settings(database, kafka_bootstrap, import_bytes_max=LIMIT)
    await create_topics(configured)
    app = make_app(configured)
    # Another file's service may have been on this Kafka, with another database.
    await app.state.runtime.rewind()
    async with app.router.lifespan_context(app):
        yield app
    await admin.execute(f"drop database {name} with (force)")
    await admin.close()


class Shop:
    """One workspace of its own, seen from outside, and its tables."""

    def __init__(self, app: FastAPI, http: httpx.AsyncClient, workspace: str) -> None:
        self.app, self.http, self.workspace = app, http, workspace
        self.path = f"/v1/workspaces/{workspace}/contacts"

    async def post(self, body: str | bytes, query: str = "", **headers: str) -> httpx.Response:
        content = body.encode() if isinstance(body, str) else body
        return await self.http.post(f"{self.path}/import{query}", content=content, headers=CSV | headers)

    async def take(self, body: str | bytes, query: str = "", **headers: str) -> Any:
        answer = await self.post(body, query, **headers)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def contact(self, contact_id: str) -> Any:
        return (await self.http.get(f"{self.path}/{contact_id}")).json()

    async def history(self, contact_id: str) -> list[Any]:
        return list((await self.http.get(f"{self.path}/{contact_id}/history")).json()["items"])

    async def ended(self, address: str) -> Any:
        async with asyncio.timeout(SECONDS):
            while (view := (await self.http.get(address)).json())["state"] == "running":
                await asyncio.sleep(0.05)
        return view

    async def rows(self, query: str, *values: Any) -> list[asyncpg.Record]:
        async with self.app.state.runtime.pool.acquire() as connection:
            return list(await connection.fetch(query, *values))


@pytest_asyncio.fixture(loop_scope="module")
async def shop(app: FastAPI) -> AsyncIterator[Shop]:
    headers = {"authorization": "Bearer admin-token-1"}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://consent", headers=headers
    ) as http:
        yield Shop(app, http, f"w-{uuid4().hex[:8]}")


async def test_the_answer_says_how_the_file_was_read(shop: Shop) -> None:
    body = "Kunden-Nr.;Handy;E-Mail;Name;Accepts Marketing\n17;+525512345678;a@b.c;Jürgen;yes\n18;;;Ana;no\n"
    view = await shop.take(body.encode("cp1252"))
    assert (view["read"], view["imported"], view["unchanged"], view["refused_count"]) == (2, 2, 0, 0)
    assert (view["encoding"], view["separator"], view["state"]) == ("cp1252", ";", "done")
    mapping = {"contact_id": "Kunden-Nr.", "phone": "Handy", "name": "Name", "marketing_state": "Accepts Marketing"}
    assert list(view["mapping"].items()) == list(mapping.items())
    assert view["ignored"] == ["E-Mail"]
    assert view["result_file"] == f"{shop.path}/imports/{view['import_id']}/refused.csv"
    assert (view["bytes_read"], view["rows_total"]) == (view["bytes_total"], 2)
    contact = await shop.contact("17")
    assert (contact["name"], contact["phone"], contact["marketing_state"]) == ("Jürgen", PHONE, "SUBSCRIBED")
    assert (await shop.contact("18"))["marketing_state"] == "NOT_SUBSCRIBED"
    assert (await shop.http.get(f"{shop.path}/imports/{view['import_id']}")).json() == view


async def test_the_caller_may_say_which_column_is_meant(shop: Shop) -> None:
    body = f"contact_id,Mobile,Phone Number\nc-1,+525587654321,{PHONE}\n"
    refused = await shop.post(body)
    assert refused.status_code == 422
    assert ("Mobile" in refused.json()["detail"], refused.json()["errors"][0]["field"]) == (True, "map.phone")
    view = await shop.take(body, "?map.phone=Phone%20Number")
    assert view["mapping"]["phone"] == "Phone Number"
    assert (await shop.contact("c-1"))["phone"] == PHONE
    assert (await shop.post(body, "?map.fone=x")).status_code == 422
    assert (await shop.post(body, "?map.phone=Mobile&encoding=klingon")).status_code == 422
    assert len(await shop.rows("select from contact_import where workspace_id = $1", shop.workspace)) == 1


async def test_a_batch_whose_commit_got_no_answer_counts_once(shop: Shop) -> None:
    runtime, body = shop.app.state.runtime, b"contact_id,phone\nc-1,\x01\nc-2,\nc-3,\n"
    imports, file = Imports(runtime, runtime.settings), io.BytesIO(body)
    caller = Caller(Token("tester", Role.OPERATOR, "*"), shop.workspace)
    layout = examine(file, {})
    job = Job(uuid4(), caller, Upload(file, b"d", b"d"), layout, datetime.now(UTC), None)
    (batch,) = read_batches(file, layout)
    async with runtime.pool.acquire() as connection:
        await import_store.add(connection, job)
        assert await import_store.claim(connection, job.import_id)
        for _ in range(2):
            async with connection.transaction():
                await imports.apply(connection, job, batch, [], 0)
        row = await import_store.finish(connection, job, [])
        assert row is not None
        assert (row["read"], row["imported"], row["refused_count"]) == (3, 2, 1)
        with pytest.raises(GivenUp):
            await imports.apply(connection, job, batch, [], 3)


async def test_a_header_with_what_no_database_takes(shop: Shop) -> None:
    view = await shop.take(b'contact_id,a\\u0000b,c\0d,"e\nf"\nc-1,1,2,3\n')
    assert view["ignored"] == ["a\\u0000b", "c\ufffdd", "e\nf"]


async def test_the_same_file_again_doubles_nothing(shop: Shop) -> None:
    lines = ["contact_id,phone,name,marketing_state,proof"]
    lines += [f"c-{i},+52551234{i:04},Inés,SUBSCRIBED,form {i}" for i in range(700)]
    body = "\n".join(lines)
    first = await shop.take(body)
    assert (first["imported"], first["unchanged"]) == (700, 0)
    history = "select contact_id, cause, said_state from contact_history where workspace_id = $1 order by id"
    before = await shop.rows(history, shop.workspace)
    assert len(before) == 700
    contact = await shop.contact("c-5")
    again = await shop.take(body)
    assert (again["imported"], again["unchanged"]) == (700, 700)
    assert again["import_id"] != first["import_id"]
    assert await shop.rows(history, shop.workspace) == before
    assert await shop.contact("c-5") == contact
    told = "select from outbox where convert_from(key, 'UTF8') like $1 and created_at > $2"
    assert not await shop.rows(told, f"{shop.workspace}/%", datetime.fromisoformat(again["started_at"]))


async def test_what_was_changed_in_between_is_changed_back_and_stands_in_the_history(shop: Shop) -> None:
    body = f"contact_id,phone,marketing_state\nc-1,{PHONE},SUBSCRIBED\nc-2,+525587654321,SUBSCRIBED\n"
    await shop.take(body)
    put = {"phone": PHONE, "marketing_state": "NOT_SUBSCRIBED"}
    await shop.http.put(f"{shop.path}/c-1", json=put)
    await shop.http.post(f"{shop.path}/c-2/unsubscribe", json={})
    for _ in range(2):
        view = await shop.take(body)
        assert (view["imported"], view["refused_count"]) == (2, 0)
        assert [one["said"] for one in await shop.history("c-1")] == ["SUBSCRIBED", "NOT_SUBSCRIBED", "SUBSCRIBED"]
        # An operator's no is firm: the row is heard once, and undoes nothing.
        assert [one["stood"] for one in await shop.history("c-2")][:1] == ["UNSUBSCRIBED"]
        assert len(await shop.history("c-2")) <= 3
    assert view["unchanged"] == 2


async def test_of_rows_on_one_contact_the_last_wins_and_it_is_said(shop: Shop) -> None:
    lines = ["contact_id,name,marketing_state", "c-1,First,NOT_SUBSCRIBED", "c-1,Second,SUBSCRIBED"]
    lines += [f"x-{i},,NOT_SUBSCRIBED" for i in range(600)]
    lines += ["c-1,Third,UNSUBSCRIBED"]
    view = await shop.take("\n".join(lines))
    assert view["repeated"] == [{"row": 3, "earlier_row": 2}, {"row": 604, "earlier_row": 3}]
    assert (view["repeated_count"], view["imported"]) == (2, 603)
    contact = await shop.contact("c-1")
    assert (contact["name"], contact["marketing_state"]) == ("Third", "UNSUBSCRIBED")


async def test_a_preview_judges_everything_and_stores_nothing(shop: Shop) -> None:
    body = "id;phone;name\nc-1;+525512345678;Ana\n;;\nc-2;x\0;Bo\nc-1;;Ana\n"
    view = await shop.take(body, "?dry_run=true")
    assert (view["dry_run"], view["import_id"], view["result_file"]) == (True, None, None)
    assert (view["read"], view["imported"], view["refused_count"], view["repeated_count"]) == (3, 2, 1, 1)
    assert [(one["row"], one["field"]) for one in view["refused"]] == [(4, "phone")]
    assert (await shop.http.get(shop.path)).json()["items"] == []
    assert (await shop.http.get(f"{shop.path}/imports")).json()["items"] == []


async def test_the_result_file_has_every_refused_row_and_no_formula(shop: Shop) -> None:
    lines = ["contact_id,name,marketing_state"]
    lines += [f'c-{i},=HYPERLINK("http://evil/{i}"),maybe'.replace('"', "") for i in range(1100)]
    lines += ['c-x,"a, ""b""\nc",perhaps', "c-ok,Ana,SUBSCRIBED", 'c-y,"open']
    view = await shop.take("\n".join(lines))
    assert (view["refused_count"], len(view["refused"]), view["imported"]) == (1102, 100, 1)
    answer = await shop.http.get(view["result_file"])
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.reader(io.StringIO(answer.text)))
    assert rows[0] == ["row", "field", "why", "contact_id", "name", "marketing_state"]
    assert len(rows) == 1103
    assert rows[1][:2] + rows[1][3:] == ["2", "marketing_state", "c-0", "'=HYPERLINK(http://evil/0)", "maybe"]
    assert rows[1101][0] == "1102"
    assert rows[1101][3:] == ["c-x", 'a, "b"\nc', "perhaps"]
    assert rows[1102][:2] + rows[1102][3:] == ["1104", "", 'c-y,"open']
    headers = {"authorization": "Bearer viewer-token-1"}
    assert (await shop.http.get(view["result_file"], headers=headers)).status_code == 404


async def test_the_result_file_may_be_corrected_and_sent_again(shop: Shop) -> None:
    view = await shop.take(f"Customer ID,Phone,marketing_state\nc-1,{PHONE},maybe\nc-2,,SUBSCRIBED\n")
    refused = (await shop.http.get(view["result_file"])).text
    again = await shop.take(refused.replace("maybe", "SUBSCRIBED"))
    assert (again["imported"], again["ignored"]) == (1, ["row", "field", "why"])
    contact = await shop.contact("c-1")
    assert (contact["phone"], contact["marketing_state"]) == (PHONE, "SUBSCRIBED")


async def test_an_import_that_nobody_waits_for(shop: Shop) -> None:
    lines = ["contact_id,phone", *(f"c-{i},+52551234{i % 10_000:04}" for i in range(3000)), "c-bad,\x01"]
    key = {"idempotency-key": f"i-{shop.workspace}"}
    answer = await shop.post("\n".join(lines), prefer="wait=1, respond-async", **key)
    assert (answer.status_code, answer.headers["preference-applied"]) == (202, "respond-async")
    address = answer.headers["location"]
    assert (answer.json()["state"], answer.json()["rows_total"]) == ("running", 3001)
    again = await shop.post("\n".join(lines), prefer="respond-async", **key)
    assert (again.status_code, again.headers["location"]) == (202, address)
    assert again.headers["idempotent-replayed"] == "true"
    other = await shop.post("contact_id\n", prefer="respond-async", **key)
    assert other.status_code == 409
    view = await shop.ended(address)
    assert (view["state"], view["read"], view["imported"], view["refused_count"]) == ("done", 3001, 3000, 1)
    assert (view["bytes_read"], view["by"], view["fault"]) == (view["bytes_total"], view["by"], None)
    assert view["started_at"] <= view["finished_at"]
    assert [(one["row"], one["field"]) for one in view["refused"]] == [(3002, "phone")]
    assert len((await shop.http.get(f"{shop.path}/imports")).json()["items"]) == 1


async def test_the_list_is_paged_newest_first_and_a_workspaces_own(shop: Shop) -> None:
    made = [(await shop.take(f"contact_id\nc-{i}\n"))["import_id"] for i in range(5)]
    seen: list[str] = []
    cursor = ""
    while True:
        page = (await shop.http.get(f"{shop.path}/imports?limit=2{cursor}")).json()
        seen += [one["import_id"] for one in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert seen == made[::-1]
    assert (await shop.http.get(f"{shop.path}/imports?cursor=nonsense")).status_code == 422
    foreign = f"/v1/workspaces/other-{shop.workspace}/contacts/imports"
    assert (await shop.http.get(foreign)).json()["items"] == []
    assert (await shop.http.get(f"{foreign}/{made[0]}")).status_code == 404
    assert (await shop.http.get(f"{foreign}/{made[0]}/refused.csv")).status_code == 404
    assert (await shop.http.get(f"{shop.path}/imports/{uuid4()}")).status_code == 404


@pytest.mark.parametrize(("token", "status"), [("viewer-token-1", 403), ("operator-token-1", 200)])
async def test_the_original_cells_are_for_operators(shop: Shop, token: str, status: int) -> None:
    headers = {"authorization": f"Bearer {token}"}
    path = "/v1/workspaces/acme/contacts/import"
    view = (await shop.http.post(path, content=b"contact_id,phone\nc,\x02\n", headers=CSV)).json()
    assert (await shop.http.get(f"{path}s/{view['import_id']}", headers=headers)).status_code == 200
    assert (await shop.http.get(view["result_file"], headers=headers)).status_code == status
    posted = await shop.http.post(path, content=b"contact_id\n", headers=headers | CSV)
    assert posted.status_code == status


async def test_imports_of_one_workspace_run_one_after_the_other(shop: Shop) -> None:
    body = "contact_id,name\n" + "".join(f"c-{i},A\n" for i in range(1500))
    answers = await asyncio.gather(*(shop.take(body.replace("A", name)) for name in "ABC"))
    assert [one["imported"] for one in answers] == [1500] * 3
    noted = "select finished_at from contact_import where workspace_id = $1 order by number"
    ends = [one["finished_at"] for one in await shop.rows(noted, shop.workspace)]
    assert ends == sorted(ends)
    # None of another's rows came between: everybody has the name that the last one gives.
    last = max(zip(answers, "ABC", strict=True), key=lambda one: one[0]["finished_at"])[1]
    named = "select name, count(*) as people from contact where workspace_id = $1 group by name"
    assert [tuple(one) for one in await shop.rows(named, shop.workspace)] == [(last, 1500)]


async def test_a_twin_under_the_same_key_gets_the_same_answer(shop: Shop) -> None:
    body = "contact_id,name\n" + "".join(f"c-{i},A\n" for i in range(1500))
    key = {"idempotency-key": f"twin-{shop.workspace}"}
    first, second = await asyncio.gather(shop.post(body, **key), shop.post(body, **key))
    assert first.json() == second.json()
    assert sorted("idempotent-replayed" in one.headers for one in (first, second)) == [False, True]
    assert len((await shop.http.get(f"{shop.path}/imports")).json()["items"]) == 1


def job_of(shop: Shop, key: str) -> Job:
    file, caller = io.BytesIO(b"contact_id\nc-1\n"), Caller(Token("tester", Role.OPERATOR, "*"), shop.workspace)
    return Job(uuid4(), caller, Upload(file, b"d", b"d"), examine(file, {}), datetime.now(UTC), key)


async def test_a_repeat_doesnt_wait_for_a_twin_that_takes_long_and_holds_no_file_meanwhile(shop: Shop) -> None:
    runtime = shop.app.state.runtime
    desk = ImportDesk(runtime, Imports(runtime, runtime.settings), twin_seconds=0.0)

    twin, repeat = job_of(shop, "long"), job_of(shop, "long")
    await desk.noted(twin, is_async=False)
    with pytest.raises(Problem) as refused:
        await desk.noted(repeat, is_async=False)
    assert repeat.upload.file.closed
    address, headers = f"{shop.path}/imports/{twin.import_id}", refused.value.headers or {}
    assert (refused.value.status_code, headers["location"], headers["retry-after"]) == (409, address, "10")
    assert address in refused.value.detail
    assert (await shop.http.get(address)).json()["state"] == "running"


async def test_a_repeat_whose_twin_fails_has_to_come_again(shop: Shop) -> None:
    runtime = shop.app.state.runtime
    desk = ImportDesk(runtime, Imports(runtime, runtime.settings), twin_seconds=SECONDS)

    twin, repeat = job_of(shop, "fails"), job_of(shop, "fails")
    await desk.noted(twin, is_async=False)
    waiting = asyncio.create_task(desk.noted(repeat, is_async=False))
    async with asyncio.timeout(SECONDS):
        while not repeat.upload.file.closed:
            await asyncio.sleep(0.02)
    async with runtime.pool.acquire() as connection:
        await import_store.fail(connection, [twin.import_id], "x")
    with pytest.raises(Problem) as refused:
        await waiting
    assert (refused.value.status_code, refused.value.headers) == (503, {"retry-after": "1"})
    assert not isinstance(await desk.noted(job_of(shop, "fails"), is_async=False), Response)


async def test_an_import_whose_process_died_failed_and_the_file_may_come_again(shop: Shop) -> None:
    body, key = f"contact_id,phone\nc-1,{PHONE}\n", {"idempotency-key": f"dead-{shop.workspace}"}
    first = await shop.post(body, prefer="respond-async", **key)
    await shop.ended(first.headers["location"])
    long_ago = datetime.now(UTC) - timedelta(minutes=1)
    await shop.rows(
        "update contact_import set state = 'running', finished_at = null, heard_at = $2 where workspace_id = $1",
        shop.workspace,
        long_ago,
    )
    view = await shop.ended(first.headers["location"])
    assert (view["state"], view["read"]) == ("failed", 1)
    assert "interrupted" in view["fault"]
    again = await shop.post(body, prefer="respond-async", **key)
    assert again.headers["location"] != first.headers["location"]
    assert (await shop.ended(again.headers["location"]))["unchanged"] == 1


async def test_kill_9_leaves_a_failed_import_that_can_be_repeated(shop: Shop) -> None:
    body = "contact_id,phone\n" + "".join(f"c-{i},+52551{i:07}\n" for i in range(30_000))
    own: Any = shop.app.state.runtime.settings
    given = {
        "DATABASE_URL": own.database_url.get_secret_value(),
        "KAFKA_BOOTSTRAP_SERVERS": own.kafka_bootstrap_servers,
        "PRIVACY_KEY": own.privacy_key.get_secret_value(),
        "API_TOKENS": own.api_tokens.get_secret_value(),
        "HTTP_PORT": str(_free_port()),
    }
    environment = os.environ | {f"SENDWHY_{name}": value for name, value in given.items()}
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "consent", "serve", env=environment)
    try:
        base = f"http://127.0.0.1:{given['HTTP_PORT']}"
        async with httpx.AsyncClient(base_url=base, headers=shop.http.headers) as http, asyncio.timeout(SECONDS):
            while not await _is_ready(http):
                await asyncio.sleep(0.1)
            begun = await http.post(f"{shop.path}/import", content=body.encode(), headers=ASYNC)
            address = begun.headers["location"]
            while (await shop.http.get(address)).json()["read"] < 1000:
                await asyncio.sleep(0.02)
    finally:
        process.kill()
        await process.wait()
    await shop.rows("update contact_import set heard_at = heard_at - interval '1 minute' where state = 'running'")
    view = await shop.ended(address)
    assert view["state"] == "failed"
    assert "interrupted" in view["fault"]
    assert 1000 <= view["read"] < 30_000
    assert (await shop.http.get(shop.path, params={"limit": 1})).json()["items"]
    first = "select count(*), count(distinct contact_id) from contact where workspace_id = $1"
    assert tuple((await shop.rows(first, shop.workspace))[0]) == (view["read"], view["read"])
    again = await shop.take(body[: body.index("c-3000,")])
    assert (again["imported"], again["unchanged"]) == (3000, min(3000, view["read"]))


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


async def _is_ready(http: httpx.AsyncClient) -> bool:
    try:
        return (await http.get("/readyz")).is_success
    except httpx.TransportError:
        return False


async def test_others_get_their_turn_while_an_import_runs(shop: Shop) -> None:
    body = "contact_id,phone\n" + "".join(f"c-{i},+52551{i:07}\n" for i in range(8000))
    begun = await shop.post(body, prefer="respond-async")
    answer = await shop.http.put(f"{shop.path}/c-0", json={"phone": PHONE, "name": "by hand"})
    assert answer.status_code == 200
    assert (await shop.http.get(begun.headers["location"])).json()["state"] == "running"
    assert (await shop.ended(begun.headers["location"]))["imported"] == 8000


async def call(app: FastAPI, path: str, *messages: dict[str, Any]) -> list[dict[str, Any]]:
    """One request as an ASGI server would hand it over, message by message."""
    waiting, sent = list(messages), []

    async def receive() -> dict[str, Any]:
        return waiting.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [(b"authorization", b"Bearer admin-token-1"), (b"content-type", b"text/csv")]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
    await app(scope | {"http_version": "1.1", "root_path": "", "scheme": "http"}, receive, send)  # type: ignore[arg-type]
    return sent


async def test_an_upload_that_breaks_off_leaves_nothing(shop: Shop) -> None:
    part = {"type": "http.request", "body": b"contact_id\nc-1\nc-2\n", "more_body": True}
    await call(shop.app, f"{shop.path}/import", part, part, {"type": "http.disconnect"})
    assert (await shop.http.get(shop.path)).json()["items"] == []
    assert (await shop.http.get(f"{shop.path}/imports")).json()["items"] == []


async def test_a_file_that_is_too_large_is_told_so(shop: Shop) -> None:
    answer = await shop.post(b"contact_id\n" + b"c-1\n" * (LIMIT // 4))
    assert answer.status_code == 413
    assert str(LIMIT) in answer.json()["detail"]
    # Only the import reads piece by piece: nothing else may be that large.
    put = await shop.http.put(f"{shop.path}/import", content=b" " * (LIMIT - 1000))
    assert put.status_code == 413


async def test_erasure_takes_refused_rows_of_that_person(shop: Shop) -> None:
    await shop.http.put(f"{shop.path}/c-1", json={"phone": PHONE})
    lines = ["contact_id,phone,marketing_state", "c-1,,maybe", f"c-7,{PHONE},maybe", "c-8,+525587654321,maybe"]
    view = await shop.take("\n".join(lines))
    assert view["refused_count"] == 3
    assert (await shop.http.delete(f"{shop.path}/c-1")).status_code == 204
    answer = await shop.http.get(view["result_file"])
    assert [line.split(",")[0] for line in answer.text.splitlines()[1:]] == ["4"]
    tagger = store.Tagger(settings().privacy_key.get_secret_value())
    async with shop.app.state.runtime.pool.acquire() as connection:
        await import_store.forget_import_rows(
            connection, shop.workspace, [tagger(Mark(shop.workspace, "contact", "c-8"))]
        )
    assert len((await shop.http.get(view["result_file"])).text.splitlines()) == 1
    # A row on an erased person is refused, and its cells are not kept.
    again = await shop.take("contact_id,name\nc-1,Inés\n")
    assert again["refused"][0]["field"] == "contact_id"
    assert "Inés" not in (await shop.http.get(again["result_file"])).text


async def test_old_imports_are_forgotten(shop: Shop) -> None:
    view = await shop.take("contact_id,phone\nc-1,\x01\n")
    async with shop.app.state.runtime.pool.acquire() as connection:
        await import_store.prune(connection, datetime.now(UTC) + timedelta(days=29))
        assert await import_store.one(connection, shop.workspace, view["import_id"]) is not None
        await import_store.prune(connection, datetime.now(UTC) + timedelta(days=31))
        assert await import_store.one(connection, shop.workspace, view["import_id"]) is None
        assert await import_store.refused_of(connection, view["import_id"], 0, 10) == []
