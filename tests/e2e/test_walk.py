"""An operator before the pages of the running stack, in Chromium."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from local_stack.chromium import Watched, logged_in
from outside import PATIENCE_SECONDS, Outside, outside, until
from playwright.async_api import Browser, expect

pytestmark = pytest.mark.asyncio(loop_scope="session")
PATIENCE_MS = PATIENCE_SECONDS * 1000


@pytest_asyncio.fixture(loop_scope="session")
async def user(stack_file: Path) -> AsyncIterator[Outside]:
    async with outside(stack_file) as someone:
        yield someone


@pytest_asyncio.fixture(loop_scope="session")
async def operator(user: Outside, chromium: Browser) -> AsyncIterator[Watched]:
    base = user.stack["services"]["message-log"]
    async with logged_in(chromium, base, user.stack["admin_token"]) as watched:
        watched.page.set_default_timeout(PATIENCE_MS)
        yield watched
        assert watched.complaints == []


async def test_a_test_message_is_watched_until_it_is_read(user: Outside, operator: Watched) -> None:
    await user.set_up()
    page = operator.page
    start = f"/w/{user.workspace}/diagnostics/test-message"

    async def template_is_known() -> bool:
        await page.goto(start)
        return await page.locator("option", has_text="order_update").count() == 1

    await until(template_is_known, "the page offers the template")
    option = page.locator("option", has_text="order_update")
    await page.get_by_label("Template, or free text").select_option(value=await option.get_attribute("value"))
    await page.get_by_role("button", name="Choose").click()
    await page.locator("form[method=post] input[required]").first.fill("4711")
    await page.get_by_label("Phone").fill(user.person())
    await page.get_by_role("button", name="Send it and watch").click()
    await page.wait_for_url("**/diagnostics/test-message/*")
    # A page that was loaded anew would have lost it.
    await page.evaluate("() => { document.body.dataset.same = 'yes' }")
    await expect(page.get_by_role("heading", name="It works")).to_be_visible(timeout=PATIENCE_MS)
    await expect(page.locator("#journey")).to_contain_text("The person has read it.", timeout=PATIENCE_MS)
    assert await page.evaluate("() => document.body.dataset.same") == "yes"


async def test_after_a_top_up_what_failed_is_sent_again(user: Outside, operator: Watched) -> None:
    await user.set_up(credits=1)
    ids = [f"m{number}" for number in range(3)]
    await user.contacts([(name, user.person()) for name in ids])
    await user.publish(*(user.request(name, name) for name in ids))
    outcomes = await user.settled(ids)
    short = [name for name in ids if outcomes[name][1] == "INSUFFICIENT_CREDITS"]
    page, home = operator.page, f"/w/{user.workspace}"

    await page.goto(f"{home}/messages?status=failed&range=24h")
    await expect(page.locator("#results")).to_contain_text("credits")
    await page.goto(f"{home}/credits")
    await page.get_by_label("Credits", exact=True).fill("5")
    await page.get_by_label("Reference").fill("invoice 8")
    await page.get_by_role("button", name="Add credits").click()
    await expect(page.locator(".tile-count").first).to_have_text("5")

    await page.goto(f"{home}/messages?status=failed&range=24h")
    await page.get_by_role("link", name="Send again").click()
    await page.get_by_role("button", name="Judge 2 messages").click()
    await page.get_by_role("button", name="Send 2 again for 2 credits").click(timeout=PATIENCE_MS)
    await expect(page.locator("#course")).to_contain_text("2 were sent again", timeout=PATIENCE_MS)

    async def is_linked() -> bool:
        await page.goto(f"{home}/messages/{short[0]}")
        return await page.get_by_text("Sent again as").count() == 1

    await until(is_linked, "the old message names its repeat")
    await expect(page.locator(".verdict")).to_contain_text("What to do")
    repeat = await page.locator("dt", has_text="Sent again as").locator("xpath=following-sibling::dd[1]/a").inner_text()
    assert await user.settled([repeat]) == {repeat: ("read", None)}
    await page.get_by_role("link", name=repeat).click()
    await expect(page.get_by_role("link", name=short[0], exact=True)).to_be_visible()


async def test_a_webhook_is_replayed_and_changes_nothing_twice(user: Outside, operator: Watched) -> None:
    await user.set_up()
    await user.contacts([("ines", user.person())])
    await user.publish(user.request("m", "ines"))
    assert await user.settled(["m"]) == {"m": ("read", None)}
    page = operator.page
    await page.goto(f"/w/{user.workspace}/webhooks")
    await page.get_by_role("region", name="Deliveries").get_by_role("link").first.click()
    await page.get_by_role("link", name="Look at a replay").click()
    await page.get_by_role("button", name="Try it without telling anybody").click()
    await expect(page.get_by_role("heading", name="A replay would do this")).to_be_visible(timeout=PATIENCE_MS)
    await page.get_by_role("button", name="Replay 1 delivery").click()
    await expect(page.get_by_role("heading", name="Replayed")).to_be_visible(timeout=PATIENCE_MS)
    assert await user.settled(["m"]) == {"m": ("read", None)}
