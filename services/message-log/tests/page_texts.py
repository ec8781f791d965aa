"""What of a page is said to people: the texts and attributes that they read, by place, and whether the catalogue has
them. In the pseudo language every text of the catalogue stands in ⟦…⟧."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from babel.messages.pofile import read_po, write_po
from message_log.language import LOCALES, Language, load

PSEUDO = "eo"
READ = ("title", "aria-label", "placeholder", "alt")
# Shown as they are: what people type, and other systems' bytes.
_VERBATIM = frozenset({"pre", "code", "kbd", "script", "style", "textarea", "datalist"})
_VOID = frozenset({"input", "meta", "link", "br", "img", "hr", "path", "rect", "circle"})
WORD = re.compile(r"[^\W\d_]{2,}")


def pseudo_language(folder: Path) -> Mapping[str, Language]:
    """English and a language whose every text is the English one in ⟦…⟧."""
    with (LOCALES / "messages.pot").open("rb") as file:
        catalogue = read_po(file, locale=PSEUDO)
    for message in catalogue:
        if message.id:
            several = isinstance(message.id, tuple)
            message.string = tuple(f"⟦{one}⟧" for one in message.id) if several else f"⟦{message.id}⟧"
    (folder / PSEUDO / "LC_MESSAGES").mkdir(parents=True)
    with (folder / PSEUDO / "LC_MESSAGES" / "messages.po").open("wb") as file:
        write_po(file, catalogue)
    return load(folder)


@dataclass
class _Reader(HTMLParser):
    """`found`: (where, text) outside of ⟦…⟧, in the page's order."""

    found: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[str] = []
        self._depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _VOID:
            self._open.append(tag)
        for name, value in attrs:
            if name in READ or name.endswith("-word"):
                self.found += [(f"{tag}[{name}]", rest) for rest in re.split("⟦.*⟧", value or "", flags=re.DOTALL)]

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        outside = ""
        for part in re.split("([⟦⟧])", data):
            self._depth += {"⟦": 1, "⟧": -1}.get(part, 0)
            outside += part if self._depth == 0 and part != "⟧" else " "
        if not _VERBATIM & set(self._open):
            self.found.append((self._open[-1] if self._open else "", outside))


def outside_the_catalogue(page: str) -> Iterator[tuple[str, str]]:
    """What stands on a page in the pseudo language without being marked as the catalogue's: data, or a fault."""
    reader = _Reader()
    reader.feed(page)
    for where, text in reader.found:
        if WORD.search(text):
            yield where, " ".join(text.split())
