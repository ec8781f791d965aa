"""The list's filters and search, and one message with all that is known of it, over HTTP."""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from message_log_builders import ADMIN, STRANGER, T0, VIEWER, event_id, held, rejected, requested, status
from sendwhy.access import Role
from sendwhy.events import ContactUpdated, MarketingState, MetaError, Origin, OriginKind, Status, To, Wire, reason
from sendwhy.reasons import ReasonCode, Service
from sendwhy.topics import outgoing

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]
MessageLog = Any
R = ReasonCode
WORKSPACE = "searched"
HOME, API = f"/w/{WORKSPACE}", f"/v1/workspaces/{WORKSPACE}"
SAME_SITE = {"sec-fetch-site": "same-origin"}
SCRIPT = "<script>alert(1)</script>"
TRIED: dict[str, Any] = {
    "at": "2026-11-22T10:00:01.000Z",
    "result": "retry",
    "code": 131000,
    "http_status": 500,
    "detail": SCRIPT,
}


def log_in(message_log: MessageLog, token: str) -> httpx.Client:
    answer = httpx.post(f"{message_log.url}/login", data={"token": token}, headers=SAME_SITE, trust_env=False)
    assert answer.status_code == 303, answer.text
    return httpx.Client(base_url=message_log.url, cookies=answer.cookies, timeout=60, trust_env=False)


@pytest.fixture(scope="module")
def browser(searched: MessageLog) -> Iterator[httpx.Client]:
    with log_in(searched, ADMIN) as client:
        yield client


def contact(contact_id: str, name: str) -> ContactUpdated:
    return ContactUpdated(
        event_id=event_id(f"contact {contact_id}"),
        occurred_at=T0,
        workspace_id=WORKSPACE,
        contact_id=contact_id,
        version=1,
        name=name,
        marketing_state=MarketingState.SUBSCRIBED,
        since=T0,
        source="import",
    )


@pytest.fixture(scope="module")
def searched(message_log: MessageLog) -> MessageLog:
    def asked(name: str, contact_id: str, phone: str) -> Wire:
        return requested(message_id=name, workspace_id=WORKSPACE, to=To(contact_id=contact_id, phone=phone))

    given: dict[str, Any] = {"workspace_id": WORKSPACE}
    why = reason(R.META_ERROR, SCRIPT, {"tries": [TRIED]}, MetaError(code=131000, http_status=500, details=SCRIPT))
    ines = To(contact_id="c-ines", phone="+525512345678")
    failure = rejected(R.META_ERROR, service=Service.DISPATCHER, message_id="s-mx", to=ines, **given)
    events: list[Wire] = [
        contact("c-ines", "Inés Núñez"),
        contact("c-other", "Otto Other"),
        asked("s-mx", "c-ines", "+525512345678"),
        asked("s-us", "c-other", "+14155550100"),
        asked("s-local", "c-third", "5512345678"),
        held(R.RATE_LIMIT_EXCEEDED, message_id="s-mx", until=30, **given),
        failure.model_copy(update={"reason": why}),
        status(Status.READ, message_id="s-us", **given),
    ]
    message_log.publish([outgoing(event, source="test") for event in events])
    message_log.wait_for(f"{API}/messages", lambda a: len(a["items"]) == 3)
    message_log.wait_for(f"{API}/messages?status=failed", lambda a: len(a["items"]) == 1)
    message_log.wait_for(f"{API}/messages?status=read", lambda a: len(a["items"]) == 1)
    message_log.wait_for(f"{API}/messages?q=in%C3%A9s", lambda a: len(a["items"]) == 1)
    message_log.wait_for(f"{API}/messages/s-mx", lambda m: len(m["events"]) == 3)
    return message_log


def ids(message_log: MessageLog, **asked: str) -> set[str]:
    answer = message_log.get(f"{API}/messages", params=asked)
    assert answer.status_code == 200, answer.text
    return {each["message_id"] for each in answer.json()["items"]}


@pytest.mark.parametrize(
    ("searched_for", "found"),
    [
        ("inés", {"s-mx"}),
        ("NUN", {"s-mx"}),
        ("nunez ine", {"s-mx"}),
        ("otto", {"s-us"}),
        ("+52 55 1234 5678", {"s-mx"}),
        ("+52 1 55 1234 5678", {"s-mx"}),
        ("s-us", {"s-us"}),
        ("c-ines", {"s-mx"}),
        ("nobody", set()),
        ("'); drop table message; --", set()),
        ("!!!", set()),
    ],
)
def test_one_search_understands_names_phones_and_ids(searched: MessageLog, searched_for: str, found: set[str]) -> None:
    assert ids(searched, q=searched_for) == found


def test_a_search_finds_nobody_of_another_workspace(searched: MessageLog) -> None:
    answer = searched.get("/v1/workspaces/other/messages?q=ines", STRANGER)
    assert answer.json()["items"] == []


def test_country_is_that_of_the_calling_code_and_never_guessed(searched: MessageLog) -> None:
    assert ids(searched, country="MX") == {"s-mx"} == ids(searched, country="+52")
    assert ids(searched, country="CA") == {"s-us"}
    assert ids(searched, country="55") == set()
    assert searched.get(f"{API}/messages?country=Mexico").status_code == 422
    codes = [each["calling_code"] for each in searched.get(f"{API}/countries").json()]
    assert sorted(codes) == ["1", "52"]


def test_counts_agree_with_each_other_and_with_the_list(searched: MessageLog, browser: httpx.Client) -> None:
    counts = searched.get(f"{API}/message-counts").json()
    assert counts["total"] == 3 == sum(sum(bar["by_status"].values()) for bar in counts["bars"])
    assert counts["by_status"] | {"read": 1, "failed": 1, "sending": 1} == counts["by_status"]
    assert [each["reason"] for each in counts["by_reason"]] == ["META_ERROR"]
    for word, count in counts["by_status"].items():
        only = searched.get(f"{API}/message-counts?status={word}").json()
        assert only["total"] == count == only["by_status"][word]
    page = browser.get(f"{HOME}/messages").text
    (bar,) = [row for row in re.findall(r"<tr><th scope=\"row\"><a href=\"([^\"]+)\">", page) if "from=" in row]
    assert browser.get(bar.replace("&amp;", "&")).text.count('class="row ') == 3


@pytest.mark.parametrize(
    ("asked", "heading"),
    [
        ({"from": "2100-01-01T00:00", "range": "7d"}, "in the chosen time"),
        ({"from": "2100-01-01T00:00:00", "range": "1h", "was": "chosen"}, "last hour"),
        ({"from": "2100-01-01T00:00:00Z", "to": "", "range": "", "was": "chosen"}, "in the chosen time"),
        ({"range": "1h"}, "last hour"),
    ],
)
def test_of_a_range_and_exact_times_the_one_set_last_counts(
    browser: httpx.Client, asked: dict[str, str], heading: str
) -> None:
    page = browser.get(f"{HOME}/messages", params=asked).raise_for_status().text
    assert f"All messages, {heading}" in page
    assert ("No message matches" in page) == (heading == "in the chosen time")


def test_one_message_shows_waits_tries_credits_and_can_be_taken_along(
    searched: MessageLog, browser: httpx.Client, others: Any
) -> None:
    path = f"/v1/workspaces/{WORKSPACE}/messages/s-mx/charge"
    others.answers[f"GET {path}"] = (200, {"summary": "It cost 1 credit.", "entries": [], "price": None})
    page = browser.get(f"{HOME}/messages/s-mx").text
    assert "What it waited for" in page
    assert "Refused for now, tried again (HTTP 500, code 131000)" in page
    assert "It cost 1 credit." in page
    assert SCRIPT not in page
    assert "&lt;script&gt;" in page
    who = next(asked.who for asked in others.asked if asked.path == path)
    assert (who.role, who.workspace) == (Role.ADMIN, "*")
    file = browser.get(f"{HOME}/messages/s-mx/bundle")
    assert file.headers["content-disposition"] == f'attachment; filename="sendwhy-{WORKSPACE}-s-mx.json"'
    told = file.json()
    assert told["message"]["message_id"] == "s-mx"
    assert told["charge"]["summary"] == "It cost 1 credit."
    assert told["tries"] == [TRIED]
    assert told["reason_explained"]["what_to_do"]
    by_api = searched.get(f"{API}/messages/s-mx/bundle").json()
    assert by_api["message"] == told["message"]
    assert by_api["charge"] == told["charge"]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((404, {"detail": "no"}), "billing never saw this message"),
        ((500, {}), "billing answered 500"),
        ((403, {"detail": "not yours"}), "not yours"),
        ((200, [SCRIPT]), "billing answered 200"),
    ],
)
def test_credits_that_cannot_be_told_are_told_as_missing(
    browser: httpx.Client, others: Any, answer: tuple[int, Any], told: str
) -> None:
    others.answers[f"GET /v1/workspaces/{WORKSPACE}/messages/s-us/charge"] = answer
    page = browser.get(f"{HOME}/messages/s-us")
    assert page.status_code == 200
    assert told in page.text
    assert told in browser.get(f"{HOME}/messages/s-us/bundle").json()["charge"]["missing"]


def test_a_viewer_takes_no_phone_number_along(message_log: MessageLog, others: Any) -> None:
    why = reason(
        R.PHONE_NUMBER_IMPOSSIBLE,
        "no such number",
        {"phone": "+52 55 1234 5678", "suggestion": {"phone": "+525512345678"}},
    )
    failure = rejected(R.PHONE_NUMBER_IMPOSSIBLE, message_id="take-1").model_copy(update={"reason": why})
    message_log.publish([outgoing(event, source="test") for event in (requested(message_id="take-1"), failure)])
    message_log.wait_for("/v1/workspaces/acme/messages/take-1", lambda m: len(m["events"]) == 2)
    charge = {"summary": "x", "refusal": {"evidence": {"phone": "+525512345678"}}}
    others.answers["GET /v1/workspaces/acme/messages/take-1/charge"] = (200, charge)
    with log_in(message_log, VIEWER) as viewer:
        for path in ("messages/take-1", "messages/take-1/bundle"):
            shown = viewer.get(f"/w/acme/{path}").raise_for_status().text
            assert "12345678" not in shown
            assert "1234 5678" not in shown
        assert viewer.get("/w/acme/messages/nobody/bundle").status_code == 404
    with log_in(message_log, STRANGER) as stranger:
        assert stranger.get("/w/acme/messages/take-1/bundle").status_code == 404
    assert message_log.get("/v1/workspaces/acme/messages/take-1/bundle", STRANGER).status_code == 404


def test_the_tail_tells_what_came_since_the_list_was_read_and_fits_its_filters(
    searched: MessageLog, browser: httpx.Client
) -> None:
    page = browser.get(f"{HOME}/messages?campaign=tail").text
    after = re.search(r'data-after="([^"]+)"', page)
    assert after is not None
    tail = f"{HOME}/messages.live?campaign=tail"
    assert f'data-live="{tail}"' in page
    origin = Origin(kind=OriginKind.CAMPAIGN, id="tail")
    fitting = requested(message_id="tail-1", workspace_id=WORKSPACE, origin=origin)
    other = requested(message_id="tail-0", workspace_id=WORKSPACE)
    searched.publish([outgoing(event, source="test") for event in (other, fitting)])
    with browser.stream("GET", tail, params={"campaign": "tail", "after": after[1]}, timeout=20) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        told = next(json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line.startswith("data"))
    assert told["id"] == "tail-1"
    assert told["status"] == "sending"


def test_nobody_follows_what_they_may_not_see(message_log: MessageLog) -> None:
    assert httpx.get(f"{message_log.url}{HOME}/messages.live", trust_env=False).status_code == 303
    with log_in(message_log, STRANGER) as stranger:
        assert stranger.get(f"{HOME}/messages.live").status_code == 404
