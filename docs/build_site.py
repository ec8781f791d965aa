"""Builds the documentation site: `make docs`. Static, searchable, works from the disk; nothing comes from outside.

Pages are the repository's own Markdown files. They are copied into one tree (docs/ is its root), links are set anew,
the generator (Zensical) runs strictly, and every link of what it made is followed.
"""

import json
import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / ".state" / "docs"
SITE = ROOT / "site"
LINK = re.compile(r"(!?)\[((?:[^\]\[]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)
FOLDERS = ("services", "tools", "deploy", "demo")
# Where a page of the repository stands on the site; the others keep their place below docs/.
PLACES = {
    "ARCHITECTURE.md": "explanation/architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "explanation/security.md",
}

NAV: list[Any] = [
    {"Start": "index.md"},
    {"Tutorial": "tutorial.md"},
    {
        "How-to guides": [
            {
                "Connect your system": [
                    "how-to/connect-python.md",
                    "how-to/connect-java.md",
                    "how-to/connect-kcat.md",
                    "how-to/use-the-schemas.md",
                ]
            },
            {"Connect others": ["how-to/connect-meta.md", "how-to/connect-shopify.md"]},
            {"Run": ["how-to/run-on-one-machine.md", "deploy/README.md", "deploy/kubernetes/README.md"]},
            {
                "Operate": [
                    "how-to/find-why.md",
                    "how-to/recover-a-campaign.md",
                    "how-to/back-up-and-restore.md",
                    "how-to/upgrade.md",
                    "how-to/import-contacts.md",
                    "how-to/check-before-sending.md",
                    "how-to/rotate-a-token.md",
                    "runbook.md",
                ]
            },
        ]
    },
    {
        "Reference": [
            {"Reasons": ["reasons.md", "reasons/*"]},
            "contract.md",
            "topics.md",
            {"HTTP": ["http/*"]},
            "commands.md",
            "settings.md",
            "metrics.md",
            "kafka-acls.md",
            {"Limits and bad inputs": ["limits.md", "bad-inputs.md", "fuzzing.md"]},
            "authorisation.md",
            "security-checklist.md",
            {"Parts": ["services/*", "tools/*", "demo/README.md"]},
        ]
    },
    {
        "Explanation": [
            "explanation/way-of-a-message.md",
            "explanation/guarantees.md",
            "explanation/unknown-outcomes.md",
            "reliability.md",
            "planted-bugs.md",
            "explanation/architecture.md",
            "explanation/security.md",
            {"Decisions": ["adr/*"]},
        ]
    },
    {"Project": ["contributing.md", "changelog.md"]},
]
CONFIG: Mapping[str, Any] = {
    "site_name": "Sendwhy",
    "site_description": "Every WhatsApp message ends in blue ticks or in a reason.",
    "docs_dir": "pages",
    "site_dir": "html",
    # The address of a page is that of its file, with .html: it stays, and opens from the disk.
    "use_directory_urls": False,
    "theme": {
        "name": "material",
        "font": False,
        "language": "en",
        "features": ["navigation.footer", "navigation.path", "navigation.top", "content.code.copy", "search.highlight"],
        "palette": [
            {"media": "(prefers-color-scheme: light)", "scheme": "default"},
            {"media": "(prefers-color-scheme: dark)", "scheme": "slate"},
        ],
    },
    "markdown_extensions": [
        *("admonition", "attr_list", "md_in_html", "tables", "pymdownx.superfences"),
        {"toc": {"permalink": True}},
        {"pymdownx.highlight": {"pygments_lang_class": True}},
    ],
    "plugins": ["search", "offline"],
    # The search needs it on pages from the disk; the generator would load it from elsewhere.
    "extra": {"polyfills": ["vendor/iframe-worker-1.0.4/iframe-worker.js"], "generator": False},
}


class BrokenSiteError(Exception):
    pass


# --- the pages, in one tree ---


def place_of(path: str) -> str | None:
    """Where a file of the repository (a path from its root) stands on the site; None for one that isn't there."""
    if path in PLACES:
        return PLACES[path]
    if path.startswith("docs/"):
        inner = path.removeprefix("docs/")
        return inner if path.endswith((".md", ".json")) or inner.startswith("vendor/") else None
    return path if path.endswith(".md") and path.split("/", 1)[0] in FOLDERS else None


def relinked(text: str, path: str, exists: Callable[[str], bool]) -> str:
    """A page's text with its links set to where their targets stand on the site; a link that leads to no page there
    becomes its words. Raises BrokenSiteError at a target that isn't in the repository at all."""
    here = place_of(path)
    assert here is not None, path

    def link(match: re.Match[str]) -> str:
        image, words, target = match.groups()
        file, hash_, anchor = target.partition("#")
        if urlsplit(target).scheme or not file:
            return match[0]
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(path), file))
        if not exists(wanted):
            raise BrokenSiteError(f"{path}: {target} leads nowhere")
        there = place_of(wanted)
        if there is None:
            return words if words.startswith("`") or image else f"{words} (`{wanted}` in the repository)"
        return f"{image}[{words}]({posixpath.relpath(there, posixpath.dirname(here) or '.')}{hash_}{anchor})"

    parts = FENCE.split(text)
    return "".join(part if part.startswith("```") else LINK.sub(link, part) for part in parts)


def tracked() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    return sorted(path for path in listed.stdout.decode().split("\0") if path and (ROOT / path).is_file())


def stage(pages: Path) -> list[str]:
    """Copies all pages and contracts; returns their places on the site."""
    staged = []
    for path in tracked():
        place = place_of(path)
        if place is None:
            continue
        file = pages / place
        file.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith(".md"):
            file.write_text(relinked((ROOT / path).read_text(), path, lambda wanted: (ROOT / wanted).exists()))
        else:
            shutil.copyfile(ROOT / path, file)
        staged.append(place)
    return staged


def filled(entries: list[Any], places: list[str]) -> list[Any]:
    """The navigation with `folder/*` replaced by all pages there. Raises BrokenSiteError for a page that is missing."""
    made: list[Any] = []
    for entry in entries:
        if isinstance(entry, dict):
            made += [
                {name: filled(inner, places) if isinstance(inner, list) else inner} for name, inner in entry.items()
            ]
        elif entry.endswith("/*"):
            made += [place for place in places if place.startswith(entry[:-1]) and place.endswith(".md")]
        elif entry in places:
            made.append(entry)
        else:
            raise BrokenSiteError(f"the navigation names {entry}, which is no page")
    return made


# --- what came out ---


class _Page(HTMLParser):
    """The ids of a page, its links, and what it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids |= {value for name in ("id", "name") if (value := given.get(name))}
        if tag == "a" and (href := given.get("href")):
            self.links.append(href)
        elif tag == "link" and given.get("rel") != "canonical" and (href := given.get("href")):
            self.loads.append(href)
        elif source := given.get("src"):
            self.loads.append(source)


def faults(site: Path) -> Iterator[str]:
    """Links and anchors that lead nowhere, and whatever a page would load from elsewhere."""
    pages: dict[Path, _Page] = {}
    for file in sorted(site.rglob("*.html")):
        pages[file] = _Page()
        pages[file].feed(file.read_text())
    for file, page in pages.items():
        name = file.relative_to(site)
        yield from (f"{name} loads {each} from outside" for each in page.loads if urlsplit(each).netloc)
        for target in {*page.links, *page.loads}:
            if (wrong := _wrong(site, file, target, pages)) is not None:
                yield f"{name}: {target} {wrong}"


def _wrong(site: Path, file: Path, target: str, pages: Mapping[Path, _Page]) -> str | None:
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        return None
    base = site if parts.path.startswith("/") else file.parent
    linked = (base / unquote(parts.path).lstrip("/")).resolve() if parts.path else file
    if linked.is_dir():
        linked /= "index.html"
    if not linked.exists():
        return "leads nowhere"
    if parts.fragment and linked in pages and unquote(parts.fragment) not in pages[linked].ids:
        return "has no such place there"
    return None


def build() -> Path:
    """Builds into site/ and returns it. Raises BrokenSiteError."""
    shutil.rmtree(SOURCES, ignore_errors=True)
    places = stage(SOURCES / "pages")
    config = {**CONFIG, "nav": filled(NAV, places)}
    # JSON is YAML, which the generator reads; its own TOML can't be written by the standard library.
    (SOURCES / "mkdocs.yml").write_text(json.dumps(config, indent=1))
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "--config-file", "mkdocs.yml"]
    done = subprocess.run(command, cwd=SOURCES, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    if done.returncode != 0 or re.search(r"\b(warning|error)\b", said, re.IGNORECASE):
        raise BrokenSiteError(f"the generator ended with {done.returncode}:\n{said}")
    found = list(faults((SOURCES / "html").resolve()))
    if found:
        raise BrokenSiteError("\n".join([*found, f"{len(found)} faults"]))
    shutil.rmtree(SITE, ignore_errors=True)
    shutil.copytree(SOURCES / "html", SITE)
    return SITE


if __name__ == "__main__":
    try:
        made = build()
    except BrokenSiteError as error:
        sys.exit(f"docs: {error}")
    print(f"docs: {sum(1 for _ in made.rglob('*.html'))} pages, all links hold: open {made / 'index.html'}")  # noqa: T201
