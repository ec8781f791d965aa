"""Pictures of every page of a running Sendwhy, in light, dark and phone width, to be looked at by eye:
`python services/message-log/tests/shots.py .state/demo/stack.json OUT [PART OF A PATH …]`. Follows links of the
navigation until each page was seen once; it presses no button."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, sync_playwright
from pydantic import TypeAdapter

LOOKS: dict[str, Any] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1360, "height": 900}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1360, "height": 900}},
    "phone": {"color_scheme": "light", "viewport": {"width": 360, "height": 780}},
}

# Beyond it a list only repeats itself.
HEIGHT_MAX = 1900


def kind_of(path: str) -> str:
    """What page an address shows: `messages`, `messages/*`, `inbox/with/*`."""
    parts = urlsplit(path).path.split("/")[3:]
    return re.sub(r"/[^/]*$", "/*", "/".join(parts)) if len(parts) > 1 and parts[1] != "statement" else "/".join(parts)


def links_of(page: Page) -> list[str]:
    found: list[str] = page.evaluate(
        "[...document.querySelectorAll('a[href^=\"/w/\"]')].map(a => a.getAttribute('href'))"
    )
    return [one for one in found if not re.search(r"\.(csv|jsonl|live)|/bundle|range=|cursor=|#", one)]


def walk(page: Page, start: str) -> Iterator[str]:
    """One address of each kind of page, as links lead there."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        path = waiting.pop(0)
        if kind_of(path) in seen:
            continue
        seen.add(kind_of(path))
        page.goto(path)
        yield path
        waiting += links_of(page)


def log_in(browser: Browser, base: str, token: str, look: str) -> Page:
    page = browser.new_context(base_url=base, **LOOKS[look]).new_page()
    page.goto("/login")
    page.get_by_text("Log in with an API token").click()
    page.get_by_label("API token").fill(token)
    page.get_by_role("button", name="Log in with the token").click()
    page.wait_for_url("**/")
    return page


def main(stack_file: str, out: str, *parts: str) -> None:
    stack = TypeAdapter(dict[str, Any]).validate_json(Path(stack_file).read_bytes())
    base = str(stack["services"]["message-log"])
    workspace = str(stack.get("workspace", "demo"))
    Path(out).mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        found: list[str] = []
        for look in LOOKS:
            page = log_in(browser, base, str(stack["admin_token"]), look)
            found = found or [
                one for one in walk(page, f"/w/{workspace}/messages") if not parts or any(p in one for p in parts)
            ]
            for path in ["/", "/login", *found] if not parts else found:
                page.goto(path)
                page.wait_for_timeout(150)
                name = re.sub(r"\W+", "-", kind_of(path).replace("*", "one") or path).strip("-") or "start"
                height = min(page.evaluate("document.documentElement.scrollHeight"), HEIGHT_MAX)
                clip: Any = {"x": 0, "y": 0, "width": LOOKS[look]["viewport"]["width"], "height": height}
                page.screenshot(path=Path(out) / f"{name}.{look}.png", full_page=True, clip=clip)
        browser.close()


main(*sys.argv[1:])
