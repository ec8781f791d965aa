"""What tests with Chromium share: a page that is logged in, and what a page must never do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

PHONE_WIDTH = 360
# Lists every part that is lower or narrower than 24 px and can be pressed (WCAG 2.5.8), but links within a sentence.
SMALL_TARGETS = """
() => [...document.querySelectorAll('button, select, summary, input, textarea, nav a, .chip, .clear, .tile, .fix')]
  .filter((each) => each.checkVisibility() && each.type !== 'hidden')
  .map((each) => [each.type === 'checkbox' ? each.closest('label') ?? each : each, each])
  .map(([target, each]) => [target.getBoundingClientRect(), each])
  .filter(([box]) => box.height < 24 || box.width < 24)
  .map(([box, each]) => `${Math.round(box.width)} x ${Math.round(box.height)}: ${each.outerHTML.slice(0, 200)}`)
"""
# Parts that scroll sideways, but can't be reached by keyboard.
UNREACHABLE_SCROLLS = """
() => [...document.querySelectorAll('main *')]
  .filter((each) => each.scrollWidth > each.clientWidth + 1
    && ['auto', 'scroll'].includes(getComputedStyle(each).overflowX) && each.tabIndex < 0)
  .map((each) => each.outerHTML.slice(0, 200))
"""


@dataclass
class Watched:
    """A page, and its complaints: errors, a broken policy, requests to elsewhere, dialogs, parts that are not there."""

    page: Page
    base: str
    complaints: list[str] = field(default_factory=list)

    def listen(self) -> None:
        self.page.on("console", lambda told: self._note(told.text) if told.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self._note(str(error)))
        self.page.on("request", lambda asked: None if asked.url.startswith(self.base) else self._note(asked.url))
        self.page.on(
            "response", lambda answer: self._note(f"{answer.status} {answer.url}") if answer.status >= 400 else None
        )
        self.page.on("dialog", lambda dialog: self._note(f"dialog: {dialog.message}"))

    def _note(self, text: str) -> None:
        self.complaints.append(text)


@asynccontextmanager
async def opened(browser: Browser, base: str, **context: Any) -> AsyncIterator[Watched]:
    """A page of a context of its own; it has loaded nothing yet."""
    made = await browser.new_context(base_url=base, **context)
    try:
        watched = Watched(await made.new_page(), base)
        watched.listen()
        yield watched
    finally:
        await made.close()


@asynccontextmanager
async def logged_in(browser: Browser, base: str, token: str, **context: Any) -> AsyncIterator[Watched]:
    """A page whose person has a session."""
    async with opened(browser, base, **context) as watched:
        asking = watched.page.context.request
        answer = await asking.post("/login", form={"token": token}, headers={"sec-fetch-site": "same-origin"})
        assert answer.ok, await answer.text()
        yield watched
