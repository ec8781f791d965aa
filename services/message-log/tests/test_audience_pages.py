"""Audience checks and sending again over HTTP, on real PostgreSQL, with services that judge call by call."""

import asyncio
import csv
import io
import re
from collections import Counter
from collections.abc import AsyncIterator
from html import unescape
from typing import Any
from uuid import UUID

import httpx
import message_log.audience_store as stored
import pytest
from audience_desk import Audience, Json, jsonl, line, open_audience
from message_log_builders import ADMIN, OPERATOR, STRANGER, VIEWER, WORKSPACE, consented, rejected, requested, status
from sendwhy.events import SendRequested, Status, To
from sendwhy.reasons import CATALOGUE, ReasonCode

pytestmark = pytest.mark.postgres
R = ReasonCode
HOME = f"/w/{WORKSPACE}"
SCRIPT = "<script>alert(1)</script>"


@pytest.fixture
async def desk(migrated_database: str) -> AsyncIterator[Audience]:
    async with open_audience(migrated_database) as desk:
        yield desk


async def check(desk: Audience, client: httpx.AsyncClient, body: bytes) -> Json:
    answer = await client.post("/audience-checks", content=body)
    assert answer.status_code == 202, answer.text
    return await desk.done(client, f"/audience-checks/{answer.json()['id']}")


def counts(view: Json) -> dict[str, int]:
    return {group["group"]: group["count"] for group in view["groups"]}


async def test_a_file_is_told_group_by_group_and_every_group_can_be_loaded(desk: Audience) -> None:
    desk.deciders.stopped, desk.deciders.unapproved, desk.deciders.balance = {"c-stop"}, {"gone"}, 3
    await desk.tell(requested(message_id="old"))
    gone = {"type": "template", "template": {"name": "gone", "language": {"code": "en"}}}
    lines = [
        *(line(f"go-{number}") for number in range(5)),
        line("stop"),
        line("bad", content=gone),
        line("go-1"),
        line("old"),
        line("away", workspace_id="other"),
        line("=cmd|' /C calc'!A0"),
    ]
    async with desk.client(OPERATOR) as client:
        view = await check(desk, client, jsonl(*lines) + b"{broken\n")
        assert counts(view) == {
            "goes": 3,
            "fails.INSUFFICIENT_CREDITS": 3,
            "fails.CUSTOMER_IS_NOT_OPTED_IN": 1,
            "used": 1,
            "repeated": 1,
            "broken.workspace": 1,
            "broken.line": 2,
        }
        assert (view["state"], view["lines"], view["judged"]) == ("judged", 12, 12)
        assert sum(counts(view).values()) == view["lines"]
        assert view["credits"] == {"going": 3, "needed": 5, "balance": 3, "short": 2}
        found: list[bytes] = []
        for group in view["groups"]:
            path = f"/audience-checks/{view['id']}/lines"
            raw = (await client.get(f"{path}.jsonl", params={"group": group["group"]})).content.splitlines()
            rows = list(csv.DictReader(io.StringIO((await client.get(f"{path}.csv?group={group['group']}")).text)))
            assert len(raw) == len(rows) == group["count"]
            assert {row["title"] for row in rows} == {group["title"]}
            found += raw
        assert Counter(found) == Counter([*jsonl(*lines).splitlines(), b"{broken"])
        failed = next(one for one in view["groups"] if one["why"] == "CUSTOMER_IS_NOT_OPTED_IN")
        assert failed["what_to_do"] == CATALOGUE[R.CUSTOMER_IS_NOT_OPTED_IN].what_to_do
    assert {role for _, _, role in desk.deciders.asked} == {"VIEWER"}
    assert not await desk.outbox()


async def test_over_many_calls_credits_and_people_are_counted_once(desk: Audience) -> None:
    desk.deciders.balance, desk.deciders.limit, desk.deciders.used = 2300, 2100, 50
    async with desk.client(OPERATOR) as client:
        view = await check(desk, client, jsonl(*(line(f"m{number}") for number in range(2400))))
    assert [size for service, size, _ in desk.deciders.asked if service == "billing"] == [1000, 1000, 400]
    assert counts(view) == {
        "goes": 2050,
        "waits.tier.MESSAGING_LIMIT_REACHED": 250,
        "fails.INSUFFICIENT_CREDITS": 100,
    }
    assert view["credits"] == {"going": 2050, "needed": 2400, "balance": 2300, "short": 100}
    assert [(one["limit"], one["used"], one["taken"], one["left"]) for one in view["people"]] == [(2100, 50, 2050, 0)]


async def test_a_service_that_cannot_be_asked_is_named_and_never_a_pass(desk: Audience) -> None:
    desk.deciders.down, desk.deciders.stopped = {"billing"}, {"c-stop"}
    async with desk.client(OPERATOR) as client:
        view = await check(desk, client, jsonl(line("a"), line("stop")))
        assert counts(view) == {"fails.CUSTOMER_IS_NOT_OPTED_IN": 1, "unknown.billing": 1}
        assert "500" in view["faults"]["billing"]
        assert view["credits"]["balance"] is None
        desk.deciders.down = set()
        await client.post(f"/audience-checks/{view['id']}/again")
        view = await desk.done(client, f"/audience-checks/{view['id']}")
        assert (counts(view)["goes"], view["faults"]) == (1, {})


@pytest.mark.parametrize(("body", "status", "word"), [(b"", 422, "empty"), (b"\n\n \n", 422, "empty")])
async def test_a_file_without_lines_is_refused_in_words(desk: Audience, body: bytes, status: int, word: str) -> None:
    async with desk.client(OPERATOR) as client:
        answer = await client.post("/audience-checks", content=body)
    assert (answer.status_code, word in answer.json()["detail"]) == (status, True)


async def test_rights_and_workspaces_are_kept_apart(desk: Audience) -> None:
    async with desk.client(OPERATOR) as client:
        view = await check(desk, client, jsonl(line("a")))
        path = f"/audience-checks/{view['id']}"
        assert (await client.get(f"/send-again/{view['id']}")).status_code == 404
    async with desk.client(VIEWER) as client:
        assert (await client.get(path)).status_code == 200
        assert [one["id"] for one in (await client.get("/audience-checks")).json()["items"]] == [view["id"]]
        assert (await client.get("/send-again")).json() == {"items": [], "next_cursor": None}
        for answer in (
            await client.post("/audience-checks", content=jsonl(line("a"))),
            await client.get(f"{path}/lines.csv"),
            await client.get(f"{path}/lines.jsonl"),
            await client.post(f"{path}/again"),
            await client.post("/send-again?status=failed"),
        ):
            assert answer.status_code == 403
    async with desk.client(STRANGER) as client:
        assert (await client.get(path)).status_code == 404
        other = str(client.base_url).replace(WORKSPACE, "other").rstrip("/")
        assert (await client.get(f"{other}{path}")).status_code == 404


async def test_a_person_uploads_looks_and_loads_without_script(desk: Audience) -> None:
    desk.deciders.stopped = {"c-stop"}
    body = jsonl(line("a"), line("stop"), line("x", content={"type": SCRIPT}))
    async with desk.browser(OPERATOR) as browser:
        page = (await browser.get(f"{HOME}/audience")).text
        assert 'enctype="multipart/form-data"' in page
        answer = await browser.post(f"{HOME}/audience", files={"file": (f"{SCRIPT}.jsonl", body)})
        assert answer.status_code == 303
        path = answer.headers["location"]
        page = await until_done(browser, path)
        assert SCRIPT not in page
        assert "1 credit needed, 1,000,000 there." in unescape(page)
        for href in re.findall(r'href="([^"]+lines\.[^"]+)"', page):
            assert (await browser.get(unescape(href))).status_code == 200
        part = await browser.get(path, headers={"hx-request": "true", "hx-request-type": "partial"})
        assert part.text.lstrip().startswith('<section id="course"')
        for files, word in (({}, "Choose a file"), ({"file": ("e.jsonl", b"")}, "empty")):
            refused = await browser.post(f"{HOME}/audience", files=files or {"other": ("a", b"b")})
            assert (refused.status_code, word in refused.text) == (422, True)
        foreign = await browser.post(
            f"{HOME}/audience", files={"file": ("a", body)}, headers={"sec-fetch-site": "cross-site"}
        )
        assert foreign.status_code == 403
    async with desk.browser(VIEWER) as browser:
        page = (await browser.get(f"{HOME}/audience")).text
        assert re.search(r'<button type="submit" disabled aria-describedby="who-may"', page)
        assert (await browser.get(path)).status_code == 200
        assert (await browser.get(f"{path}/lines.csv")).status_code == 403


async def until_done(browser: httpx.AsyncClient, path: str) -> str:
    async with asyncio.timeout(120):
        while True:
            page = (await browser.get(path)).text
            if "hx-trigger" not in page:
                return page
            await asyncio.sleep(0.02)


async def test_a_run_that_was_cut_off_says_so_and_begins_anew_and_a_cancelled_one_writes_no_more(
    desk: Audience,
) -> None:
    async with desk.client(OPERATOR) as client:
        view = await check(desk, client, jsonl(line("a"), line("b")))
        audience_id, path = UUID(view["id"]), f"/audience-checks/{view['id']}"
        async with desk.pool.acquire() as connection:
            await connection.execute(
                "update audience set state = 'running', beat_at = clock_timestamp() - interval '1 hour'"
            )
        assert (await client.get(path)).json()["state"] == "interrupted"
        assert (await client.post(f"{path}/again")).status_code == 202
        assert (await desk.done(client, path))["state"] == "judged"
        async with desk.pool.acquire() as connection:
            claimed = await stored.claim(connection, WORKSPACE, audience_id, "running", ["judged"])
            assert claimed is not None
            assert (await client.post(f"{path}/again")).status_code == 409
            assert (await client.post(f"{path}/cancel")).json()["state"] == "cancelled"
            with pytest.raises(stored.Superseded):
                await stored.fence(connection, audience_id, claimed["run"])
            await connection.execute("update audience set expires_at = clock_timestamp()")
            await stored.prune(connection)
            assert await connection.fetchval("select count(*) from audience_line") == 0
        assert (await client.get(path)).status_code == 404


# Sending again


def short(name: str, **more: Any) -> list[Any]:
    """A request that failed for want of credits."""
    to = To(contact_id=f"c-{name}", phone="+525512345678")
    return [
        requested(message_id=name, to=to, **more),
        rejected(R.INSUFFICIENT_CREDITS, message_id=name, to=to),
    ]


async def plan(desk: Audience, client: httpx.AsyncClient, query: str = "") -> Json:
    answer = await client.post(f"/send-again?{query}")
    assert answer.status_code == 202, answer.text
    return await desk.done(client, f"/send-again/{answer.json()['id']}")


async def confirm(desk: Audience, client: httpx.AsyncClient, view: Json, **more: int) -> Json:
    said = {"messages": view["going"], "credits": view["credits"]["going"]} | more
    answer = await client.post(f"/send-again/{view['id']}/confirm", json=said)
    assert answer.status_code in (202, 409), answer.text
    return await desk.done(client, f"/send-again/{view['id']}")


async def repeats(desk: Audience) -> list[SendRequested]:
    return [SendRequested.model_validate_json(record.value) for record in await desk.outbox()]


async def test_what_would_go_today_is_sent_again_once_and_the_old_message_keeps_its_reason(desk: Audience) -> None:
    desk.deciders.stopped, desk.deciders.price = {"c-stopped"}, 3
    await desk.tell(
        *short("one"),
        *short("two"),
        *short("stopped"),
        requested(message_id="never"),
        rejected(R.RECIPIENT_NOT_ON_WHATSAPP, message_id="never"),
        rejected(R.INSUFFICIENT_CREDITS, message_id="not-kept"),
        requested(message_id="read"),
        status(Status.READ, message_id="read"),
    )
    async with desk.client(OPERATOR) as client:
        view = await plan(desk, client)
        assert counts(view) == {
            "goes": 2,
            "fails.CUSTOMER_IS_NOT_OPTED_IN": 1,
            "excluded.never": 1,
            "excluded.not_kept": 1,
        }
        assert (view["going"], view["credits"]["going"], await desk.outbox()) == (2, 6, [])
        view = await confirm(desk, client, view)
        assert (view["state"], view["sent"]) == ("sent", 2)
        sent = await repeats(desk)
        assert sorted(str(one.resend_of) for one in sent) == ["one", "two"]
        assert all(one.message_id.startswith("again-") and one.to.contact_id for one in sent)
        await confirm(desk, client, view, messages=2, credits=6)
        assert len(await desk.outbox()) == 2
        old = (await client.get("/messages/one")).json()
        new = next(one.message_id for one in sent if one.resend_of == "one")
        assert (old["status"], old["reason"]["code"]) == ("failed", "INSUFFICIENT_CREDITS")
        assert [one["message_id"] for one in old["sent_again_as"]] == [new]
        await desk.tell(*sent)
        assert (await client.get(f"/messages/{new}")).json()["resend_of"] == "one"
    async with desk.browser(VIEWER) as browser:
        assert f'href="{HOME}/messages/{new}"' in (await browser.get(f"{HOME}/messages/one")).text
        assert f'href="{HOME}/messages/one"' in (await browser.get(f"{HOME}/messages/{new}")).text
    async with desk.pool.acquire() as connection:
        noted = await connection.fetch("select action, result from audit order by audit_id")
    assert {row["action"] for row in noted} == {"confirm send again", "send again"}


async def test_two_plans_at_once_send_each_message_once_and_a_failed_repeat_goes_in_its_stead(desk: Audience) -> None:
    await desk.tell(*(event for number in range(20) for event in short(f"m{number}")))
    async with desk.client(OPERATOR) as one, desk.client(ADMIN) as two:
        first, second = await plan(desk, one), await plan(desk, two)
        assert first["going"] == second["going"] == 20
        done = await asyncio.gather(confirm(desk, one, first), confirm(desk, two, second))
        sent = await repeats(desk)
        assert sorted(str(each.resend_of) for each in sent) == sorted(f"m{number}" for number in range(20))
        assert sorted(view["sent"] for view in done) == [0, 20]
        again = await plan(desk, one)
        assert counts(again) == {"excluded.sent_again": 20}
        assert again["going"] == 0
        # One repeat fails as well: it goes, and not the first message besides.
        repeat = next(each for each in sent if each.resend_of == "m3")
        await desk.tell(repeat, rejected(R.INSUFFICIENT_CREDITS, 9, message_id=repeat.message_id))
        third = await plan(desk, one)
        assert counts(third) == {"goes": 1, "excluded.sent_again": 20}
        rows = (await one.get(f"/send-again/{third['id']}/lines.csv?group=goes")).text
        assert repeat.message_id in rows


async def test_upstream_repeats_count_as_repeats_too(desk: Audience) -> None:
    await desk.tell(*short("one"), requested(message_id="by-upstream", resend_of="one"))
    async with desk.client(OPERATOR) as client:
        assert counts(await plan(desk, client)) == {"excluded.sent_again": 1}
        told = (await client.get("/messages/one")).json()["sent_again_as"]
    assert told == [{"message_id": "by-upstream", "by": None, "at": None}]


async def test_a_world_that_changed_stops_it_before_anything_is_sent(desk: Audience) -> None:
    await desk.tell(*(event for number in range(5) for event in short(f"m{number}")))
    async with desk.client(OPERATOR) as client:
        view = await plan(desk, client)
        for change in ({"price": 2}, {"stopped": {"c-m1"}, "price": 1}, {"down": {"dispatcher"}, "stopped": set()}):
            for name, value in change.items():
                setattr(desk.deciders, name, value)
            stopped = await confirm(desk, client, view)
            assert (stopped["state"], stopped["sent"], await desk.outbox()) == ("stopped", 0, [])
            assert "Nothing was sent" in stopped["told"]
            desk.deciders.down = set()
            await client.post(f"/send-again/{view['id']}/again")
            view = await desk.done(client, f"/send-again/{view['id']}")
        assert view["going"] == 5
        wrong = await confirm(desk, client, view, messages=4, credits=4)
        assert (wrong["state"], await desk.outbox()) == ("stopped", [])


async def test_a_send_that_was_cut_off_goes_on_without_sending_anything_twice(desk: Audience) -> None:
    await desk.tell(*(event for number in range(4) for event in short(f"m{number}")))
    async with desk.client(OPERATOR) as client:
        view = await plan(desk, client)
        path = f"/send-again/{view['id']}"
        await confirm(desk, client, view)
        before = {one.message_id for one in await repeats(desk)}
        async with desk.pool.acquire() as connection:
            # As if the process had died after its last batch, and one line's note with it.
            await connection.execute(
                "update audience set state = 'sending', beat_at = clock_timestamp() - interval '1 hour'"
            )
            await connection.execute("update audience_line set sent_as = null where number = 1")
        assert (await client.get(path)).json()["state"] == "interrupted"
        await client.post(f"{path}/again")
        view = await desk.done(client, path)
        assert (view["going"], counts(view)) == (0, {"goes": 3, "excluded.sent_again": 1})
        assert {one.message_id for one in await repeats(desk)} == before


async def test_only_what_matches_the_list_is_planned_and_an_erased_person_never(desk: Audience) -> None:
    await desk.tell(*short("one"), *short("two"), *short("gone"))
    async with desk.pool.acquire() as connection:
        await connection.execute("update message set erased_at = now() where message_id = 'gone'")
        await connection.execute("update event set body = null where message_id = 'gone'")
    async with desk.client(OPERATOR) as client:
        view = await plan(desk, client, "contact=c-one&status=read")
        assert (view["lines"], counts(view)) == (1, {"goes": 1})
        assert counts(await plan(desk, client)) == {"goes": 2, "excluded.erased": 1}
        nothing = await client.post("/send-again?contact=nobody")
        assert (nothing.status_code, "nothing to send again" in nothing.json()["detail"]) == (422, True)


async def test_as_consent_took_it_is_how_it_goes_again(desk: Audience) -> None:
    other = {"type": "text", "text": {"body": "another body under the same id"}}
    await desk.tell(
        consented(message_id="one"),
        requested(message_id="one", content=other),
        rejected(R.INSUFFICIENT_CREDITS, message_id="one"),
    )
    async with desk.client(OPERATOR) as client:
        await confirm(desk, client, await plan(desk, client))
    [again] = await repeats(desk)
    assert again.content["type"] == "template"


async def test_from_the_list_to_the_button_that_says_how_many_and_for_how_much(desk: Audience) -> None:
    await desk.tell(*short("one"), *short("two"))
    desk.deciders.price = 2
    async with desk.browser(VIEWER) as browser:
        page = (await browser.get(f"{HOME}/messages?status=failed&range=all")).text
        href = unescape(re.search(r'href="([^"]+/send-again[^"]*)"', page)[1])  # type: ignore[index]
        page = (await browser.get(href)).text
        assert "2 failed messages match" in page
        assert re.search(r"disabled aria-describedby=\"who-may\">Judge 2 messages", page)
        assert (await browser.post(f"{HOME}/send-again?status=failed")).status_code == 403
    async with desk.browser(OPERATOR) as browser:
        page = (await browser.get(href)).text
        action = unescape(re.search(r'<form method="post" action="([^"]+/send-again[^"]*)"', page)[1])  # type: ignore[index]
        path = (await browser.post(action)).headers["location"]
        page = await until_done(browser, path)
        assert "Send 2 again for 4 credits" in page
        form = dict(re.findall(r'<input type="hidden" name="(messages|credits)" value="(\d+)"', page))
        answers = [await browser.post(path, data={"do": "confirm", **form}) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [303, 303]
        page = await until_done(browser, path)
        assert "2 of 2 planned messages were asked for again, for up to 4 credits." in page
        assert len(await desk.outbox()) == 2
    async with desk.browser(VIEWER) as browser:
        assert (await browser.post(path, data={"do": "again"})).status_code == 403
        assert "525512345678" not in (await browser.get(path)).text
