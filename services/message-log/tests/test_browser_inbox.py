"""Campaigns and the inbox in Chromium: by keyboard, by touch and without script, and what renews itself."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio
from local_stack.chromium import logged_in
from message_log_builders import OPERATOR, WORKSPACE, after, held, rejected, requested
from pages_desk import NOW, Desk, open_desk, serving, template, wrote
from playwright.async_api import Browser, expect
from sendwhy.events import Origin, OriginKind
from sendwhy.reasons import ReasonCode, Service

pytestmark = [pytest.mark.postgres, pytest.mark.asyncio(loop_scope="session")]
HOME = f"/w/{WORKSPACE}"
INES = f"{HOME}/inbox/with/shopify%3A7712"
R = ReasonCode


@pytest_asyncio.fixture(loop_scope="session")
async def desk(migrated_database: str) -> AsyncIterator[Desk]:
    robot = Origin(kind=OriginKind.AUTOMATION, id="cart", name="Cart", node_id="welcome")
    agent = Origin(kind=OriginKind.INBOX, thread_id="shopify:7712", agent="ana")
    content = {"type": "text", "text": {"body": "On its way"}}
    async with open_desk(migrated_database) as desk:
        await desk.tell(
            *(requested(message_id=f"b-{n}", requested_at=NOW) for n in range(4)),
            rejected(R.CUSTOMER_IS_NOT_OPTED_IN, message_id="b-0"),
            held(R.MESSAGING_LIMIT_REACHED, message_id="b-1", until=9e8),
            requested(message_id="a-1", origin=robot),
            rejected(R.INSUFFICIENT_CREDITS, service=Service.BILLING, message_id="a-1", origin=robot),
            requested(message_id="in-1", origin=agent, content=content, requested_at=NOW),
            rejected(R.INSUFFICIENT_CREDITS, service=Service.BILLING, message_id="in-1", origin=agent),
        )
        await desk.wrote(wrote("Where is it?", timedelta(hours=1)))
        await desk.know(template("order_update", "UTILITY", "Order {{1}} is on its way."))
        kept = {"per_minute": 600, "per_day": 20_000, "slots_today": 4, "paused_at": None, "cancelled_at": None}
        waiting = [{"waiting_for": "tier", "messages": 3, "oldest": after(0).isoformat()}]
        desk.dispatcher.answers = {
            "campaigns/black-friday": kept | {"day_start": after(0).isoformat(), "waiting": waiting},
            "queue": {"items": [{"lane": "marketing", **waiting[0]}]},
        }
        yield desk


async def test_the_reason_of_a_failed_answer_shows_on_hover_focus_and_touch(chromium: Browser, desk: Desk) -> None:
    async with serving(desk.app) as base, logged_in(chromium, base, OPERATOR, has_touch=True) as watched:
        page = watched.page
        await page.goto(INES)
        mark, tip = page.locator(".why-mark").last, page.locator(".why-tip").last
        await expect(tip).to_be_hidden()
        await mark.hover()
        await expect(tip).to_be_visible()
        await page.mouse.move(0, 0)
        await expect(tip).to_be_hidden()
        await mark.focus()
        await page.keyboard.press("Shift+Tab")
        await page.keyboard.press("Tab")
        await expect(tip).to_be_visible()
        await page.keyboard.press("Shift+Tab")
        await expect(tip).to_be_hidden()
        await mark.tap()
        await expect(tip).to_be_visible()
        await expect(tip).to_contain_text("because of INSUFFICIENT_CREDITS")
        await page.keyboard.press("Escape")
        assert not await tip.evaluate("each => each.matches(':popover-open')")
        assert watched.complaints == []


async def test_an_answer_and_a_throttle_work_without_script_and_by_keyboard(chromium: Browser, desk: Desk) -> None:
    async with serving(desk.app) as base, logged_in(chromium, base, OPERATOR, java_script_enabled=False) as watched:
        page = watched.page
        await page.goto(INES)
        await page.get_by_label("Your answer").focus()
        await page.keyboard.type("Tomorrow.")
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        await page.wait_for_url("**sent=inbox-**")
        await expect(page.get_by_role("status").filter(has_text="Handed over")).to_be_visible()
        await page.get_by_text("Or send a template").click()
        await page.get_by_label("Template").select_option("order_update/en_US")
        await page.get_by_role("button", name="Show it").click()
        await page.get_by_label("{{1}} in the text").fill("4711")
        await page.get_by_role("button", name="Send the template order_update").click()
        await page.wait_for_url("**sent=inbox-**")
        assert len(await desk.outbox()) == 2
        await page.goto(f"{HOME}/campaigns/black-friday")
        await page.get_by_label("Messages a minute").fill("30")
        await page.get_by_role("button", name="Set the throttle").click()
        await page.wait_for_url("**done=throttle")
        assert desk.dispatcher.asked[-2][2] == {"per_minute": 30, "per_day": 20_000}


async def test_a_running_campaign_renews_its_course_and_keeps_the_rest(chromium: Browser, desk: Desk) -> None:
    async with serving(desk.app) as base, logged_in(chromium, base, OPERATOR) as watched:
        page = watched.page
        await page.goto(f"{HOME}/campaigns/black-friday")
        await page.get_by_label("Messages a day").fill("77")
        await desk.tell(rejected(R.CUSTOMER_IS_NOT_OPTED_IN, message_id="b-2"))
        await expect(page.locator(".tile.failed .tile-count")).to_have_text("2", timeout=15_000)
        await expect(page.get_by_label("Messages a day")).to_have_value("77")
        assert watched.complaints == []
