"""The pages in Chromium: both themes, narrow and wide, keyboard and no script, and nothing that breaks the policy."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from message_log_builders import ADMIN, held, rejected, requested, status
from playwright.sync_api import Browser, Page, sync_playwright
from sendwhy.events import Origin, OriginKind, Status
from sendwhy.reasons import ReasonCode
from sendwhy.topics import Outgoing, Topic, outgoing

CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.kafka, pytest.mark.postgres]
MessageLog = Any
WORKSPACE = "browser"
HOME = f"/w/{WORKSPACE}/messages"
DEAD = f"/v1/workspaces/{WORKSPACE}/dead-letters?message_id=b-dead"
SCRIPT = "<script>document.title = 1</script>"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is missing: apt-get install chromium")
        pytest.skip("chromium is missing: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def shown(message_log: MessageLog) -> MessageLog:
    given: dict[str, Any] = {"workspace_id": WORKSPACE}
    events = [
        *(requested(message_id=f"b-{n}", **given) for n in range(4)),
        rejected(ReasonCode.CUSTOMER_IS_NOT_OPTED_IN, message_id="b-0", **given),
        held(ReasonCode.RATE_LIMIT_EXCEEDED, message_id="b-1", until=9e8, **given),
        status(Status.READ, message_id="b-2", **given),
    ]
    message_log.publish([outgoing(event, source="test") for event in events])
    body = f'{{"workspace_id": "{WORKSPACE}", "message_id": "b-dead", "note": "{SCRIPT}"}}'.encode()
    headers = (("service", b"consent"), ("topic", b"send.requested"), ("error", SCRIPT.encode()))
    message_log.publish([Outgoing(Topic.DEAD_LETTERS, b"k", body, headers)])
    message_log.wait_for(DEAD, lambda a: len(a["items"]) == 1)
    for word in ("failed", "waiting", "read", "sending"):
        message_log.wait_for(f"/v1/workspaces/{WORKSPACE}/messages?status={word}", lambda a: len(a["items"]) == 1)
    return message_log


def open_list(browser: Browser, base: str, **context: Any) -> tuple[Page, list[str]]:
    """The list after a login, and the complaints of this page: errors, broken policy, requests to elsewhere."""
    page = browser.new_context(base_url=base, **context).new_page()
    complaints: list[str] = []
    page.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(base) else complaints.append(request.url))
    page.goto(f"/login?next={HOME}")
    page.get_by_text("Log in with an API token").click()
    page.get_by_label("API token").fill(ADMIN)
    page.get_by_role("button", name="Log in with the token").click()
    page.wait_for_url(f"**{HOME}")
    return page, complaints


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 320])
def test_pages_fit_and_keep_to_the_policy(chromium: Browser, shown: MessageLog, theme: Any, width: int) -> None:
    page, complaints = open_list(chromium, shown.url, color_scheme=theme, viewport={"width": width, "height": 800})
    logs = (f"/w/{WORKSPACE}/{name}" for name in ("webhooks", "dead-letters", "webhook-replay"))
    letter = shown.get(DEAD).json()["items"][0]["dead_letter_id"]
    messages = (f"{HOME}/{name}" for name in ("b-0", "b-1", "b-2", "none"))
    for path in (HOME, *messages, *logs, f"/w/{WORKSPACE}/dead-letters/{letter}", "/"):
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        small = page.evaluate(
            "[...document.querySelectorAll('.chip, .clear, button, select, .tile, nav a, summary')]"
            ".map(each => [each.outerHTML, each.getBoundingClientRect().height])"
            ".filter(([_, height]) => 0 < height && height < 24)"
        )
        assert not small
    assert [each for each in complaints if "404" not in each] == []


def test_a_filter_swaps_the_list_and_has_an_address(chromium: Browser, shown: MessageLog) -> None:
    page, complaints = open_list(chromium, shown.url)
    page.locator("select[name=reason]").select_option("CUSTOMER_IS_NOT_OPTED_IN")
    page.wait_for_url("**reason=CUSTOMER_IS_NOT_OPTED_IN**")
    assert page.locator(".row").count() == 1
    page.reload()
    assert page.locator(".row").count() == 1
    page.get_by_role("link", name="Clear all").click()
    page.wait_for_url(f"**{HOME}")
    assert page.locator(".row").count() == 4
    assert complaints == []


def test_the_way_to_a_reason_by_keyboard_alone(chromium: Browser, shown: MessageLog) -> None:
    page, _ = open_list(chromium, shown.url)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.locator(".tile.failed").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**status=failed**")
    page.get_by_role("link", name="b-0", exact=True).focus()
    page.keyboard.press("Enter")
    page.wait_for_url(f"**{HOME}/b-0")
    assert page.get_by_role("heading", name="Customer is not opted in").is_visible()


def test_all_works_without_script(chromium: Browser, shown: MessageLog) -> None:
    page, _ = open_list(chromium, shown.url, java_script_enabled=False)
    page.get_by_label("Find", exact=True).fill("b-2")
    page.get_by_role("button", name="Filter").click()
    page.wait_for_url(f"**{HOME}/b-2")
    page.get_by_text("The event").first.click()
    assert page.locator("pre").first.is_visible()
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url("**/login")


def test_what_comes_waits_until_it_is_asked_for_and_can_be_paused(chromium: Browser, shown: MessageLog) -> None:
    page, complaints = open_list(chromium, shown.url)
    page.goto(f"{HOME}?campaign=tail")
    page.get_by_text("Live", exact=True).wait_for()
    origin = Origin(kind=OriginKind.CAMPAIGN, id="tail")

    def ask(name: str) -> None:
        event = requested(message_id=name, workspace_id=WORKSPACE, origin=origin)
        shown.publish([outgoing(event, source="test")])

    ask("tail-1")
    page.get_by_text("1 new", exact=True).wait_for()
    assert page.locator(".row").count() == 0
    page.get_by_role("button", name="Pause").click()
    ask("tail-2")
    shown.wait_for(f"/v1/workspaces/{WORKSPACE}/messages/tail-2")
    assert page.get_by_text("Paused", exact=True).is_visible()
    page.get_by_role("button", name="Resume").press("Enter")
    page.get_by_text("2 new", exact=True).wait_for()
    page.get_by_role("link", name="Show", exact=True).focus()
    page.keyboard.press("Enter")
    page.locator(".row").nth(1).wait_for()
    page.get_by_text("Live", exact=True).wait_for()
    assert complaints == []


def test_the_chart_leads_to_the_list_of_its_bar_and_has_a_table(chromium: Browser, shown: MessageLog) -> None:
    page, complaints = open_list(chromium, shown.url)
    assert "messages over time" in (page.get_by_role("img").get_attribute("aria-label") or "")
    assert page.locator("canvas").evaluate("canvas => canvas.toDataURL().length") > 3000
    page.get_by_text("The same as a table").click()
    row = page.locator("figure tbody tr:not(.none)").first
    count = sum(int(cell) for cell in row.locator("td").all_text_contents())
    row.get_by_role("link").click()
    page.wait_for_url("**from=**")
    assert page.locator(".row").count() == count
    assert complaints == []


def test_a_message_is_copied_as_json(chromium: Browser, shown: MessageLog) -> None:
    page, complaints = open_list(chromium, shown.url, permissions=["clipboard-read", "clipboard-write"])
    page.goto(f"{HOME}/b-0")
    page.get_by_role("button", name="Copy as JSON").click()
    page.get_by_text("Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText().then(JSON.parse)")
    assert copied["message_id"] == "b-0"
    with page.expect_download() as download:
        page.get_by_role("link", name="Download for support").click()
    assert download.value.suggested_filename == f"sendwhy-{WORKSPACE}-b-0.json"
    assert complaints == []


def test_a_dead_letter_is_repaired_by_keyboard_and_without_script(chromium: Browser, shown: MessageLog) -> None:
    page, _ = open_list(chromium, shown.url, java_script_enabled=False)
    page.goto(f"/w/{WORKSPACE}/dead-letters")
    page.get_by_role("row").filter(has_text="b-dead").get_by_role("link").press("Enter")
    text = page.get_by_label("The record as JSON")
    assert SCRIPT in text.input_value()
    page.get_by_role("button", name="Put it back").press("Enter")
    assert "to: Field required" in page.get_by_role("alert").inner_text().replace("\n", " ")
    text.fill(requested(message_id="b-dead", workspace_id=WORKSPACE).to_json().decode())
    page.get_by_role("button", name="Put it back").press("Enter")
    page.get_by_text("Whether it can be read now is told").wait_for()
    shown.wait_for(f"/v1/workspaces/{WORKSPACE}/messages/b-dead")
    assert page.title().startswith("Dead letter")
