"""Contacts, credits, templates and senders over HTTP, as somebody without script sees them."""

import asyncio
import csv
import html
import io
import re
import socket
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import httpx
import pytest
from message_log.eligibility import GateView, Judged, verdict_of
from message_log.services import PART_SECONDS
from message_log_builders import CONTACT_IDS, OPERATOR, STRANGER, VIEWER, WORKSPACE, after, rejected, requested
from people_desk import (
    ANSWERS,
    CONTACT,
    ENTRY,
    HEALTH,
    PERSON,
    PHONE,
    RESOLVED,
    SAME_SITE,
    SCRIPT,
    SENDER,
    SENDER_TOLD,
    Desk,
    contact,
    gate,
    gates,
    open_desk,
    template,
)
from pydantic import HttpUrl
from sendwhy.events import MarketingState, Origin, OriginKind, reason
from sendwhy.http import cursor_of
from sendwhy.reasons import ReasonCode, Service

pytestmark = pytest.mark.postgres


def refusal(code: ReasonCode) -> dict[str, Any]:
    return reason(code, SCRIPT, {"phone": PHONE, SCRIPT: SCRIPT}).model_dump(mode="json")


@pytest.fixture
async def desk(migrated_database: str) -> AsyncIterator[Desk]:
    async with open_desk(migrated_database) as opened:
        await opened.know(template())
        opened.others.answers = dict(ANSWERS)
        yield opened


async def test_contacts_are_found_by_id_name_and_phone(desk: Desk) -> None:
    await desk.know(
        contact("c-1", name="Inés Ortega", phone="+525511111111"),
        contact("c-2", name=None, phone=None, phone_given="5512345678", marketing_state=MarketingState.UNSUBSCRIBED),
        contact("c-3", name=SCRIPT, phone="+5215533333333"),
        contact("c-9", workspace_id="other", name="Inés"),
    )

    async def found(token: str = OPERATOR, **asked: str) -> list[str]:
        return [one["contact_id"] for one in (await desk.get("contacts", token, **asked)).json()["items"]]

    assert await found() == ["c-1", "c-2", "c-3"]
    assert await found(q="ortega") == await found(q="C-1") == await found(q="+52 55 1111") == ["c-1"]
    assert await found(q="+52 55 3333 3333") == ["c-3"]
    assert await found(state="UNSUBSCRIBED") == await found(unreadable="yes") == ["c-2"]
    assert await found(q="%") == await found(q="nobody") == []
    # A viewer finds a whole number, as in the messages, but can't feel their way along a masked one.
    assert await found(VIEWER, q="+525511111111") == ["c-1"]
    assert await found(VIEWER, q="52551111") == []
    assert (await desk.get("contacts", STRANGER)).status_code == 404


async def test_contacts_are_paged_and_exported_and_a_viewer_sees_masks(desk: Desk) -> None:
    await desk.know(*(contact(f"c-{number}", name=f"=1+{number}") for number in range(3)))
    first = (await desk.get("contacts", VIEWER, limit="2")).json()
    rest = (await desk.get("contacts", VIEWER, limit="2", cursor=first["next_cursor"])).json()
    assert [one["contact_id"] for one in first["items"] + rest["items"]] == ["c-0", "c-1", "c-2"]
    assert {one["phone"] for one in first["items"]} == {"+5255••••5678"}
    rows = list(csv.DictReader(io.StringIO((await desk.get("contacts.csv", VIEWER)).text)))
    assert [row["contact_id"] for row in rows] == ["c-0", "c-1", "c-2"]
    assert all(row["name"].startswith("'=") and PHONE not in str(row) for row in rows)
    async with desk.browser(VIEWER) as browser:
        page = (await browser.get("contacts")).text
    assert (PHONE in page, "+5255••••5678" in page) == (False, True)
    for bad in ("_w", cursor_of("other/c-0")):
        assert (await desk.get("contacts", OPERATOR, cursor=bad)).status_code == 422


async def test_every_gate_of_three_services_is_asked_with_the_persons_own_rights(desk: Desk) -> None:
    desk.others.answers["billing evaluate"] = gates(
        gate("credits", False, reason=refusal(ReasonCode.INSUFFICIENT_CREDITS), evidence={"balance": 0})
    )
    async with desk.browser(VIEWER) as browser:
        page = (await browser.get(f"contacts/{CONTACT}")).text
    asked = {one.service: one for one in desk.others.asked if one.path == "evaluate"}
    assert {one.role for one in asked.values()} == {"VIEWER"}
    assert "resolved" not in asked["consent"].body
    assert asked["billing"].body["resolved"] == asked["dispatcher"].body["resolved"] == [RESOLVED]
    (request,) = asked["dispatcher"].body["requests"]
    assert (request["to"], request["purpose"]) == ({"contact_id": CONTACT}, "marketing")
    assert [len(part["parameters"]) for part in request["content"]["template"]["components"]] == [2]
    for words in ("Would not be sent now", "Insufficient credits", "Consent to marketing", "Messaging limit"):
        assert words in page
    assert (SCRIPT in page, html.escape(SCRIPT) in page, PHONE in page.split("<aside")[0]) == (False, True, False)


async def test_a_pause_is_told_as_one_and_not_as_an_expiry(desk: Desk) -> None:
    wait = {"waits_for": "paused", "cause": "EXPIRED_BEFORE_SENDING", "until": None}
    desk.others.answers["dispatcher evaluate"] = gates(gate("paused", False, evidence=wait))
    async with desk.browser(VIEWER) as browser:
        page = (await browser.get(f"contacts/{CONTACT}")).text
    assert "Expired before sending" not in page
    for words in ("<strong>Paused</strong>: it would wait, until somebody resumes it", "Resume what is paused."):
        assert words in page


async def test_eligibility_as_json_is_asked_with_the_callers_own_token(desk: Desk) -> None:
    answer = (await desk.get(f"contacts/{CONTACT}/eligibility", VIEWER, template="autumn_sale", sender=SENDER)).json()
    assert {one.role for one in desk.others.asked} == {VIEWER}
    assert (answer["verdict"], answer["sampled"], answer["language"]) == ("passes", 2, "es_MX")
    assert [one["service"] for one in answer["services"]] == ["consent", "billing", "dispatcher"]
    assert answer["services"][0]["gates"][0]["evidence"]["phone"] == "+5255••••5678"
    clear = (await desk.get(f"contacts/{CONTACT}/eligibility", OPERATOR)).json()
    assert (clear["purpose"], clear["services"][0]["gates"][0]["evidence"]["phone"]) == ("conversation", PHONE)
    unknown = await desk.get(f"contacts/{CONTACT}/eligibility", VIEWER, template="none")
    assert (unknown.status_code, "template" in unknown.text) == (422, True)
    assert (await desk.get(f"contacts/{CONTACT}/eligibility", STRANGER)).status_code == 404


async def test_a_service_that_cant_be_asked_is_never_a_pass(desk: Desk) -> None:
    for service, status in (("billing", 500), ("dispatcher", 403), ("consent", 500)):
        before = desk.others.answers[f"{service} evaluate"]
        desk.others.answers[f"{service} evaluate"] = (status, {"detail": "Broken"})
        answer = (await desk.get(f"contacts/{CONTACT}/eligibility", OPERATOR)).json()
        assert answer["verdict"] == "unknown"
        assert next(one["fault"] for one in answer["services"] if one["service"] == service)
        desk.others.answers[f"{service} evaluate"] = before
    desk.others.answers["dispatcher evaluate"] = (200, {"results": []})
    assert (await desk.get(f"contacts/{CONTACT}/eligibility", OPERATOR)).json()["verdict"] == "unknown"


@pytest.mark.parametrize(
    ("told", "verdict"),
    [
        ([True, True], "passes"),
        ([True, None], "unknown"),
        ([None, False], "stopped"),
        ([True, "waits"], "waits"),
        (["waits", False], "stopped"),
        ([], "unknown"),
    ],
)
def test_one_no_is_a_no_and_a_pass_needs_every_word(told: list[Any], verdict: str) -> None:
    given = [
        GateView(gate=str(n), passed=False if one == "waits" else one, waits=one == "waits")
        for n, one in enumerate(told)
    ]
    assert verdict_of([Judged(service=Service.DISPATCHER, gates=given, fault=None)])[0] == verdict


@pytest.mark.parametrize("contact_id", CONTACT_IDS)
async def test_a_contact_is_found_whatever_its_id_is_made_of(desk: Desk, contact_id: str) -> None:
    await desk.know(contact(contact_id))
    answer = await desk.get(f"contacts/{quote(contact_id, safe='')}/eligibility", VIEWER)
    assert (answer.status_code, answer.json()["verdict"]) == (200, "passes")
    asked = next(one for one in desk.others.asked if one.service == "consent")
    assert asked.body["requests"][0]["to"] == {"contact_id": contact_id}
    desk.others.answers[f"consent contacts/{contact_id}/subscribe"] = (200, PERSON)
    async with desk.browser(OPERATOR) as browser:
        place = link_in((await browser.get("contacts")).text, "contacts/")
        page = await browser.get(place)
        assert (page.status_code, html.escape(contact_id) in page.text) == (200, True)
        assert f'action="/w/{WORKSPACE}/{place}"' in page.text
        done = await browser.post(place, data={"do": "subscribe"})
        assert done.headers["location"] == f"/w/{WORKSPACE}/{place}?done=subscribe"
    assert [one.path for one in desk.others.writes()] == [f"contacts/{contact_id}/subscribe"]


@pytest.mark.parametrize("contact_id", CONTACT_IDS)
async def test_a_login_leads_back_to_whatever_contact_it_was(desk: Desk, contact_id: str) -> None:
    await desk.know(contact(contact_id))
    transport, place = httpx.ASGITransport(desk.app), f"/w/{WORKSPACE}/contacts/{quote(contact_id, safe='')}?done=x"
    async with httpx.AsyncClient(transport=transport, base_url="http://log", headers=SAME_SITE) as client:
        (wanted,) = parse_qs(urlsplit((await client.get(place)).headers["location"]).query)["next"]
        back = (await client.post("/login", data={"token": VIEWER, "next": wanted})).headers["location"]
        page = await client.get(back)
    assert (page.status_code, html.escape(contact_id) in page.text, urlsplit(back).query) == (200, True, "done=x")


def link_in(page: str, place: str) -> str:
    """Where the first link to such a place leads, below the workspace."""
    (found, *_) = re.findall(rf'href="/w/{WORKSPACE}/({place}[^"]+)"', page)
    return html.unescape(found)


async def test_subscribing_with_proof_is_consents_and_noted_and_not_a_viewers(desk: Desk) -> None:
    path = f"contacts/{CONTACT}"
    desk.others.answers[f"consent {path}/subscribe"] = (200, PERSON)
    desk.others.answers[f"consent {path}/suggestion/accept"] = (
        409,
        {"detail": "Refused: it has changed", "errors": {"phone": "is another one"}},
    )
    async with desk.browser(VIEWER) as browser:
        page = (await browser.get(path)).text
        assert "This needs the role operator; you are viewer." in page
        assert page.count('value="subscribe" disabled aria-describedby="who-may"') == 1
        assert (await browser.post(path, data={"do": "subscribe"})).status_code == 403
    async with desk.browser(OPERATOR) as browser:
        answer = await browser.post(path, data={"do": "subscribe", "proof": "form 17", "at": ""})
        assert (answer.status_code, answer.headers["location"].endswith("?done=subscribe")) == (303, True)
        refused = await browser.post(path, data={"do": "accept", "phone": PHONE, "ground": "shop_country"})
        assert (refused.status_code, "Refused: it has changed" in refused.text) == (409, True)
        assert "(phone: is another one)" in refused.text
        foreign = await browser.post(path, data={"do": "subscribe"}, headers={"sec-fetch-site": "cross-site"})
        assert foreign.status_code == 403
        assert (await browser.post(path, data={"do": "erase"})).status_code == 422
        assert (await browser.get("contacts/nobody")).status_code == 404
    first, second = desk.others.writes()
    assert (first.path, first.body, first.role) == (f"{path}/subscribe", {"proof": "form 17"}, "OPERATOR")
    assert second.body == {"phone": PHONE, "ground": "shop_country", "note": None}
    async with desk.pool.acquire() as connection:
        noted = await connection.fetch("select action, result from audit where workspace_id = $1", WORKSPACE)
    assert [tuple(row) for row in noted] == [
        ("subscribe", "done"),
        ("accept suggestion", "Refused: it has changed (phone: is another one)"),
    ]


async def test_a_suggestion_is_shown_with_its_ground_and_taken_as_shown(desk: Desk) -> None:
    told = {"phone": PHONE, "calling_code": "52", "ground": "shop_country", "country": "MX", "text": SCRIPT}
    desk.others.answers[f"consent contacts/{CONTACT}/suggestion"] = (200, {"suggestion": told})
    async with desk.browser(OPERATOR) as browser:
        page = (await browser.get(f"contacts/{CONTACT}")).text
    assert f'name="phone" value="{PHONE}"' in page
    assert 'name="ground" value="shop_country"' in page
    assert SCRIPT not in page


async def test_a_top_up_goes_with_the_forms_key_once(desk: Desk) -> None:
    desk.others.answers["billing top-ups"] = (200, {})
    form = {"credits": "1,000", "reference": "invoice 7", "key": "0b1c6f3e-0000-4000-8000-000000000001"}
    async with desk.browser(VIEWER) as browser:
        assert "you are viewer" in (await browser.get("credits")).text
        assert (await browser.post("credits", data=form)).status_code == 403
    async with desk.browser(OPERATOR) as browser:
        for _ in range(2):
            assert (await browser.post("credits", data=form)).headers["location"].endswith("?done=1000")
        for wrong in ({"credits": "0"}, {"credits": "-5"}, {"credits": "1e9"}, {"reference": ""}, {"key": "x"}):
            answer = await browser.post("credits", data=form | wrong)
            assert (answer.status_code, 'role="alert"' in answer.text) == (422, True)
        sent = desk.others.writes()
        # Nobody knows whether it was booked: the form comes back with its key. A refused one comes with a new one.
        for status, keeps_key in ((503, True), (409, False)):
            desk.others.answers["billing top-ups"] = (status, {"detail": "Not now"})
            again = await browser.post("credits", data=form)
            assert (again.status_code, f'value="{form["key"]}"' in again.text) == (status, keeps_key)
    assert {(one.path, one.key) for one in sent} == {("top-ups", form["key"])}
    assert [one.body for one in sent] == [{"credits": 1000, "reference": "invoice 7"}] * 2


async def test_credits_tell_the_balance_and_what_failed_at_which_balance(desk: Desk) -> None:
    def lacking(number: int, balance: int, origin: str) -> list[Any]:
        given: dict[str, Any] = {"message_id": f"short-{number}", "origin": Origin(kind=OriginKind.CAMPAIGN, id=origin)}
        told = rejected(ReasonCode.INSUFFICIENT_CREDITS, service=Service.BILLING, **given)
        evidence: dict[str, Any] = {"balance": balance, "price": 2}
        return [
            requested(**given),
            told.model_copy(update={"reason": reason(ReasonCode.INSUFFICIENT_CREDITS, "short", evidence)}),
        ]

    for number, balance, origin in ((1, 1, SCRIPT), (2, 0, SCRIPT), (3, 1, "other")):
        await desk.tell(*lacking(number, balance, origin))
    async with desk.browser(VIEWER) as browser:
        page = (await browser.get("credits")).text
        assert SCRIPT not in page
        for words in ("1,234,567", "+5,000", "0 to 1", "Failed for lack of credits", "6 is what the failed ones"):
            assert words in page
        await desk.tell(requested(message_id="again", resend_of="short-3"))
        assert "4 is what the failed ones cost together" in (await browser.get("credits")).text
        statement = {
            "from_day": "2026-11-01",
            "to_day": "2026-12-01",
            "zone": "UTC",
            "by": ["campaign"],
            "opening_balance": 10,
            "closing_balance": 7,
            "rows": [
                {"origin_kind": "campaign", "origin_id": "=cmd", "messages": 3, "reserved": 3, "net": -3},
                {"origin_kind": None, "origin_id": None, "adjustments": -4711, "net": -4711},
            ],
            "totals": {"messages": 3, "reserved": 3, "adjustments": -4711, "net": -4714},
        }
        desk.others.answers["billing statements"] = (200, statement)
        asked = {"from": "2026-11-01", "to": "2026-11-30", "by": "campaign", "zone": "Europe/Berlin"}
        page = (await browser.get("credits/statement", params=asked)).text
        assert "closing balance" in page
        assert ("Adjustments" in page, page.count("4,711")) == (True, 3), "else columns don't add up"
        assert desk.others.asked[-1].query == asked | {"to": "2026-12-01"}
        # However long: billing's own file, which the page hands on as it comes.
        file = "line,net\r\nrow,-3\r\n" + "row,-4711\r\n" * 100_000
        desk.others.answers["billing statements.csv"] = (200, file)
        answer = await browser.get("credits/statement.csv", params=asked)
        assert (answer.text, answer.headers["content-type"]) == (file, "text/csv; charset=utf-8")
        assert desk.others.asked[-1].query == asked | {"to": "2026-12-01"}
        refused = (422, {"detail": "to: must be a day"})
        desk.others.answers |= {"billing statements": refused, "billing statements.csv": refused}
        for page in ("credits/statement", "credits/statement.csv"):
            answer = await browser.get(f"{page}?to=x")
            assert (answer.status_code, "to: must be a day" in answer.text) == (422, True)
        desk.others.answers["billing statements.csv"] = (503, {"detail": "2 statements are being written just now"})
        assert (await browser.get("credits/statement.csv")).status_code == 503


async def test_pages_stand_without_a_service(desk: Desk) -> None:
    desk.others.answers = {}
    await desk.know(contact())
    async with desk.browser(OPERATOR) as browser:
        for path in ("contacts", f"contacts/{CONTACT}", "credits", "templates", "senders"):
            assert (await browser.get(path)).status_code == 200, path
        assert "just now" in (await browser.get("credits")).text
        assert (await browser.get("templates.csv")).status_code == 404


async def test_a_service_that_hangs_is_waited_for_once_and_told_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.know(contact())
    with socket.create_server(("127.0.0.1", 0)) as hung:
        # It takes the connection, and no more: as a stopped process does.
        urls = desk.pages.services._urls
        monkeypatch.setitem(urls, Service.BILLING, HttpUrl(f"http://127.0.0.1:{hung.getsockname()[1]}"))
        async with desk.browser(OPERATOR) as browser:
            started = time.monotonic()
            credits, person = await asyncio.gather(browser.get("credits"), browser.get(f"contacts/{CONTACT}"))
            assert time.monotonic() - started < 2 * PART_SECONDS
            for page in (credits.text, person.text):
                assert page.count("billing did not answer within 4 s.") == 1
                assert f'<a href="/w/{WORKSPACE}/diagnostics">Look at Diagnostics</a>' in page
            assert "Ledger" not in credits.text
            assert '<button type="submit" disabled aria-describedby="shut">Add credits</button>' in credits.text


async def test_templates_and_senders_tell_their_state_as_text(desk: Desk) -> None:
    async with desk.browser(VIEWER) as browser:
        for path, expected in {
            "templates": ("Rejected", "promotional", "said by meta"),
            "senders": ("Paused", "the default", "1,000"),
            f"senders/{SENDER}": ("990", "10 left", "It fails since", "and 2 more", "What stops a message now"),
        }.items():
            page = (await browser.get(path)).text
            assert (SCRIPT in page, [words for words in expected if words not in page]) == (False, []), path
            assert PHONE not in page
        rows = list(csv.DictReader(io.StringIO((await browser.get("senders.csv")).text)))
        assert (rows[0]["sender_id"], rows[0]["hold"]) == (SENDER, f"Token: {SCRIPT}")
        assert (await browser.get("templates.csv")).text.startswith("name,language,status")
        assert (await browser.get("senders/999999")).status_code == 404
    assert (await desk.get("templates.csv", STRANGER)).status_code == 404
    assert (await desk.get("ledger.csv", VIEWER)).status_code == 200


async def test_a_number_that_sends_not_everything_says_so_in_the_list_and_on_its_page(desk: Desk) -> None:
    sends = SENDER_TOLD | {"paused_at": None, "hold": None}
    desk.others.answers["dispatcher senders"] = (200, [sends])
    desk.others.answers[f"dispatcher senders/{SENDER}"] = (200, sends)
    stop = {"gate": "quality", "stops": "marketing", "detail": "RED (policy block)", "since": None, "until": None}
    async with desk.browser(VIEWER) as browser:
        for stops, state, told in (
            ([stop], ">Sends, but …</span>", '<span class="said">RED (policy block)'),
            ([], ">Sends</span>", ""),
        ):
            desk.others.answers[f"dispatcher senders/{SENDER}/health"] = (200, HEALTH | {"stopped_by": stops})
            assert state + told in (await browser.get("senders")).text
            assert state in (await browser.get(f"senders/{SENDER}")).text


async def test_a_hold_names_its_next_try_and_no_end(desk: Desk) -> None:
    """Nobody knows when a refused token is repaired: a hold's time is when one message tries it."""
    path = f"senders/{SENDER}"
    at = "2026-11-22T10:05:00Z"
    desk.others.answers[f"dispatcher {path}"] = (200, SENDER_TOLD | {"paused_at": None, "hold_until": at})
    stop = {"gate": "hold", "stops": "all", "detail": "Meta says: expired", "since": at, "until": at}
    desk.others.answers[f"dispatcher {path}/health"] = (200, HEALTH | {"stopped_by": [stop]})
    async with desk.browser(VIEWER) as browser:
        page = (await browser.get(path)).text
        assert "The next try, with one message: 2026-11-22 10:05:00 UTC" in page
        assert "ntil 2026-11-22" not in page
        desk.others.answers[f"dispatcher {path}/health"] = (200, HEALTH | {"stopped_by": []})
        page = (await browser.get(path)).text
        assert ("The next message is the try" in page, "Nothing: a message would go" in page) == (True, False)


async def test_a_viewer_may_not_resume_a_sender_and_an_operator_may(desk: Desk) -> None:
    path = f"senders/{SENDER}"
    desk.others.answers[f"dispatcher {path}/resume"] = (200, SENDER_TOLD)
    desk.others.answers[f"dispatcher {path}/sync"] = (409, {"detail": "The stored token can't be decrypted."})
    async with desk.browser(VIEWER) as browser:
        page = (await browser.get(path)).text
        assert 'value="resume" disabled aria-describedby="who-may"' in page
        assert "you are viewer" in page
        assert (await browser.post(path, data={"do": "resume"})).status_code == 403
    assert desk.others.writes() == []
    async with desk.browser(OPERATOR) as browser:
        assert (await browser.post(path, data={"do": "resume"})).headers["location"].endswith("?done=resume")
        refused = await browser.post(path, data={"do": "sync"})
        assert (refused.status_code, "decrypted" in refused.text) == (409, True)
        desk.others.answers[f"dispatcher {path}/sync"] = (503, {"detail": "Meta could not be reached"})
        assert (await browser.post(path, data={"do": "sync"})).status_code == 503
        assert (await browser.post(path, data={"do": "cancel"})).status_code == 422


async def test_a_ledger_is_exported_page_by_page(desk: Desk) -> None:
    def answer(request: Any) -> dict[str, Any]:
        is_first = "cursor" not in request.query_params
        return {"items": [ENTRY | {"version": 2 if is_first else 1}], "next_cursor": "more" if is_first else None}

    desk.others.answers["billing ledger"] = (200, answer)
    rows = list(csv.DictReader(io.StringIO((await desk.get("ledger.csv", VIEWER)).text)))
    assert [row["version"] for row in rows] == ["2", "1"]
    assert after(0).isoformat()[:10] == rows[0]["at"][:10]
