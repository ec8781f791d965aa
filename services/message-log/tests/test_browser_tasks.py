"""What people come for, walked through in Chromium once by mouse and once by keyboard alone."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from everything import API, HOME, PHONE, SENDER
from local_stack.chromium import Watched, logged_in
from message_log_builders import ADMIN, EVERYTHING_OPERATOR, EVERYTHING_VIEWER
from people_desk import ACCOUNT, ENTRY
from playwright.async_api import Browser, Page, expect
from pydantic import TypeAdapter

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.asyncio(loop_scope="session")]
MessageLog = Any
MAX_TABS = 120
# What has the focus, as a person names it, and whether anybody can see that it has it.
FOCUSED = """
() => {
  const each = document.activeElement;
  const name = each.labels?.[0]?.textContent ?? each.getAttribute('aria-label') ?? each.textContent;
  const marked = (one) => {
    const style = getComputedStyle(one);
    return parseFloat(style.outlineWidth) > 0 && style.outlineStyle !== 'none';
  };
  const box = each.getBoundingClientRect();
  const inside = box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth;
  return [name.trim().replace(/\\s+/g, ' '), each.tagName,
    inside && (marked(each) || marked(each.closest('.row') ?? each) || each.matches('input, select, textarea'))];
}
"""


@pytest_asyncio.fixture(loop_scope="session")
async def operator(everything: MessageLog, chromium: Browser) -> AsyncIterator[Watched]:
    async with logged_in(chromium, everything.url, EVERYTHING_OPERATOR) as watched:
        yield watched
        assert watched.complaints == []


async def tab_to(page: Page, name: str, tag: str) -> None:
    """Press Tab until what is named so has the focus, which must show at every step."""
    seen: list[str] = []
    for _ in range(MAX_TABS):
        await page.keyboard.press("Tab")
        found, kind, visible = await page.evaluate(FOCUSED)
        assert visible, f"nobody sees that {found!r} ({kind}) has the focus"
        if found.startswith(name) and kind == tag:
            return
        seen.append(found)
    raise AssertionError(f"no Tab leads to {name!r}: {seen}")


async def test_why_a_number_got_nothing_by_mouse(operator: Watched) -> None:
    page = operator.page
    await page.goto(f"{HOME}/contacts")
    await page.get_by_label("Find", exact=True).fill("551234")
    await page.get_by_role("button", name="Find").click()
    await page.get_by_role("main").get_by_role("link", name="Inés").click()
    await expect(page.get_by_role("main")).to_contain_text(PHONE)
    await page.get_by_role("link", name="bf-0", exact=True).click()
    await expect(page.get_by_role("heading", name="Customer is not opted in")).to_be_visible()
    await expect(page.locator(".verdict")).to_contain_text("What to do")


async def test_why_a_number_got_nothing_by_keyboard(operator: Watched) -> None:
    page = operator.page
    await page.goto(f"{HOME}/messages?range=all")
    await page.keyboard.press("/")
    assert (await page.evaluate(FOCUSED))[0] == "Find"
    await page.keyboard.type("+52 55 1234 5678")
    await page.keyboard.press("Enter")
    await page.wait_for_url("**q=%2B52**")
    await expect(page.locator("#results .chip")).to_contain_text("+52 55 1234 5678")
    # The form is not swapped, so whoever typed there is still there.
    assert (await page.evaluate(FOCUSED))[0] == "Find"
    await tab_to(page, "bf-0", "A")
    await page.keyboard.press("Enter")
    await page.wait_for_url("**/messages/bf-0")
    await expect(page.get_by_role("heading", name="Customer is not opted in")).to_be_visible()


async def test_what_cost_a_campaign_most_by_mouse(operator: Watched) -> None:
    page = operator.page
    await page.goto(HOME + "/messages")
    await page.get_by_role("link", name="Campaigns", exact=True).click()
    await page.get_by_role("link", name="Black Friday").click()
    dearest = page.locator(".failures .row").first
    await expect(dearest.locator(".tile-count")).to_have_text("3")
    await dearest.get_by_role("link", name="Customer is not opted in").click()
    await expect(page.locator(".row")).to_have_count(3)
    await page.locator(".row-link").first.click()
    await expect(page.get_by_role("heading", name="Customer is not opted in")).to_be_visible()


async def test_what_cost_a_campaign_most_by_keyboard(operator: Watched) -> None:
    page = operator.page
    await page.goto(HOME + "/messages")
    await page.keyboard.press("g")
    await page.keyboard.press("p")
    await page.wait_for_url("**/campaigns")
    await tab_to(page, "Black Friday", "A")
    await page.keyboard.press("Enter")
    await page.wait_for_url("**/campaigns/black-friday")
    await page.keyboard.press("j")
    assert (await page.evaluate(FOCUSED))[0] == "Customer is not opted in"
    await page.keyboard.press("Enter")
    await page.wait_for_url("**reason=CUSTOMER_IS_NOT_OPTED_IN**")
    for key, expected in (("j", 0), ("j", 1), ("k", 0), ("k", 0)):
        await page.keyboard.press(key)
        links = await page.locator(".row-link").all_inner_texts()
        assert (await page.evaluate(FOCUSED))[0] == links[expected]
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="Customer is not opted in")).to_be_visible()


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
async def test_a_top_up_is_made_and_seen(operator: Watched, others: Any, by: str) -> None:
    added: list[int] = []

    def take(asked: Any) -> dict[str, Any]:
        added.append(TypeAdapter(dict[str, Any]).validate_json(asked.body)["credits"])
        return {}

    others.answers |= {
        f"POST {API}/top-ups": (200, take),
        f"GET {API}/account": (200, lambda asked: ACCOUNT | {"balance": sum(added)}),
        f"GET {API}/ledger": (200, lambda asked: {"items": [ENTRY | {"amount": sum(added)}], "next_cursor": None}),
    }
    page = operator.page
    await page.goto(f"{HOME}/credits")
    await expect(page.locator(".tile-count").first).to_have_text("0")
    if by == "mouse":
        await page.get_by_label("Credits", exact=True).fill("1,000")
        await page.get_by_label("Reference").fill("invoice 7")
        await page.get_by_role("button", name="Add credits").click()
    else:
        await tab_to(page, "Credits", "INPUT")
        await page.keyboard.press("ControlOrMeta+a")
        await page.keyboard.type("1,000")
        await page.keyboard.press("Tab")
        await page.keyboard.type("invoice 7")
        await page.keyboard.press("Enter")
    await page.wait_for_url("**done=1000")
    await expect(page.get_by_role("status").first).to_contain_text("1,000 credits were added")
    await expect(page.locator(".tile-count").first).to_have_text("1,000")
    await expect(page.get_by_role("table", name="Ledger entries")).to_contain_text("+1,000")
    assert added == [1000]


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
async def test_a_webhook_is_replayed_with_the_difference_first(operator: Watched, others: Any, by: str) -> None:
    asked: list[str] = []

    def answer(request: Any) -> dict[str, Any]:
        asked.append(request.query)
        is_trial = "dry_run=true" in request.query
        told = {"dry_run": is_trial, "deliveries": 1, "emitted": {"status.updated": 1}}
        return told | {"complete": True, "next_from": None}

    others.answers[f"POST {API}/webhooks/replay"] = (200, answer)
    page = operator.page
    await page.goto(f"{HOME}/webhooks")
    delivery = page.get_by_role("region", name="Deliveries").get_by_role("link").first

    async def press(name: str, tag: str) -> None:
        if by == "keyboard":
            await tab_to(page, name, tag)
            async with page.expect_navigation():
                await page.keyboard.press("Enter")
        else:
            await page.get_by_role("main").get_by_role("link" if tag == "A" else "button", name=name).click()

    await press(await delivery.inner_text(), "A")
    await press("Look at a replay", "A")
    await expect(page.get_by_role("heading", name="In this span")).to_be_visible()
    await expect(page.get_by_role("button", name="Replay 1 delivery")).to_have_count(0)
    await press("Try it without telling anybody", "BUTTON")
    await expect(page.get_by_role("heading", name="A replay would do this")).to_be_visible()
    await press("Replay 1 delivery", "BUTTON")
    await expect(page.get_by_role("heading", name="Replayed")).to_be_visible()
    assert asked == ["dry_run=true", "dry_run=false"]


async def test_a_viewer_may_not_resume_a_sender_and_is_told_why(
    everything: MessageLog, others: Any, chromium: Browser
) -> None:
    before = len(others.asked)
    async with logged_in(chromium, everything.url, EVERYTHING_VIEWER) as watched:
        page = watched.page
        await page.goto(f"{HOME}/senders")
        await page.get_by_role("main").get_by_role("region").get_by_role("link").first.click()
        await page.wait_for_url(f"**/senders/{SENDER}")
        button = page.get_by_role("button", name="Resume")
        await expect(button).to_be_disabled()
        await expect(button).to_have_accessible_description("This needs the role operator; you are viewer.")
        cookie = {one["name"]: one["value"] for one in await page.context.cookies()}
        assert watched.complaints == []
    async with httpx.AsyncClient(base_url=everything.url, cookies=cookie, trust_env=False) as client:
        own = {"sec-fetch-site": "same-origin"}
        refused = await client.post(f"{HOME}/senders/{SENDER}", data={"do": "resume"}, headers=own)
    assert (refused.status_code, "This needs the role operator" in refused.text) == (403, True)
    assert [one.path for one in others.asked[before:] if one.method != "GET" and "evaluate" not in one.path] == []


async def test_an_operator_resumes_it_by_keyboard(operator: Watched, others: Any) -> None:
    others.answers[f"POST /dispatcher{API}/senders/{SENDER}/resume"] = (200, {})
    await operator.page.goto(f"{HOME}/senders/{SENDER}")
    await tab_to(operator.page, "Resume", "BUTTON")
    await operator.page.keyboard.press("Enter")
    await operator.page.wait_for_url("**done=resume")
    await expect(operator.page.get_by_role("status").first).to_contain_text("Resumed")
    assert [one.who.role.name for one in others.asked if one.path.endswith("/resume")] == ["OPERATOR"]


async def test_the_sheet_of_keys_opens_closes_and_can_be_switched_off(operator: Watched) -> None:
    page = operator.page
    await page.goto(f"{HOME}/messages")
    await page.keyboard.press("?")
    sheet = page.get_by_role("dialog", name="Keyboard")
    await expect(sheet).to_be_visible()
    await expect(sheet).to_contain_text("Go to Webhooks")
    await page.keyboard.press("j")
    await page.keyboard.press("Escape")
    await expect(sheet).to_be_hidden()
    await page.get_by_role("button", name="Keyboard").click()
    await sheet.get_by_label("Single letters act as keys").uncheck()
    await page.keyboard.press("Escape")
    await page.reload()
    await page.keyboard.press("?")
    await expect(sheet).to_be_hidden()
    await page.get_by_role("button", name="Keyboard").click()
    await sheet.get_by_label("Single letters act as keys").check()
    await page.keyboard.press("Escape")
    await page.get_by_label("Find", exact=True).focus()
    await page.keyboard.type("j?")
    await expect(page.get_by_label("Find", exact=True)).to_have_value("j?")
    await expect(sheet).to_be_hidden()


@pytest.mark.parametrize("script", [True, False])
async def test_the_menu_of_a_phone_opens_closes_and_leads_on(
    everything: MessageLog, chromium: Browser, script: bool
) -> None:
    size: Any = {"width": 360, "height": 740}
    async with logged_in(chromium, everything.url, ADMIN, viewport=size, java_script_enabled=script) as watched:
        page = watched.page
        await page.goto(f"{HOME}/messages")
        menu = page.get_by_role("navigation", name="Pages", exact=True)
        await expect(menu).to_be_hidden()
        await page.get_by_role("button", name="Menu").press("Enter")
        await expect(menu).to_be_visible()
        await page.keyboard.press("Escape")
        await expect(menu).to_be_hidden()
        await expect(page.get_by_role("button", name="Menu")).to_be_focused()
        await page.get_by_role("button", name="Menu").click()
        await menu.get_by_role("link", name="Webhooks").click()
        await page.wait_for_url("**/webhooks")
