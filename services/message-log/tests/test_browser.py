"""The pages in Chromium: both themes, narrow and wide, keyboard and no script, and nothing that breaks the policy."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from message_log_builders import ADMIN, held, rejected, requested, status
from playwright.sync_api import Browser, Page, sync_playwright
from sendwhy.events import Status
from sendwhy.reasons import ReasonCode
from sendwhy.topics import outgoing

CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.kafka, pytest.mark.postgres]
MessageLog = Any
WORKSPACE = "browser"
HOME = f"/w/{WORKSPACE}/messages"


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
    for path in (HOME, f"{HOME}/b-0", f"{HOME}/b-1", f"{HOME}/b-2", f"/w/{WORKSPACE}/webhooks", "/", f"{HOME}/none"):
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
    page.get_by_label("Find by id").fill("b-2")
    page.get_by_role("button", name="Filter").click()
    page.wait_for_url(f"**{HOME}/b-2")
    page.get_by_text("The event").first.click()
    assert page.locator("pre").first.is_visible()
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url("**/login")
