"""The inbox over HTTP, on real PostgreSQL: threads by person, the window, answers and who may give them."""

import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from html import escape, unescape
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest
from fastapi import Response
from message_log import accounts
from message_log_builders import (
    CONTACT_IDS,
    OPERATOR,
    STRANGER,
    VIEWER,
    WORKSPACE,
    held,
    rejected,
    requested,
    status,
)
from pages_desk import NOW, SENDER, Desk, open_desk, template, wrote
from sendwhy.events import (
    ContactUpdated,
    MarketingState,
    Origin,
    OriginKind,
    Status,
    To,
    generated_contact_id,
)
from sendwhy.reasons import CATALOGUE, ReasonCode, Service

pytestmark = pytest.mark.postgres
R = ReasonCode
HOME = f"/w/{WORKSPACE}/inbox"
INES = f"{HOME}/with/shopify%3A7712"
SCRIPT = "<script>alert(1)</script>"
HOUR = timedelta(hours=1)


def contact(contact_id: str, phone: str) -> ContactUpdated:
    return ContactUpdated(
        event_id=uuid4(),
        occurred_at=NOW,
        workspace_id=WORKSPACE,
        contact_id=contact_id,
        version=1,
        phone=phone,
        name="Inés",
        marketing_state=MarketingState.SUBSCRIBED,
        since=NOW,
        source="import",
    )


@pytest.fixture
async def desk(migrated_database: str) -> AsyncIterator[Desk]:
    async with open_desk(migrated_database) as desk:
        await desk.know(
            contact("shopify:7712", "+525512345678"),
            template("order_update", "UTILITY", "Order {{1}} is on its way."),
            template("old_news", "MARKETING", "Old", "PAUSED"),
        )
        yield desk


def answer(name: str, text: str, ago: timedelta) -> Any:
    origin = Origin(kind=OriginKind.INBOX, thread_id="shopify:7712", agent="ana")
    content = {"type": "text", "text": {"body": text}}
    return requested(message_id=name, origin=origin, content=content, requested_at=NOW - ago)


def at(ago: timedelta, event: Any) -> Any:
    return event.model_copy(update={"occurred_at": NOW - ago})


async def threads(desk: Desk, query: str = "", token: str = OPERATOR) -> Any:
    return (await desk.get(f"threads{query}", token)).raise_for_status().json()


async def test_a_person_is_one_thread_whatever_the_spelling_of_their_number(desk: Desk) -> None:
    await desk.wrote(wrote("Where is it?", 3 * HOUR), wrote(SCRIPT, HOUR, phone="4915100000000"))
    await desk.tell(answer("in-1", "On its way", 2 * HOUR))
    listed = (await threads(desk))["items"]
    assert [(one["contact_id"], one["name"], one["waits_for_answer"]) for one in listed] == [
        (None, None, True),
        ("shopify:7712", "Inés", False),
    ]
    assert (listed[0]["text"], listed[1]["text"]) == (SCRIPT, None)
    assert listed[1]["message"]["message_id"] == "in-1"
    assert listed[1]["window"]["open"]
    await desk.wrote(wrote("Thanks", timedelta(minutes=1)))
    assert (await threads(desk))["items"][0]["contact_id"] == "shopify:7712"


async def test_threads_go_page_by_page_and_each_stands_once(desk: Desk) -> None:
    await desk.wrote(*(wrote("hello", n * HOUR, phone=f"49151000000{n:02}") for n in range(1, 6)), wrote("x", 9 * HOUR))
    await desk.tell(answer("in-1", "Yes?", HOUR / 2))
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = await threads(desk, f"?limit=2{cursor and '&cursor=' + cursor}")
        seen += [one["contact_id"] or one["phone"] for one in page["items"]]
        cursor = page["next_cursor"]
    assert seen == ["shopify:7712", *(f"+49151000000{n:02}" for n in range(1, 6))]


@pytest.mark.parametrize("contact_id", CONTACT_IDS)
async def test_a_thread_is_found_whatever_its_contacts_id_is_made_of(desk: Desk, contact_id: str) -> None:
    await desk.know(contact(contact_id, "+491510000001"))
    await desk.wrote(wrote("Where is it?", HOUR, phone="491510000001"))
    thread = (await desk.get(f"threads/{quote(contact_id, safe='')}", VIEWER)).json()
    assert [one["text"] for one in thread["items"]] == ["Where is it?"]
    async with desk.browser(OPERATOR) as browser:
        (link, *_) = re.findall(r'href="(/w/acme/inbox/with/[^"]+)"', (await browser.get("/w/acme/inbox")).text)
        place = unescape(link)
        page = await browser.get(place)
        assert (page.status_code, escape(contact_id) in page.text) == (200, True)
        sent = await browser.post(place, data={"text": "Soon", "key": str(uuid4())})
        assert sent.headers["location"].startswith(f"{place}?sent=")
    (request,) = await desk.outbox()
    assert json.loads(request.value)["to"]["contact_id"] == contact_id


async def test_a_thread_has_both_directions_with_words_ticks_and_reasons(desk: Desk) -> None:
    content = {
        "type": "template",
        "template": {
            "name": "order_update",
            "language": {"code": "en_US"},
            "components": [{"type": "body", "parameters": [{"type": "text", "text": "4711"}]}],
        },
    }
    await desk.wrote(wrote("Where is it?", 3 * HOUR))
    await desk.tell(
        requested(message_id="t-1", content=content, requested_at=NOW - 4 * HOUR),
        at(3.9 * HOUR, status(Status.READ, message_id="t-1")),
        answer("in-1", "On its way", 2 * HOUR),
        at(2 * HOUR, rejected(R.INSUFFICIENT_CREDITS, service=Service.BILLING, message_id="in-1", origin=None)),
        answer("in-2", "Soon", HOUR),
        at(HOUR, held(R.RATE_LIMIT_EXCEEDED, message_id="in-2", until=9e8)),
    )
    thread = (await desk.get("threads/shopify%3A7712", VIEWER)).json()
    assert [(one["direction"], one["text"]) for one in thread["items"]] == [
        ("out", "Soon"),
        ("out", "On its way"),
        ("in", "Where is it?"),
        ("out", "Order 4711 is on its way."),
    ]
    assert (thread["name"], thread["phone"]) == ("Inés", "+5255••••5678")
    async with desk.browser(VIEWER) as browser:
        page = unescape((await browser.get(INES)).text)
    mark = re.search(r'<button type="button" class="why-mark" popovertarget="(why-\d)" aria-describedby="\1">', page)
    assert mark is not None
    assert f'id="{mark[1]}" popover role="tooltip"' in page
    for text in ("because of INSUFFICIENT_CREDITS", CATALOGUE[R.INSUFFICIENT_CREDITS].what_to_do, "said by billing"):
        assert text in page
    shown = re.search(r"Window open: you may answer freely for (\d+) h (\d+) min more", page)
    assert shown is not None
    # Shown by whole minutes, and by the clock of now: these tests may run long after NOW.
    left = 21 * HOUR - (datetime.now(UTC) - NOW)
    assert abs(timedelta(hours=int(shown[1]), minutes=int(shown[2])) - left) <= timedelta(minutes=2)
    assert "5512345678" not in page


async def test_an_answer_is_a_request_from_the_number_that_the_person_wrote_to(desk: Desk) -> None:
    await desk.wrote(wrote("Hello?", HOUR), wrote("Hi", 2 * HOUR, sender="415566778899002"))
    async with desk.browser(OPERATOR) as browser:
        page = (await browser.get(INES)).text
        found = re.search(r'name="key" value="([^"]+)"', page)
        assert found is not None
        form = {"key": found[1], "text": "Here:\r\n=1+1 <b>\x00"}
        once, twice = [await browser.post(INES, data=form) for _ in range(2)]
        assert once.headers["location"] == twice.headers["location"] == f"{INES}?sent=inbox-{found[1]}#newest"
        assert "Handed over" in (await browser.get(once.headers["location"])).text
    (record,) = await desk.outbox()
    sent = json.loads(record.value)
    assert (record.topic, sent["message_id"], sent["sender_id"]) == ("send.requested", f"inbox-{found[1]}", SENDER)
    assert sent["content"] == {"type": "text", "text": {"body": "Here:\n=1+1 <b>"}}
    assert sent["to"]["contact_id"] == "shopify:7712"
    assert (sent["origin"]["kind"], sent["origin"]["thread_id"]) == ("inbox", "shopify:7712")
    async with desk.pool.acquire() as connection:
        noted = await accounts.noted(connection, WORKSPACE, None, 10)
    assert {(row["action"], row["target"], row["result"]) for row in noted} == {
        ("reply", "shopify:7712", f"inbox-{found[1]}")
    }


NOT_SAID_TO_US: list[tuple[str | None, dict[str, Any]]] = [
    (None, {"type": "system", "system": {"type": "user_changed_number", "wa_id": "5215500000000"}}),
    (None, {"type": "revoke", "revoke": {"original_message_id": "wamid.A"}}),
    ("See you there", {"type": "text", "group_id": "Y2FwaV9ncm91cDox"}),
]


@pytest.mark.parametrize(("text", "raw"), NOT_SAID_TO_US, ids=["a changed number", "taken back", "to a group"])
async def test_what_is_not_said_to_the_number_waits_for_no_answer_and_opens_no_window(
    desk: Desk, text: str | None, raw: dict[str, Any]
) -> None:
    await desk.wrote(wrote("Hello?", 25 * HOUR), wrote(text, HOUR, **raw))
    thread = (await desk.get("threads/shopify%3A7712", VIEWER)).json()
    assert ([one["text"] for one in thread["items"]], thread["window"]["open"]) == (["Hello?"], False)
    (listed,) = (await threads(desk))["items"]
    assert (listed["text"], listed["window"]["open"]) == ("Hello?", False)


async def test_after_the_window_only_a_template_goes(desk: Desk) -> None:
    await desk.wrote(wrote("Hello?", 25 * HOUR))
    await desk.know(template("theirs", "UTILITY", "Of another account", waba="999"))
    async with desk.browser(OPERATOR) as browser:
        page = (await browser.get(INES)).text
        assert ("Window closed" in page, "<textarea" in page) == (True, False)
        assert re.findall(r'<option value="([^"]+)"( disabled)?', page) == [
            ("old_news/en_US", " disabled"),
            ("order_update/en_US", ""),
        ]
        late = await browser.post(INES, data={"key": str(uuid4()), "text": "Still there?"})
        assert (late.status_code, "takes no free text" in late.text) == (422, True)
        chosen = (await browser.get(INES, params={"template": "order_update/en_US"})).text
        assert ("Order {{1}} is on its way." in chosen, 'name="body.0.1"' in chosen) == (True, True)
        form = {"key": str(uuid4()), "template": "order_update/en_US"}
        empty = await browser.post(INES, data=form)
        assert (empty.status_code, "Fill in {{1}} in the text" in empty.text) == (422, True)
        for wrong in ("old_news/en_US", "theirs/en_US", "none"):
            assert (await browser.post(INES, data=form | {"template": wrong})).status_code == 422
        assert await desk.outbox() == []
        assert (await browser.post(INES, data=form | {"body.0.1": "4711"})).status_code == 303
    (record,) = await desk.outbox()
    assert json.loads(record.value)["content"]["template"]["components"] == [
        {"type": "body", "parameters": [{"type": "text", "text": "4711"}]}
    ]


@pytest.mark.parametrize(
    ("text", "told"), [("", "Write something first"), (" \x01 ", "Write something"), ("x" * 4097, "at most 4,096")]
)
async def test_what_cannot_be_sent_is_told_and_kept(desk: Desk, text: str, told: str) -> None:
    await desk.wrote(wrote("Hello?", HOUR))
    async with desk.browser(OPERATOR) as browser:
        refused = await browser.post(INES, data={"key": "no uuid", "text": text})
    assert (refused.status_code, told in refused.text) == (422, True)
    assert text.strip() in refused.text
    assert await desk.outbox() == []


async def test_a_stranger_is_answered_at_their_number_which_stands_in_no_address(desk: Desk) -> None:
    await desk.wrote(wrote(SCRIPT, HOUR, phone="4915100000000"))
    async with desk.browser(OPERATOR) as browser:
        listed = (await browser.get(HOME)).text
        href = re.search(rf'href="({HOME}/from/[^"]+)"', listed)
        assert href is not None
        assert not re.search(r'href="[^"]*4915', listed)
        page = (await browser.get(href[1])).text
        for text in (listed, page):
            assert (SCRIPT in text, "&lt;script&gt;" in text) == (False, True)
        assert (await browser.post(href[1], data={"key": str(uuid4()), "text": "Hi"})).status_code == 303
    (record,) = await desk.outbox()
    assert json.loads(record.value)["to"] == {"contact_id": None, "phone": "+4915100000000"}
    event_id = href[1].rpartition("/")[2]
    assert (await desk.get(f"inbound/{event_id}/thread", VIEWER)).json()["items"][0]["text"] == SCRIPT


def under(user_id: str, text: str, ago: timedelta) -> Any:
    return wrote(text, ago).model_copy(update={"phone": None, "user_id": user_id})


@pytest.mark.parametrize("known_first", [True, False])
async def test_who_writes_under_their_user_id_stands_in_their_contacts_thread(desk: Desk, *, known_first: bool) -> None:
    linked = contact("shopify:7712", "+525512345678").model_copy(update={"version": 2, "user_id": "MX.7004"})
    said = wrote("Where is it?", 3 * HOUR), under("MX.7004", "Thanks", HOUR), under("MX.7005", "Hello", 30 * HOUR)
    if known_first:
        await desk.know(linked)
    await desk.wrote(*said)
    await desk.tell(answer("in-1", "On its way", 2 * HOUR))
    if not known_first:
        await desk.know(linked)
    ines, other = (await threads(desk))["items"]
    assert (ines["contact_id"], ines["text"], ines["window"]["open"]) == ("shopify:7712", "Thanks", True)
    assert (other["contact_id"], other["phone"], other["text"]) == (None, None, "Hello")
    shown = (await desk.get("threads/shopify:7712", OPERATOR)).raise_for_status().json()
    assert [one["text"] for one in shown["items"]] == ["Thanks", "On its way", "Where is it?"]
    assert shown["window"]["until"] == ines["window"]["until"]


async def test_records_of_one_number_have_one_thread_whichever_the_user_id_is_known_of(desk: Desk) -> None:
    second = contact("shopify:9", "+525512345678").model_copy(update={"user_id": "MX.7004"})
    await desk.know(second)
    await desk.wrote(wrote("Where is it?", HOUR), under("MX.7004", "Hello?", HOUR / 2))
    assert [(one["contact_id"], one["text"]) for one in (await threads(desk))["items"]] == [("shopify:7712", "Hello?")]
    shown = (await desk.get("threads/shopify:7712", OPERATOR)).raise_for_status().json()
    assert [one["text"] for one in shown["items"]] == ["Hello?", "Where is it?"]


async def test_of_whom_only_a_user_id_is_known_what_is_written_and_refused_is_one_thread(desk: Desk) -> None:
    nameless = contact("user:1", "").model_copy(update={"phone": None, "user_id": "MX.7004"})
    await desk.know(nameless)
    await desk.wrote(under("MX.7004", "Hello?", 2 * HOUR))
    unsent = requested(
        message_id="in-9",
        to=To(contact_id="user:1"),
        origin=Origin(kind=OriginKind.INBOX, thread_id="user:1"),
        content={"type": "text", "text": {"body": "Yes?"}},
        requested_at=NOW - HOUR,
    )
    await desk.tell(unsent)
    (only,) = (await threads(desk))["items"]
    assert (only["contact_id"], only["phone"], only["message"]["message_id"]) == ("user:1", None, "in-9")
    assert only["window"]["open"]
    async with desk.browser(OPERATOR) as browser:
        assert "Hello?" in (await browser.get(f"{HOME}/with/user%3A1")).text


async def test_a_stranger_without_a_number_becomes_a_contact_when_they_are_answered(desk: Desk) -> None:
    await desk.wrote(under("MX.7005", "Hello?", HOUR))
    consent, contact_id = desk.dispatcher, generated_contact_id(WORKSPACE, "MX.7005")
    async with desk.browser(OPERATOR) as browser:
        place = re.search(r'href="([^"]*/inbox/from/[^"]*)"', (await browser.get(HOME)).text)
        assert place is not None
        path = unescape(place[1]).split("//log", 1)[-1]
        page = (await browser.get(path)).text
        assert ("Hello?" in page, "Your answer makes them a contact" in page) == (True, True)
        away = await browser.post(path, data={"text": "Yes?"})
        assert (away.status_code, "Yes?" in away.text) == (422, True)
        consent.answers[f"contacts/{contact_id}"] = Response(status_code=404)
        consent.status, consent.refusal = 409, {"detail": "That one was erased."}
        refused = await browser.post(path, data={"text": "Yes?"})
        assert (refused.status_code, "That one was erased." in refused.text) == (422, True)
        assert not await desk.outbox()
        consent.status = 200
        assert (await browser.post(path, data={"text": "Yes?"})).status_code == 303
        puts = [asked for asked in consent.asked if asked[0] == "PUT"]
        at_consent = f"v1/workspaces/{WORKSPACE}/contacts/{contact_id}"
        assert puts == [("PUT", at_consent, {"user_id": "MX.7005"}, "OPERATOR")] * 2
        # Whom consent knows meanwhile is left as they are.
        consent.answers[f"contacts/{contact_id}"] = {"contact_id": contact_id}
        assert (await browser.post(path, data={"text": "Yes!"})).status_code == 303
        assert len([asked for asked in consent.asked if asked[0] == "PUT"]) == 2
    told = [json.loads(record.value)["to"] for record in await desk.outbox()]
    assert told == [{"contact_id": contact_id, "phone": None}] * 2


async def test_a_viewer_sees_the_form_disabled_with_the_reason_and_can_send_nothing(desk: Desk) -> None:
    await desk.wrote(wrote("Hello?", HOUR))
    form = {"key": str(uuid4()), "text": "Hi"}
    async with desk.browser(VIEWER) as viewer:
        page = (await viewer.get(INES, params={"template": "order_update/en_US"})).text
        reply = page[page.index('class="reply"') :]
        assert "You are a viewer here" in reply
        assert "disabled" in (re.search(r"<textarea[^>]*>", reply) or [""])[0]
        assert all("disabled" in tag for tag in re.findall(r'<button type="submit"(?! class="outline")[^>]*>', reply))
        assert (await viewer.post(INES, data=form)).status_code == 403
    async with desk.browser(OPERATOR) as operator:
        foreign = await operator.post(INES, data=form, headers={"sec-fetch-site": "cross-site"})
        assert foreign.status_code == 403
    assert await desk.outbox() == []


async def test_what_is_not_there_or_not_theirs_is_not_found(desk: Desk) -> None:
    await desk.wrote(wrote("Hello?", HOUR))
    for path in ("threads/nobody", "inbound/none/thread", f"inbound/{uuid4()}/thread", "threads/a%00b"):
        assert (await desk.get(path, OPERATOR)).status_code == 404
    async with desk.browser(STRANGER) as stranger:
        assert (await stranger.get(INES)).status_code == 404
        assert (await stranger.post(INES, data={"text": "Hi"})).status_code == 404
        assert "Nobody has written yet" in (await stranger.get("/w/other/inbox")).text
        assert (await stranger.get("/w/other/inbox/with/shopify%3A7712")).status_code == 404


async def test_the_threads_csv_is_safe_and_masked(desk: Desk) -> None:
    await desk.wrote(wrote("=cmd|' /C calc'!A0", HOUR))
    await desk.tell(requested(message_id="m-1", to=To(contact_id="shopify:7712", phone="+525512345678")))
    lines = (await desk.get("threads.csv", VIEWER)).text.splitlines()
    assert "'=cmd" in lines[1]
    assert "5512345678" not in lines[1]
    async with desk.browser(VIEWER) as browser:
        assert (await browser.get(f"{HOME}.csv")).text.splitlines() == lines
