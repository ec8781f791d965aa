"""What the list, the live tail, the chart and the repair of a dead letter do in Chromium, with and without script."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from local_stack.chromium import opened
from message_log_builders import ADMIN, held, rejected, requested, status
from playwright.async_api import Browser, Page, expect
from sendwhy.events import Origin, OriginKind, Status
from sendwhy.reasons import ReasonCode
from sendwhy.topics import Outgoing, Topic, outgoing

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.asyncio(loop_scope="session")]
MessageLog = Any
WORKSPACE = "browser"
HOME = f"/w/{WORKSPACE}/messages"
DEAD = f"/v1/workspaces/{WORKSPACE}/dead-letters?message_id=b-dead"
SCRIPT = "<script>document.title = 1</script>"


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


@asynccontextmanager
async def open_list(browser: Browser, base: str, *, may_refuse: bool = False, **context: Any) -> AsyncIterator[Page]:
    """The list after a login with a token; it must have nothing to complain of at the end, but a form refused."""
    async with opened(browser, base, **context) as watched:
        page = watched.page
        await page.goto(f"/login?next={HOME}")
        await page.get_by_text("Log in with an API token").click()
        await page.get_by_label("API token").fill(ADMIN)
        await page.get_by_role("button", name="Log in with the token").click()
        await page.wait_for_url(f"**{HOME}")
        yield page
        assert [one for one in watched.complaints if not (may_refuse and "422" in one)] == []


async def test_a_filter_swaps_the_list_and_has_an_address(chromium: Browser, shown: MessageLog) -> None:
    async with open_list(chromium, shown.url) as page:
        await page.locator("select[name=reason]").select_option("CUSTOMER_IS_NOT_OPTED_IN")
        await page.wait_for_url("**reason=CUSTOMER_IS_NOT_OPTED_IN**")
        await expect(page.locator(".row")).to_have_count(1)
        await page.reload()
        await expect(page.locator(".row")).to_have_count(1)
        await page.get_by_role("link", name="Clear all").click()
        await page.wait_for_url(f"**{HOME}")
        await expect(page.locator(".row")).to_have_count(4)


async def test_the_way_to_a_reason_by_keyboard_alone(chromium: Browser, shown: MessageLog) -> None:
    async with open_list(chromium, shown.url) as page:
        await page.keyboard.press("Tab")
        assert await page.evaluate("document.activeElement.textContent") == "Skip to the content"
        await page.locator(".tile.failed").focus()
        await page.keyboard.press("Enter")
        await page.wait_for_url("**status=failed**")
        await page.get_by_role("link", name="b-0", exact=True).focus()
        await page.keyboard.press("Enter")
        await page.wait_for_url(f"**{HOME}/b-0")
        await expect(page.get_by_role("heading", name="Customer is not opted in")).to_be_visible()


async def test_an_id_that_is_typed_leads_straight_to_its_message(chromium: Browser, shown: MessageLog) -> None:
    async with open_list(chromium, shown.url) as page:
        await page.get_by_label("Find", exact=True).fill("b-2")
        await page.keyboard.press("Enter")
        await expect(page).to_have_url(f"{shown.url}{HOME}/b-2")
        await expect(page.get_by_role("heading", name="b-2")).to_be_visible()
        await page.go_back()
        await expect(page).to_have_url(f"{shown.url}{HOME}")


async def test_all_works_without_script(chromium: Browser, shown: MessageLog) -> None:
    async with open_list(chromium, shown.url, java_script_enabled=False) as page:
        await page.get_by_label("Find", exact=True).fill("b-2")
        await page.get_by_role("button", name="Filter").click()
        await page.wait_for_url(f"**{HOME}/b-2")
        await page.get_by_text("The event").first.click()
        await expect(page.locator("pre").first).to_be_visible()
        await page.get_by_role("button", name="Log out").click()
        await page.wait_for_url("**/login")


async def test_what_comes_waits_until_it_is_asked_for_and_can_be_paused(chromium: Browser, shown: MessageLog) -> None:
    async with open_list(chromium, shown.url) as page:
        await page.goto(f"{HOME}?campaign=tail")
        # What is said to a screen reader has the same words, a moment later.
        state = page.locator("[data-live-state]")
        await expect(state).to_have_text("Live")
        origin = Origin(kind=OriginKind.CAMPAIGN, id="tail")

        def ask(name: str) -> None:
            event = requested(message_id=name, workspace_id=WORKSPACE, origin=origin)
            shown.publish([outgoing(event, source="test")])

        ask("tail-1")
        await expect(state).to_have_text("1 new")
        await expect(page.locator(".row")).to_have_count(0)
        await page.get_by_role("button", name="Pause").click()
        ask("tail-2")
        shown.wait_for(f"/v1/workspaces/{WORKSPACE}/messages/tail-2")
        await expect(state).to_have_text("Paused")
        await page.get_by_role("button", name="Resume").press("Enter")
        await expect(state).to_have_text("2 new")
        await page.get_by_role("link", name="Show", exact=True).focus()
        await page.keyboard.press("Enter")
        await page.locator(".row").nth(1).wait_for()
        await expect(state).to_have_text("Live")


async def test_the_chart_leads_to_the_list_of_its_bar_and_has_a_table(chromium: Browser, shown: MessageLog) -> None:
    async with open_list(chromium, shown.url) as page:
        assert "messages over time" in (await page.get_by_role("img").get_attribute("aria-label") or "")
        assert await page.locator("canvas").evaluate("canvas => canvas.toDataURL().length") > 3000
        await page.get_by_text("The same as a table").click()
        row = page.locator("figure tbody tr:not(.none)").first
        count = sum(int(cell) for cell in await row.locator("td").all_text_contents())
        await row.get_by_role("link").click()
        await page.wait_for_url("**from=**")
        await expect(page.locator(".row")).to_have_count(count)


async def test_a_message_is_copied_as_json(chromium: Browser, shown: MessageLog) -> None:
    async with open_list(chromium, shown.url, permissions=["clipboard-read", "clipboard-write"]) as page:
        await page.goto(f"{HOME}/b-0")
        await page.get_by_role("button", name="Copy as JSON").click()
        await page.get_by_text("Copied").wait_for()
        copied = await page.evaluate("navigator.clipboard.readText().then(JSON.parse)")
        assert copied["message_id"] == "b-0"
        async with page.expect_download() as download:
            await page.get_by_role("link", name="Download for support").click()
        assert (await download.value).suggested_filename == f"sendwhy-{WORKSPACE}-b-0.json"


async def test_a_dead_letter_is_repaired_by_keyboard_and_without_script(chromium: Browser, shown: MessageLog) -> None:
    async with open_list(chromium, shown.url, may_refuse=True, java_script_enabled=False) as page:
        answer = await page.goto(f"/w/{WORKSPACE}/dead-letters")
        row = page.get_by_role("row").filter(has_text="b-dead")
        assert answer is not None
        assert (answer.status, await row.count()) == (200, 1), await page.inner_text("body")
        await row.get_by_role("link").press("Enter")
        text = page.get_by_label("The record as JSON")
        assert SCRIPT in await text.input_value()
        await page.get_by_role("button", name="Put it back").press("Enter")
        await expect(page.get_by_role("alert")).to_contain_text("to: Field required")
        await text.fill(requested(message_id="b-dead", workspace_id=WORKSPACE).to_json().decode())
        await page.get_by_role("button", name="Put it back").press("Enter")
        await page.get_by_text("Whether it can be read now is told").wait_for()
        shown.wait_for(f"/v1/workspaces/{WORKSPACE}/messages/b-dead")
        assert (await page.title()).startswith("Dead letter")
