"""The pages over HTTP, as somebody without script sees them, and the files they are made of."""

import base64
import hashlib
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import message_log.pages
import pytest
from jinja2 import UndefinedError
from message_log.audience_api import BODY_LIMITS
from message_log.freshness import Freshness
from message_log.live import Streams
from message_log.login import path_to_return_to
from message_log.pages import CSP, Pages, install_errors, make_templates
from message_log_builders import ADMIN, STRANGER, VIEWER, WORKSPACE, held, rejected, requested, status
from pydantic import TypeAdapter
from sendwhy.events import Origin, OriginKind, Status, To, Wire
from sendwhy.http import BodyLimit
from sendwhy.metrics import Metrics
from sendwhy.problems import Api, install
from sendwhy.reasons import CATALOGUE, ReasonCode, Service
from sendwhy.topics import outgoing

MessageLog = Any
SAME_SITE = {"sec-fetch-site": "same-origin"}
SCRIPT = "<script>alert(1)</script>"
STATIC = message_log.pages.STATIC


@pytest.fixture
def browser(message_log: MessageLog) -> Iterator[httpx.Client]:
    with log_in(message_log, ADMIN) as client:
        yield client


def log_in(message_log: MessageLog, token: str) -> httpx.Client:
    answer = httpx.post(
        f"{message_log.url}/login", data={"token": token, "next": "/"}, headers=SAME_SITE, trust_env=False
    )
    assert answer.status_code == 303, answer.text
    return httpx.Client(base_url=message_log.url, cookies=answer.cookies, timeout=60, trust_env=False)


def publish(message_log: MessageLog, *events: Wire) -> None:
    message_log.publish([outgoing(event, source="test") for event in events])


def test_hostile_names_are_shown_as_text(message_log: MessageLog, browser: httpx.Client) -> None:
    workspace = "hostile"
    given: dict[str, Any] = {
        "message_id": "h-1",
        "workspace_id": workspace,
        "to": To(contact_id=SCRIPT, phone="+525512345678"),
        "origin": Origin(kind=OriginKind.CAMPAIGN, id='"><img src=x onerror=alert(1)>', name=SCRIPT),
        "metadata": {SCRIPT: SCRIPT, "deep": {"'\"><b>": 1}},
    }
    failure = rejected(R.META_ERROR, **given)
    evil = failure.reason.model_copy(
        update={"detail": SCRIPT, "evidence": {SCRIPT: [SCRIPT], "scope": {SCRIPT: {SCRIPT: SCRIPT}}}}
    )
    publish(message_log, requested(**given), failure.model_copy(update={"reason": evil}))
    message_log.wait_for(f"/v1/workspaces/{workspace}/messages/h-1", lambda m: len(m["events"]) == 2)
    for path in (
        f"/w/{workspace}/messages",
        f"/w/{workspace}/messages/h-1",
        f"/w/{workspace}/messages?campaign={SCRIPT}",
    ):
        text = browser.get(path).raise_for_status().text
        assert SCRIPT not in text
        assert "<img src=x" not in text
        assert "&lt;script&gt;alert(1)" in text


R = ReasonCode


def test_every_answer_has_the_strict_policy_and_no_inline_code(message_log: MessageLog, browser: httpx.Client) -> None:
    publish(message_log, requested(message_id="csp-1"))
    message_log.wait_for(f"/v1/workspaces/{WORKSPACE}/messages/csp-1")
    home = f"/w/{WORKSPACE}"
    paths = ["/", "/login", f"{home}/messages", f"{home}/messages/csp-1", f"{home}/webhooks", f"{home}/messages/none"]
    for path in paths:
        answer = browser.get(path)
        assert answer.headers["content-security-policy"] == CSP
        assert "unsafe" not in CSP
        assert answer.headers["cache-control"] == "no-store"
        assert not re.search(r"<style|\sstyle=|\son\w+=|hx-on|javascript:|<script(?![^>]+src=\"/static/)", answer.text)
        assert not re.search(r"(?:src|href)=\"(?:https?:)?//", answer.text)


def test_every_reason_has_a_page_that_needs_no_login(message_log: MessageLog) -> None:
    listed = httpx.get(f"{message_log.url}/reasons", trust_env=False)
    assert listed.status_code == 200
    for code, info in CATALOGUE.items():
        assert f'href="/reasons/{code}"' in listed.text
        page = httpx.get(f"{message_log.url}/reasons/{code}", trust_env=False)
        assert page.status_code == 200
        assert all(text in html.unescape(page.text) for text in (info.what_to_do, *info.meta_told()))
    unknown = httpx.get(f"{message_log.url}/reasons/NO_SUCH_REASON", trust_env=False)
    assert (unknown.status_code, "No reason is called “NO_SUCH_REASON”" in unknown.text) == (404, True)
    assert 'href="/reasons/CANCELLED"' in unknown.text


def test_without_a_login_every_page_leads_to_it(message_log: MessageLog) -> None:
    answer = httpx.get(f"{message_log.url}/w/{WORKSPACE}/messages?status=failed", trust_env=False)
    assert answer.status_code == 303
    assert answer.headers["location"] == "/login?next=%2Fw%2Facme%2Fmessages%3Fstatus%3Dfailed"


def test_another_workspace_is_not_found_and_a_wrong_token_is_told(message_log: MessageLog) -> None:
    with log_in(message_log, STRANGER) as stranger:
        assert stranger.get(f"/w/{WORKSPACE}/messages").status_code == 404
        assert stranger.get("/").headers["location"] == "/w/other/messages"
        # As the address of an alert does.
        assert stranger.get("/?status=failed").headers["location"] == "/w/other/messages?status=failed"
        wrong = stranger.post("/login", data={"token": "nobody-knows-it"}, headers=SAME_SITE)
        assert wrong.status_code == 403
        assert "not one of this Sendwhy" in wrong.text


def test_a_form_of_another_site_changes_nothing(message_log: MessageLog, browser: httpx.Client) -> None:
    own = {"origin": message_log.url}
    for headers in ({"sec-fetch-site": "cross-site"}, {"origin": "https://evil.example"}, {}):
        assert browser.post("/logout", headers=headers).status_code == 403
    assert browser.get(f"/w/{WORKSPACE}/messages").status_code == 200
    assert browser.post("/logout", headers=own).status_code == 303
    assert browser.get(f"/w/{WORKSPACE}/messages").status_code == 303


@pytest.mark.parametrize(
    "wanted", ["//evil.example", "https://evil.example", "/\\evil", "/w/a\\b", "javascript:alert(1)", ""]
)
def test_a_login_leads_nowhere_else(wanted: str) -> None:
    assert path_to_return_to(wanted) == "/"


def test_counts_agree_with_the_lists_behind_them(message_log: MessageLog, browser: httpx.Client) -> None:
    workspace = "counts"
    events: list[Wire] = [requested(message_id=f"c-{n}", workspace_id=workspace) for n in range(6)]
    events += [rejected(R.INSUFFICIENT_CREDITS, message_id=f"c-{n}", workspace_id=workspace) for n in range(2)]
    events += [status(Status.READ, message_id="c-2", workspace_id=workspace)]
    events += [held(R.RATE_LIMIT_EXCEEDED, message_id="c-3", workspace_id=workspace, until=9e8)]
    publish(message_log, *events)
    home = f"/v1/workspaces/{workspace}/messages"
    for word, count in (("failed", 2), ("read", 1), ("waiting", 1), ("sending", 2)):
        message_log.wait_for(f"{home}?status={word}", lambda a, count=count: len(a["items"]) == count)
    page = browser.get(f"/w/{workspace}/messages").text
    tiles = re.findall(r'<a class="tile (\w+)" href="([^"]+)"[^>]*>\s*<span class="tile-count">(\d+)<', page)
    assert len(tiles) == 6
    for _, href, count in tiles:
        assert browser.get(href.replace("&amp;", "&")).text.count('class="row ') == int(count)
    reasons = re.search(r'<th scope="row"><a href="([^"]+)">Insufficient credits', page)
    assert reasons is not None
    failed = browser.get(reasons[1].replace("&amp;", "&")).text
    assert failed.count('class="row ') == 2
    assert CATALOGUE[R.INSUFFICIENT_CREDITS].what_to_do.split(",")[0] in failed
    assert "said by consent" in failed


def test_htmx_gets_the_list_alone_and_everyone_else_the_page(browser: httpx.Client) -> None:
    path = f"/w/{WORKSPACE}/messages"
    part = browser.get(path, headers={"hx-request": "true", "hx-request-type": "partial"}).text
    assert part.lstrip().startswith('<div id="results">')
    assert browser.get(path).text.startswith("<!doctype html>")
    assert browser.get(path, headers={"hx-request": "true", "hx-request-type": "full"}).text.startswith("<!doctype")


def test_an_id_that_one_message_has_leads_straight_to_it(message_log: MessageLog, browser: httpx.Client) -> None:
    publish(message_log, requested(message_id="find-me"))
    message_log.wait_for(f"/v1/workspaces/{WORKSPACE}/messages/find-me")
    assert browser.get(f"/w/{WORKSPACE}/messages?q=find-me").headers["location"] == f"/w/{WORKSPACE}/messages/find-me"
    part = browser.get(
        f"/w/{WORKSPACE}/messages?q=find-me&range=7d&reason=",
        headers={"hx-request": "true", "hx-request-type": "partial"},
    )
    assert part.headers["hx-redirect"] == f"/w/{WORKSPACE}/messages/find-me"


def test_an_empty_list_says_why_it_is_empty(message_log: MessageLog, browser: httpx.Client) -> None:
    assert "No message yet" in browser.get("/w/nothing/messages").text
    publish(message_log, requested(message_id="e-1", workspace_id="empty"))
    message_log.wait_for("/v1/workspaces/empty/messages/e-1")
    no_match = browser.get("/w/empty/messages?campaign=none&origin=campaign").text
    assert "No message matches" in no_match
    assert "1 without “campaign”" in no_match
    assert 'href="/w/empty/campaigns?q=none"' in no_match
    assert "No failures, last 7 days" in browser.get("/w/empty/messages?status=failed").text
    assert "can’t be read" in browser.get("/w/empty/messages?status=blue").text


def test_a_viewer_sees_no_phone_number_and_no_raw_body(message_log: MessageLog) -> None:
    publish(message_log, requested(message_id="v-1"))
    message_log.wait_for(f"/v1/workspaces/{WORKSPACE}/messages/v-1")
    with log_in(message_log, VIEWER) as viewer:
        for path in ("messages", "messages/v-1", "messages.csv"):
            assert "5512345678" not in viewer.get(f"/w/{WORKSPACE}/{path}").raise_for_status().text


def test_no_file_outside_the_static_folder_is_served(message_log: MessageLog) -> None:
    odd = ("../pages.py", "%2e%2e/pages.py", "..%2fpages.py", "vendor", "%00", "x" * 5000)
    for path in (f"/static/{one}" for one in odd):
        assert httpx.get(message_log.url + path, trust_env=False).status_code == 404
    answer = httpx.get(f"{message_log.url}/static/app.css", trust_env=False)
    assert answer.headers["content-type"].startswith("text/css")


def test_a_workspace_that_can_not_be_is_not_found(browser: httpx.Client) -> None:
    """Also by who sees all there are."""
    for workspace in ("%00", "a%20b", "x" * 65, "%ff"):
        assert browser.get(f"/w/{workspace}/messages").status_code == 404
    removed = browser.post(f"/w/{WORKSPACE}/people/a%00b/remove", headers=SAME_SITE)
    assert removed.status_code == 404


def pages_alone() -> Pages:
    """Pages that tell of errors, for which they ask nothing and nobody."""
    nothing: Any = None
    return Pages(nothing, nothing, Freshness(Metrics(Service.MESSAGE_LOG)), nothing, Streams())


READS_PAGES = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def test_an_address_without_a_page_is_told_as_a_page_and_to_programs_as_a_problem(browser: httpx.Client) -> None:
    for path in ("/nonsense", f"/w/{WORKSPACE}", f"/w/{WORKSPACE}/nonsense", f"/w/{WORKSPACE}/audience/none"):
        told = browser.get(path, headers=READS_PAGES)
        assert (told.status_code, told.headers["content-security-policy"]) == (404, CSP)
        assert "There is no page at this address." in told.text
        assert "another workspace" not in told.text
    taken = browser.get(f"/w/{WORKSPACE}/people/x/remove", headers=READS_PAGES)
    assert (taken.status_code, "There is no page at this address." in taken.text) == (405, True)
    for path, headers in (("/nonsense", {}), ("/v1/nonsense", {**READS_PAGES, "authorization": f"Bearer {ADMIN}"})):
        assert browser.get(path, headers=headers).headers["content-type"] == "application/problem+json"


def test_what_is_too_large_is_told_as_a_page_and_to_programs_as_a_problem(browser: httpx.Client) -> None:
    large = b"x" * (1024 * 1024 + 1)
    for path in ("/login", f"/w/{WORKSPACE}/send-again", "/nonsense"):
        told = browser.post(path, headers=READS_PAGES, content=large)
        assert (told.status_code, told.headers["content-security-policy"]) == (413, CSP)
        assert told.headers["connection"] == "close"
        assert "<h1>Too large</h1>" in told.text
        assert "What you sent is larger than 1 MB. Send it in parts." in told.text
    api = {**READS_PAGES, "authorization": f"Bearer {ADMIN}"}
    for path, headers in (("/login", {}), (f"/v1/workspaces/{WORKSPACE}/messages", api)):
        answer = browser.post(path, headers=headers, content=large)
        assert (answer.status_code, answer.headers["content-type"]) == (413, "application/problem+json")
        assert answer.json()["detail"] == "The body is longer than 1048576 bytes."


async def test_a_file_for_the_audience_check_that_is_too_large_is_told_its_limit() -> None:
    app = Api()
    install(app)
    install_errors(app, pages_alone())
    app.add_middleware(BodyLimit, limits=BODY_LIMITS)
    headers = {**READS_PAGES, "content-length": str(65 * 1024 * 1024)}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://pages") as client:
        told = await client.post(f"/w/{WORKSPACE}/audience", headers=headers)
    assert (told.status_code, "larger than 64 MB" in told.text) == (413, True)


async def test_a_bug_is_a_page_that_says_when_and_whom_to_tell_and_to_programs_a_problem() -> None:
    app = Api()
    install(app)
    install_errors(app, pages_alone())

    @app.get("/bug")
    async def _bug() -> None:
        raise ZeroDivisionError

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://pages") as client:
        page = await client.get("/bug", headers=READS_PAGES)
        assert (page.status_code, page.headers["content-type"]) == (500, "text/html; charset=utf-8")
        assert re.search(r"tell whoever runs Sendwhy that it was at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", page.text)
        problem = await client.get("/bug")
        assert (problem.status_code, problem.headers["content-type"]) == (500, "application/problem+json")


@pytest.mark.parametrize("status", [400, 409, 413, 429])
def test_a_refusal_is_not_told_as_a_failure_of_sendwhys(status: int) -> None:
    told = pages_alone().error(status, "Wait until one has ended.")
    text = bytes(told.body).decode()
    assert "Wait until one has ended." in text
    assert "Something failed" not in text
    assert "own log" not in text


def test_vendored_files_are_what_the_list_says() -> None:
    listed = TypeAdapter(list[dict[str, str]]).validate_json((STATIC / "vendor/vendor.json").read_bytes())
    base = "".join(each.read_text() for each in (STATIC.parent / "templates").glob("*.html"))
    for entry in listed:
        file = STATIC / "vendor" / entry["file"]
        digest = base64.b64encode(hashlib.sha384(file.read_bytes()).digest()).decode()
        assert entry["integrity"] == f"sha384-{digest}"
        assert f"vendor/{entry['file']}" in base
        assert entry["integrity"] in base
        assert (file.parent / "LICENSE").is_file()


def test_a_name_that_a_template_was_not_given_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        make_templates().from_string("{{ nothing }}").render()


def _colours(css: str) -> dict[str, tuple[str, str]]:
    found = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", css)
    return {name: (light, dark) for name, light, dark in found}


def _luminance(colour: str) -> float:
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(
    ("text", "ground", "least"),
    [
        *(
            (text, ground, 4.5)
            for text in ("foreground", "muted-foreground", "primary")
            for ground in ("background", "card", "faint")
        ),
        *((text, "card", 4.5) for text in ("danger", "waiting", "read")),
        ("danger", "failed-ground", 4.5),
        ("muted-foreground", "failed-ground", 4.5),
        ("muted-foreground", "waiting-ground", 4.5),
        ("foreground", "accent", 4.5),
        ("primary-foreground", "primary", 4.5),
        ("input", "card", 3.0),
        ("input", "background", 3.0),
        ("ring", "background", 3.0),
    ],
)
def test_colours_can_be_read_in_both_themes(text: str, ground: str, least: float) -> None:
    colours = _colours(Path(STATIC / "app.css").read_text())
    for theme in (0, 1):
        assert _contrast(colours[text][theme], colours[ground][theme]) >= least
