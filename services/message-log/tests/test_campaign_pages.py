"""Campaigns and automations over HTTP, on real PostgreSQL: pages, JSON and CSV say the same, and people steer campaigns
through the dispatcher with their own rights."""

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any
from uuid import uuid4

import pytest
from message_log import accounts, queries, store, volume, words
from message_log.queries import Filters
from message_log.store import HoldRow
from message_log.view import Viewer, WaitingView
from message_log_builders import (
    ADMIN,
    OPERATOR,
    STRANGER,
    VIEWER,
    WORKSPACE,
    after,
    consented,
    held,
    rejected,
    requested,
    status,
)
from pages_desk import SENDER, WABA, Desk, open_desk
from sendwhy.access import Role
from sendwhy.events import Origin, OriginKind, Status, To, Wire
from sendwhy.reasons import CATALOGUE, ReasonCode

pytestmark = pytest.mark.postgres
R = ReasonCode
HOME = f"/w/{WORKSPACE}"
SCRIPT = "<script>alert(1)</script>"
SALE = Origin(kind=OriginKind.CAMPAIGN, id="sale", name="Sale")
KEPT: dict[str, Any] = {
    "campaign_id": "sale",
    "paused_at": None,
    "cancelled_at": None,
    "per_minute": 600,
    "per_day": None,
    "day_start": None,
    "slots_today": 0,
    "waiting": [{"waiting_for": "throttle", "messages": 7, "oldest": after(0).isoformat()}],
}


@pytest.fixture
async def desk(migrated_database: str) -> AsyncIterator[Desk]:
    async with open_desk(migrated_database) as desk:
        desk.dispatcher.answers = {"campaigns/sale": KEPT, "queue": {"items": []}}
        yield desk


def sale_events() -> list[Wire]:
    """Ten messages: 2 rejected, 1 failed, 3 read, 1 delivered, 1 accepted, 1 waits, 1 is on its way."""
    wanted = [requested(message_id=f"s-{n}", origin=SALE) for n in range(10)]
    ends: list[Wire] = [
        rejected(R.CUSTOMER_IS_NOT_OPTED_IN, 2, message_id="s-0", origin=SALE),
        rejected(R.CUSTOMER_IS_NOT_OPTED_IN, 3, message_id="s-1", origin=SALE),
        status(Status.FAILED, 9, R.RECIPIENT_NOT_ON_WHATSAPP, message_id="s-2"),
        *(status(Status.READ, 60 + n, message_id=f"s-{n}") for n in (3, 4, 5)),
        status(Status.DELIVERED, 61, message_id="s-6"),
        status(Status.ACCEPTED, 62, message_id="s-7"),
        held(R.MESSAGING_LIMIT_REACHED, 5, until=9e8, message_id="s-8"),
    ]
    return [*wanted, *ends]


async def test_pages_json_and_csv_say_the_same(desk: Desk) -> None:
    await desk.tell(*sale_events())
    listed = (await desk.get("campaigns", VIEWER)).json()["items"]
    assert [(one["id"], one["name"], one["total"]) for one in listed] == [("sale", "Sale", 10)]
    counts = {"sending": 2, "waiting": 1, "sent": 0, "delivered": 1, "read": 3, "failed": 3}
    assert listed[0]["by_status"] == counts
    one = (await desk.get("campaigns/sale", VIEWER)).json()
    assert (one["by_status"], one["total"]) == (counts, 10)
    assert [(f["reason"], f["count"], f["example"]) for f in one["by_reason"]] == [
        ("CUSTOMER_IS_NOT_OPTED_IN", 2, "s-1"),
        ("RECIPIENT_NOT_ON_WHATSAPP", 1, "s-2"),
    ]
    assert [(w["cause"], w["count"]) for w in one["waiting"]] == [("MESSAGING_LIMIT_REACHED", 1)]
    assert (one["progress"]["done"], one["progress"]["total"]) == (8, 10)
    assert sum(sum(bar["by_status"].values()) for bar in one["bars"]) == 8
    lines = (await desk.get("campaigns.csv", VIEWER)).text.splitlines()
    assert lines[1].startswith("sale,Sale,10,2,1,0,1,3,3,")
    async with desk.browser(OPERATOR) as browser:
        page = (await browser.get(f"{HOME}/campaigns/sale")).text
        tiles = re.findall(r'<a class="tile (\w+)" href="([^"]+)">\s*<span class="tile-count">(\d+)<', page)
        assert {name: int(count) for name, _, count in tiles} == counts
        for _, href, count in tiles:
            assert (await browser.get(unescape(href))).text.count('class="row ') == int(count)
        assert (await browser.get(f"{HOME}/campaigns.csv")).text.splitlines() == lines


async def test_what_is_scheduled_waits_for_its_time_and_goes_on_at_it(desk: Desk) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    asked = (now + timedelta(days=1), now - timedelta(minutes=1), None)
    origin, begun = SALE.model_copy(update={"id": "planned"}), now - timedelta(hours=1)
    wanted = [
        requested(message_id=f"p-{n}", origin=origin, requested_at=begun, send_at=at) for n, at in enumerate(asked)
    ]
    await desk.tell(*wanted)
    async with desk.pool.acquire() as connection:
        page = await queries.list_messages(connection, WORKSPACE, Filters(campaign="planned"))
        listed = await queries.list_messages(connection, WORKSPACE, Filters(campaign="planned", status="waiting"))
    shown = {row["message_id"]: Viewer(Role.VIEWER, "").message(row) for row in page.rows}
    assert {name: message.status for name, message in shown.items()} == {
        "p-0": "waiting",
        "p-1": "sending",
        "p-2": "sending",
    }
    expires_at = wanted[0].expiry(now)
    assert shown["p-0"].waiting == WaitingView(
        cause="EXPIRED_BEFORE_SENDING",
        since=begun,
        until=now + timedelta(days=1),
        scheduled=True,
        expires_at=expires_at,
    )
    assert [row["message_id"] for row in listed.rows] == ["p-0"]
    one = (await desk.get("campaigns/planned", VIEWER)).json()
    assert [(w["count"], w["scheduled"]) for w in one["waiting"]] == [(1, True)]
    async with desk.browser(VIEWER) as browser:
        for path in ("messages/p-0", "messages?range=all&campaign=planned", "campaigns/planned"):
            assert "Scheduled for later" in (await browser.get(f"{HOME}/{path}")).text
        assert (
            f"If it still waits on {words.absolute(expires_at)}, it fails."
            in (await browser.get(f"{HOME}/messages/p-0")).text
        )


async def test_a_campaign_whose_rest_goes_at_its_own_time_says_when_once(desk: Desk) -> None:
    at = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    for number, name in enumerate(("one", "two"), 1):
        origin = SALE.model_copy(update={"id": name})
        await desk.tell(*(requested(message_id=f"{name}-{n}", origin=origin, send_at=at) for n in range(number)))
        turn = {"waiting_for": "turn", "messages": number, "oldest": after(0).isoformat()}
        desk.dispatcher.answers[f"campaigns/{name}"] = KEPT | {"waiting": [turn]}
    when = words.absolute(at)
    async with desk.browser(VIEWER) as browser:
        one, two = [(await browser.get(f"{HOME}/campaigns/{name}")).text for name in ("one", "two")]
    assert f"The last one goes at its own time, from {when} on." in one
    assert f"1 goes out at its own time, from {when} on" in one
    assert f"The others go at their own times, the last from {when} on." in two
    assert f"2 go out at their own times, the last from {when} on" in two
    for page in (one, two):
        assert "nobody can say" not in page
        assert "for a turn" not in page


async def test_a_call_whose_answer_got_lost_waits_for_a_receipt_and_asks_nothing_of_anybody(desk: Desk) -> None:
    later = (datetime.now(UTC) - after(0)).total_seconds() + 600
    await desk.tell(requested(message_id="cut"), held(R.SEND_OUTCOME_UNKNOWN, message_id="cut", until=later))
    async with desk.browser(VIEWER) as browser:
        for path in ("messages/cut", "messages?range=all"):
            page = (await browser.get(f"{HOME}/{path}")).text
            assert "A receipt tells whether Meta took it; without one it fails at" in page
            assert 'class="todo"' not in page


async def test_what_cost_a_campaign_most_stands_first_with_its_next_step_one_click_from_a_message(desk: Desk) -> None:
    await desk.tell(*sale_events())
    async with desk.browser(VIEWER) as browser:
        page = (await browser.get(f"{HOME}/campaigns/sale")).text
    assert page.index("Customer is not opted in") < page.index("Recipient is not on WhatsApp")
    assert CATALOGUE[R.CUSTOMER_IS_NOT_OPTED_IN].what_to_do.split(".")[0] in unescape(page)
    for name in ("s-0", "s-1", "s-2"):
        assert f'href="{HOME}/messages/{name}"' in page
    assert "5512345678" not in page
    assert "<strong>7</strong> for a slot in the campaign’s throttle" in page
    assert 'value="600"' in page


async def test_a_campaign_tells_its_pace_and_its_end(desk: Desk) -> None:
    now = datetime.now(UTC)
    fresh = [status(Status.ACCEPTED, message_id=f"s-{n}").model_copy(update={"occurred_at": now}) for n in range(5)]
    await desk.tell(*(requested(message_id=f"s-{n}", origin=SALE) for n in range(10)), *fresh)
    progress = (await desk.get("campaigns/sale", VIEWER)).json()["progress"]
    assert (progress["done"], progress["per_minute"]) == (5, 1.0)
    ends_at = datetime.fromisoformat(progress["ends_at"])
    assert timedelta(minutes=5) <= ends_at - now < timedelta(minutes=6)
    async with desk.browser(VIEWER) as browser:
        page = (await browser.get(f"{HOME}/campaigns/sale")).text
        assert "about 1 a minute, the last one leaves by" in page
        part = await browser.get(f"{HOME}/campaigns/sale", headers={"hx-request": "true", "hx-request-type": "partial"})
    assert part.text.lstrip().startswith('<section id="course"')


@pytest.mark.parametrize(
    ("form", "asked"),
    [
        ({"do": "pause"}, ("POST", "campaigns/sale/pause", None)),
        ({"do": "resume"}, ("POST", "campaigns/sale/resume", None)),
        ({"do": "cancel", "sure": "1"}, ("POST", "campaigns/sale/cancel", None)),
        ({"do": "throttle", "per_minute": "30"}, ("PUT", "throttles/sale", {"per_minute": 30, "per_day": None})),
    ],
)
async def test_what_an_operator_sets_is_set_at_the_dispatcher_in_their_name(
    desk: Desk, form: dict[str, str], asked: tuple[str, str, Any]
) -> None:
    await desk.tell(*sale_events())
    async with desk.browser(OPERATOR) as browser:
        answer = await browser.post(f"{HOME}/campaigns/sale", data=form)
        assert (answer.status_code, answer.headers["location"]) == (303, f"{HOME}/campaigns/sale?done={form['do']}")
        assert 'class="done" role="status"' in (await browser.get(answer.headers["location"])).text
    method, path, body = asked
    writes = [one for one in desk.dispatcher.asked if one[0] != "GET"]
    assert writes == [(method, f"v1/workspaces/{WORKSPACE}/{path}", body, "OPERATOR")]
    async with desk.pool.acquire() as connection:
        noted = await accounts.noted(connection, WORKSPACE, None, 10)
    assert [(row["action"], row["target"], row["result"]) for row in noted] == [
        (f"{form['do']} campaign", path, "done")
    ]


@pytest.mark.parametrize(
    ("form", "told"),
    [
        ({"do": "cancel"}, "Tick that you are sure"),
        ({"do": "throttle", "per_minute": "many"}, "Messages per minute: give a whole number"),
        ({"do": "explode"}, "asks for nothing that a campaign knows"),
        ({}, "asks for nothing that a campaign knows"),
    ],
)
async def test_a_form_that_cannot_be_meant_changes_nothing(desk: Desk, form: dict[str, str], told: str) -> None:
    await desk.tell(*sale_events())
    async with desk.browser(OPERATOR) as browser:
        answer = await browser.post(f"{HOME}/campaigns/sale", data=form)
    assert (answer.status_code, told in answer.text) == (422, True)
    assert all(method == "GET" for method, *_ in desk.dispatcher.asked)


async def test_the_dispatchers_refusal_is_told_in_its_words(desk: Desk) -> None:
    await desk.tell(*sale_events())
    desk.dispatcher.status = 422
    desk.dispatcher.refusal = {"detail": "It has fields that are wrong.", "errors": {"per_day": "too many <b>"}}
    async with desk.browser(OPERATOR) as browser:
        answer = await browser.post(f"{HOME}/campaigns/sale", data={"do": "throttle", "per_day": "5"})
    assert answer.status_code == 422
    assert "It has fields that are wrong. (per_day: too many &lt;b&gt;)" in answer.text


async def test_a_viewer_sees_every_button_disabled_with_the_reason_and_can_press_none(desk: Desk) -> None:
    await desk.tell(*sale_events())
    async with desk.browser(VIEWER) as browser:
        page = (await browser.get(f"{HOME}/campaigns/sale")).text
        steer = page[page.index("Steer it") :]
        assert "You are a viewer here" in steer
        assert all("disabled" in tag for tag in re.findall(r"<button[^>]*value=[^>]*>|<fieldset[^>]*>", steer))
        assert (await browser.post(f"{HOME}/campaigns/sale", data={"do": "pause"})).status_code == 403
    async with desk.browser(OPERATOR) as operator:
        foreign = {"sec-fetch-site": "cross-site"}
        answer = await operator.post(f"{HOME}/campaigns/sale", data={"do": "pause"}, headers=foreign)
        assert answer.status_code == 403
    assert all(method == "GET" for method, *_ in desk.dispatcher.asked)


async def test_without_the_dispatcher_the_page_stands_and_says_what_it_does_not_know(desk: Desk) -> None:
    await desk.tell(*sale_events())
    desk.dispatcher.answers = {}
    async with desk.browser(OPERATOR) as browser:
        for path in ("campaigns", "campaigns/sale"):
            answer = await browser.get(f"{HOME}/{path}")
            assert (answer.status_code, "dispatcher answered 500; try again" in answer.text) == (200, True)


async def test_a_paused_and_a_cancelled_campaign_say_so(desk: Desk) -> None:
    await desk.tell(*sale_events())
    async with desk.browser(OPERATOR) as browser:
        desk.dispatcher.answers["campaigns/sale"] = KEPT | {"paused_at": after(9).isoformat()}
        paused = (await browser.get(f"{HOME}/campaigns/sale")).text
        desk.dispatcher.answers["campaigns/sale"] = KEPT | {"cancelled_at": after(9).isoformat()}
        cancelled = (await browser.get(f"{HOME}/campaigns/sale")).text
    assert ("Resume the campaign" in paused, "nobody can say when the rest goes" in paused) == (True, True)
    assert ("is-cancelled" in cancelled, "Cancelled</span>" in cancelled) == (True, True)


async def test_hostile_names_stay_text_and_are_reached(desk: Desk) -> None:
    evil = Origin(kind=OriginKind.CAMPAIGN, id=f"a/b?c=d#{SCRIPT}", name=f"=HYPERLINK({SCRIPT})")
    robot = Origin(kind=OriginKind.AUTOMATION, id=SCRIPT, name=SCRIPT, node_id=SCRIPT)
    given: dict[str, Any] = {"to": To(contact_id=SCRIPT, phone="+525512345678")}
    await desk.tell(
        requested(message_id="e-1", origin=evil, **given),
        rejected(R.META_ERROR, message_id="e-1", origin=evil, **given),
        requested(message_id="e-2", origin=robot, **given),
        rejected(R.META_ERROR, message_id="e-2", origin=robot, **given),
    )
    async with desk.browser(ADMIN) as browser:
        for kind in ("campaigns", "automations"):
            text = (await browser.get(f"{HOME}/{kind}")).text
            href = re.search(rf'<th scope="row"><a href="({HOME}/{kind}/[^"]+)"', text)
            assert href is not None
            for page in (text, (await browser.get(unescape(href[1]))).raise_for_status().text):
                assert SCRIPT not in page
                assert "&lt;script&gt;alert(1)" in page
        missed = (await browser.get(f"{HOME}/campaigns", params={"q": SCRIPT + "x"})).text
        assert ("No campaign matches" in missed, SCRIPT in missed) == (True, False)
    assert "'=HYPERLINK" in (await desk.get("campaigns.csv", VIEWER)).text


async def test_what_is_not_there_or_not_theirs_is_not_found(desk: Desk) -> None:
    await desk.tell(*sale_events())
    for path in ("campaigns/none", "automations/none", "automations/none/people", "campaigns/sale%00"):
        assert (await desk.get(path, ADMIN)).status_code == 404
    assert (await desk.get("campaigns", STRANGER)).status_code == 404
    assert (await desk.get("campaigns?cursor=_w", ADMIN)).status_code == 422
    async with desk.browser(STRANGER) as stranger:
        for path in ("campaigns", "campaigns/sale", "automations", "campaigns.csv"):
            assert (await stranger.get(f"{HOME}/{path}")).status_code == 404
        assert "No campaign yet" in (await stranger.get("/w/other/campaigns")).text
        assert "No automation yet" in (await stranger.get("/w/other/automations")).text


async def test_lists_go_page_by_page_and_miss_nothing(desk: Desk) -> None:
    origins = [Origin(kind=OriginKind.CAMPAIGN, id=f"c-{n}") for n in range(7)]
    await desk.tell(
        *(requested(message_id=f"p-{n}", origin=one, requested_at=after(n % 3)) for n, one in enumerate(origins))
    )
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = (await desk.get(f"campaigns?limit=2{cursor and '&cursor=' + cursor}", VIEWER)).json()
        seen += [one["id"] for one in page["items"]]
        cursor = page["next_cursor"]
    assert sorted(seen) == [f"c-{n}" for n in range(7)]
    assert [one["id"] for one in (await desk.get("campaigns?q=-3", VIEWER)).json()["items"]] == ["c-3"]


async def test_a_campaign_is_found_by_a_part_of_its_id_or_name(desk: Desk) -> None:
    autumn = Origin(kind=OriginKind.CAMPAIGN, id="as-26", name="Autumn sale")
    other = Origin(kind=OriginKind.CAMPAIGN, id="win-back")
    await desk.tell(requested(message_id="a", origin=autumn), requested(message_id="b", origin=other))

    async def found(words: str) -> list[str]:
        return [one["id"] for one in (await desk.get(f"campaigns?q={words}", VIEWER)).json()["items"]]

    assert [await found(words) for words in ("autumn+SALE", "s-2", "WIN", "spring")] == [
        ["as-26"],
        ["as-26"],
        ["win-back"],
        [],
    ]
    async with desk.browser(VIEWER) as browser:
        assert "Autumn sale" in (await browser.get(f"{HOME}/campaigns?q=autumn")).text
        assert "No campaign matches" in (await browser.get(f"{HOME}/campaigns?q=spring")).text
        assert "win-back" not in (await browser.get(f"{HOME}/campaigns.csv?q=autumn")).text


async def test_an_automation_is_told_node_by_node_and_person_by_person(desk: Desk) -> None:
    def run(name: str, node: str, seconds: float, contact: str | None, phone: str) -> Wire:
        origin = Origin(kind=OriginKind.AUTOMATION, id="cart", name="Cart", node_id=node)
        to = To(contact_id=contact, phone=phone)
        return requested(message_id=name, origin=origin, to=to, requested_at=after(seconds))

    await desk.tell(
        run("a-1", "welcome", 1, "ana", "+525500000001"),
        run("a-2", "remind", 9, "ana", "+525500000001"),
        run("b-1", "welcome", 5, None, "+525500000002"),
        rejected(R.INSUFFICIENT_CREDITS, 10, message_id="a-2", origin=None, to=None),
        status(Status.READ, 6, message_id="b-1"),
    )
    one = (await desk.get("automations/cart", VIEWER)).json()
    assert [node["node_id"] for node in one["nodes"]] == ["welcome", "remind"]
    assert (one["total"], one["name"], [f["reason"] for f in one["by_reason"]]) == (3, "Cart", ["INSUFFICIENT_CREDITS"])
    first = (await desk.get("automations/cart/people?limit=1", VIEWER)).json()
    then = (await desk.get(f"automations/cart/people?limit=1&cursor={first['next_cursor']}", VIEWER)).json()
    people = [[m["message_id"] for m in who["items"]] for page in (first, then) for who in page["items"]]
    assert people == [["a-1", "a-2"], ["b-1"]]
    assert then["next_cursor"] is None
    async with desk.browser(VIEWER) as browser:
        page = (await browser.get(f"{HOME}/automations/cart")).text
    assert "525500000002" not in page
    for text in ("Insufficient credits", CATALOGUE[R.INSUFFICIENT_CREDITS].what_to_do.split(",")[0], "remind"):
        assert text in page


@pytest.mark.parametrize(
    ("scope", "scope_id", "counted"),
    [
        ("campaign", "sale", 2),
        ("sender", SENDER, 2),
        ("account", WABA, 2),
        ("template", "other", 1),
        ("sender", "1", 1),
    ],
)
async def test_what_is_held_is_counted_as_the_list_counts_it(
    desk: Desk, scope: str, scope_id: str, counted: int
) -> None:
    """Whatever holds it: of two open messages, one waits by itself until later, one waited until a moment ago."""
    await desk.tell(
        *(requested(message_id=f"s-{n}", origin=SALE) for n in range(3)),
        status(Status.READ, message_id="s-2"),
        held(R.MESSAGING_LIMIT_REACHED, 5, until=9e8, message_id="s-0"),
        held(R.MESSAGING_LIMIT_REACHED, 5, until=6, message_id="s-1"),
    )
    row = HoldRow(WORKSPACE, scope, scope_id, uuid4(), after(9), R.META_PAYMENT_ISSUE, after(9), None)
    async with desk.pool.acquire() as connection:
        await store.set_holds(connection, [row])
    one = (await desk.get("campaigns/sale", VIEWER)).json()
    assert one["by_status"]["waiting"] == counted == sum(wait["count"] for wait in one["waiting"])
    async with desk.browser(VIEWER) as browser:
        page = await browser.get(f"{HOME}/messages", params={"campaign": "sale", "status": "waiting", "range": "all"})
    assert page.text.count('class="row ') == counted


async def test_a_campaigns_hold_keeps_no_automation_of_the_same_id(desk: Desk) -> None:
    await desk.tell(
        *(
            requested(message_id=f"s-{kind}", origin=Origin(kind=kind, id="sale", node_id="n"))
            for kind in (OriginKind.CAMPAIGN, OriginKind.AUTOMATION)
        )
    )
    row = HoldRow(WORKSPACE, "campaign", "sale", uuid4(), after(9), R.EXPIRED_BEFORE_SENDING, after(9), None)
    async with desk.pool.acquire() as connection:
        await store.set_holds(connection, [row])
    for group, waiting in (("campaigns", 1), ("automations", 0)):
        told = (await desk.get(f"{group}/sale", VIEWER)).json()
        assert told["by_status"].get("waiting", 0) == waiting
        one = group.removesuffix("s")
        async with desk.browser(VIEWER) as browser:
            page = await browser.get(f"{HOME}/messages", params={one: "sale", "status": "waiting", "range": "all"})
            both = await browser.get(f"{HOME}/messages", params={"q": "sale", "range": "all"})
        assert page.text.count('class="row ') == waiting
        assert both.text.count('class="row ') == 2
        async with desk.pool.acquire() as connection:
            counted = await volume.measure(connection, WORKSPACE, Filters.model_validate({one: "sale"}), after(3600))
        assert counted.by_status["waiting"] == waiting


async def test_a_campaign_counts_alike_in_whatever_order_its_events_come(desk: Desk) -> None:
    events = [*sale_events(), *(consented(1, message_id=f"s-{n}", origin=SALE) for n in range(2, 10))]
    await desk.tell(*reversed(events))
    before = (await desk.get("campaigns/sale", VIEWER)).json()
    for event in events:
        await desk.tell(event)
    assert (await desk.get("campaigns/sale", VIEWER)).json() == before
