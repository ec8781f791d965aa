"""Every page in Chromium, full of hostile words, in both themes and on a phone: nothing runs that isn't ours, nothing
breaks the policy, axe finds no serious fault, and it fits."""

import csv
import io
import re
from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe
from everything import API, EVIL, FORMULA, HOME, exports, pages
from local_stack.chromium import PHONE_WIDTH, SMALL_TARGETS, UNREACHABLE_SCROLLS, Watched, logged_in
from message_log.app import make_app
from message_log.settings import MessageLogSettings
from message_log_builders import ADMIN, EVERYTHING_VIEWER, PRIVACY_KEY, TOKENS
from playwright.async_api import Browser
from pydantic import SecretStr

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.asyncio(loop_scope="session")]
MessageLog = Any
NO_PAGES = {"/w/{w}/messages.live", "/static/{path:path}"}
KINDS = {"text/csv", "application/json", "application/x-ndjson"}
AXE = {
    "runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]},
    "resultTypes": ["violations"],
}
# Scripts and pictures that came from somebody's words: ours all have a source below /static.
FOREIGN = (
    "[...document.querySelectorAll('script:not([src^=\"/static/\"]), main img, iframe')].map((each) => each.outerHTML)"
)


def routes() -> set[str]:
    """The routes of all that people see: GETs that are no part of the API."""
    settings = MessageLogSettings(
        kafka_bootstrap_servers="nowhere:9092",
        database_url=SecretStr("postgresql://nowhere/nothing"),
        privacy_key=SecretStr(PRIVACY_KEY),
        api_tokens=SecretStr(TOKENS),
    )
    found: list[Any] = list(make_app(settings).routes)
    for route in found:
        found += getattr(getattr(route, "original_router", None), "routes", [])
    return {
        route.path
        for route in found
        if "GET" in (getattr(route, "methods", None) or ()) and not getattr(route, "include_in_schema", True)
    }


async def test_no_page_and_no_export_is_left_out(everything: MessageLog) -> None:
    def ask(path: str) -> Any:
        return everything.get(path).json()

    ours = {path for path in routes() if path == "/" or path.startswith(("/w/", "/login", "/reasons", "/static"))}
    assert "/w/{w}/messages" in ours
    assert ours == {*pages(ask), *exports(ask), *NO_PAGES}


async def look_at(watched: Watched, axe: Axe, path: str) -> list[str]:
    """What is wrong with a page, in words."""
    answer = await watched.page.goto(path)
    assert answer is not None
    wrong = [] if answer.status == 200 else [f"answered {answer.status}"]
    wrong += [f"too small: {one}" for one in await watched.page.evaluate(SMALL_TARGETS)]
    wrong += [f"scrolls out of reach: {one}" for one in await watched.page.evaluate(UNREACHABLE_SCROLLS)]
    wrong += [f"came from somebody's words: {one}" for one in await watched.page.evaluate(FOREIGN)]
    found = (await axe.run(watched.page, options=AXE)).response["violations"]
    wrong += [
        f"{one['id']} ({one['impact']}): {node['html'][:200]} {node['failureSummary'][:400]}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"][:3]
    ]
    return wrong


@pytest.mark.timeout(900)
@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_every_page_is_sound(everything: MessageLog, chromium: Browser, theme: Any) -> None:
    axe, wrong = Axe(), {}
    async with logged_in(chromium, everything.url, ADMIN, color_scheme=theme) as watched:
        for paths in pages(lambda path: everything.get(path).json()).values():
            for path in paths:
                if found := await look_at(watched, axe, path):
                    wrong[path] = found
    assert (wrong, watched.complaints) == ({}, [])


@pytest.mark.timeout(900)
async def test_every_page_fits_a_phone(everything: MessageLog, chromium: Browser) -> None:
    wrong = {}
    size: Any = {"width": PHONE_WIDTH, "height": 740}
    async with logged_in(chromium, everything.url, ADMIN, viewport=size, has_touch=True) as watched:
        for paths in pages(lambda path: everything.get(path).json()).values():
            for path in paths:
                await watched.page.goto(path)
                width = await watched.page.evaluate("document.documentElement.scrollWidth")
                small = await watched.page.evaluate(SMALL_TARGETS)
                stuck = await watched.page.evaluate(UNREACHABLE_SCROLLS)
                if width > PHONE_WIDTH or small or stuck:
                    wrong[path] = (width, small, stuck)
    assert (wrong, watched.complaints) == ({}, [])


async def test_hostile_words_are_text_where_they_stand(everything: MessageLog, chromium: Browser) -> None:
    shown = {
        f"{HOME}/messages/e-1": EVIL,
        f"{HOME}/contacts": FORMULA,
        f"{HOME}/campaigns": FORMULA,
        f"{HOME}/automations": EVIL,
        f"{HOME}/inbox": FORMULA,
        f"{HOME}/templates": "<script>alert(1)</script>",
        f"{HOME}/dead-letters": FORMULA,
    }
    async with logged_in(chromium, everything.url, ADMIN) as watched:
        for path, words in shown.items():
            await watched.page.goto(path)
            assert words in await watched.page.locator("main").inner_text(), path
    assert watched.complaints == []


async def test_every_export_of_them_is_text_too(everything: MessageLog, chromium: Browser) -> None:
    seen = ""
    async with logged_in(chromium, everything.url, ADMIN) as watched:
        for path in exports(lambda path: everything.get(path).json()).values():
            answer = await watched.page.context.request.get(path)
            kind = answer.headers["content-type"]
            assert (answer.status, kind.partition(";")[0] in KINDS) == (200, True), path
            assert answer.headers["content-disposition"].startswith("attachment"), path
            text = await answer.text()
            seen += text
            if kind.startswith("text/csv"):
                cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row]
                risky = [cell for cell in cells if re.match(r"[=+@\t\r]|-(?![0-9.]+$)", cell)]
                assert [cell for cell in risky if not re.fullmatch(r"\+?[0-9.,]+", cell)] == [], path
    assert "<script>alert(1)</script>" in seen
    assert f"'{FORMULA.partition('|')[0]}" in seen


async def test_the_api_answers_them_as_json_that_no_browser_reads_as_a_page(everything: MessageLog) -> None:
    for name in ("messages", "campaigns", "automations", "threads", "contacts", "webhooks", "dead-letters"):
        answer = everything.get(f"{API}/{name}", EVERYTHING_VIEWER)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json"), name
