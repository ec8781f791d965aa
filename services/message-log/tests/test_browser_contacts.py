"""Contacts, credits, templates and senders in Chromium: they fit, keep to the policy, and work by keyboard."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from message_log_builders import OPERATOR, VIEWER, WORKSPACE
from pages_desk import serving
from people_desk import ANSWERS, CONTACT, SENDER, SENDER_TOLD, Desk, contact, open_desk, template
from playwright.async_api import Browser, Page, async_playwright

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.postgres
HOME = f"/w/{WORKSPACE}"
PAGES = (
    "contacts",
    "contacts?q=nobody",
    f"contacts/{CONTACT}",
    "credits",
    "credits/statement",
    "templates",
    "senders",
    f"senders/{SENDER}",
)


@pytest.fixture
async def desk(fresh_database: str) -> AsyncIterator[Desk]:
    async with open_desk(fresh_database) as opened:
        await opened.know(template(), contact())
        opened.others.answers = dict(ANSWERS)
        yield opened


@pytest.fixture
async def chromium() -> AsyncIterator[Browser]:
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is missing: apt-get install chromium")
        pytest.skip("chromium is missing: apt-get install chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        await browser.close()


@asynccontextmanager
async def opened(browser: Browser, base: str, token: str, complaints: list[str], **more: Any) -> AsyncIterator[Page]:
    context = await browser.new_context(base_url=base, **more)
    page = await context.new_page()
    page.on("console", lambda told: complaints.append(told.text) if told.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith(base) else complaints.append(asked.url))
    await page.goto(f"/login?next={HOME}/contacts")
    await page.get_by_text("Log in with an API token").click()
    await page.get_by_label("API token").fill(token)
    await page.get_by_role("button", name="Log in with the token").click()
    await page.wait_for_url(f"**{HOME}/contacts")
    yield page
    await context.close()


async def test_pages_fit_and_keep_to_the_policy(desk: Desk, chromium: Browser) -> None:
    complaints: list[str] = []
    async with serving(desk.app) as base:
        for theme, width in (("light", 1280), ("dark", 320)):
            more: dict[str, Any] = {"color_scheme": theme, "viewport": {"width": width, "height": 800}}
            async with opened(chromium, base, OPERATOR, complaints, **more) as page:
                for path in PAGES:
                    answer = await page.goto(f"{HOME}/{path}")
                    assert answer is not None
                    assert answer.status in (200, 404), path
                    assert await page.evaluate("document.documentElement.scrollWidth") <= width, path
                    low = (
                        "[...document.querySelectorAll('button, select, nav a, summary, main input')]"
                        ".filter(each => 0 < each.offsetHeight && each.offsetHeight < 24).map(each => each.outerHTML)"
                    )
                    assert await page.evaluate(low) == [], path
    assert [one for one in complaints if "404" not in one] == []


async def test_a_viewer_may_not_resume_and_an_operator_does_by_keyboard(desk: Desk, chromium: Browser) -> None:
    desk.others.answers[f"dispatcher senders/{SENDER}/resume"] = (200, SENDER_TOLD)
    async with serving(desk.app) as base:
        async with opened(chromium, base, VIEWER, []) as page:
            await page.goto(f"{HOME}/senders/{SENDER}")
            button = page.get_by_role("button", name="Resume")
            assert await button.is_disabled()
            reason = await page.locator(f"#{await button.get_attribute('aria-describedby')}").inner_text()
            assert reason == "This needs the role operator; you are viewer."
        async with opened(chromium, base, OPERATOR, []) as page:
            await page.goto(f"{HOME}/senders/{SENDER}")
            await page.get_by_role("button", name="Resume").focus()
            await page.keyboard.press("Enter")
            await page.wait_for_url("**done=resume")
            assert "Resumed" in await page.get_by_role("status").first.inner_text()
    assert [(one.path, one.role) for one in desk.others.writes()] == [(f"senders/{SENDER}/resume", "OPERATOR")]


async def test_a_top_up_is_typed_and_told(desk: Desk, chromium: Browser) -> None:
    desk.others.answers["billing top-ups"] = (200, {})
    async with serving(desk.app) as base, opened(chromium, base, OPERATOR, []) as page:
        await page.goto(f"{HOME}/credits")
        await page.get_by_label("Credits", exact=True).fill("1,000")
        await page.get_by_label("Reference").fill("invoice 7")
        await page.keyboard.press("Enter")
        await page.wait_for_url("**done=1000")
        assert "1,000 credits were added" in await page.get_by_role("status").first.inner_text()
    (sent,) = desk.others.writes()
    assert (sent.body, len(sent.key or "")) == ({"credits": 1000, "reference": "invoice 7"}, 36)
