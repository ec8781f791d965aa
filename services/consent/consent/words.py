"""STOP and START in the languages that people answer in: keywords.toml, and what a workspace adds to it.

A word counts only when it is the whole message: "please don't stop" is no opt-out. Decoration is no part of it: case,
accents, punctuation, emoji, direction marks, a please or thanks, the same word again, its letters spaced out.
"""

import re
import tomllib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from importlib import resources
from types import MappingProxyType
from typing import Any

from sendwhy.values import value_class

MAX_LENGTH = 256


class Keyword(StrEnum):
    STOP = "stop"
    START = "start"


@value_class
class Entry:
    """One line of keywords.toml. `typed`: not on a button. `exact`: its marks are part of it."""

    language: str
    keyword: Keyword
    phrase: str
    source: str
    typed: bool
    exact: bool

    @property
    def form(self) -> str:
        return spelled(self.phrase) if self.exact else bare(self.phrase)


@value_class
class Own:
    """What a workspace adds to the table and takes from it, in bare forms."""

    stop: frozenset[str] = frozenset()
    start: frozenset[str] = frozenset()
    stop_buttons: frozenset[str] = frozenset()
    start_buttons: frozenset[str] = frozenset()
    ignore: frozenset[str] = frozenset()


NOTHING_OWN = Own()

# Marks that people leave out: of Latin, Greek and Cyrillic letters, of Hebrew and Arabic vowels, on symbols. In Indic
# scripts and in Thai marks are vowels, and stay.
_MARKS = re.compile(
    "[\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff"
    "\ufe20-\ufe2f]"
)
# Letters that are written one for the other and that no normal form unites: dotless i, l and o with strokes, Arabic
# alef, yeh, kaf and heh in their Persian and Urdu shapes. Tatweel only stretches a word.
_LETTERS = str.maketrans(
    "\u0131\u0142\u00f8\u0671\u0649\u06cc\u06a9\u0629\u06c1\u06c3",
    "ilo\u0627\u064a\u064a\u0643\u0647\u0647\u0647",
    "\u0640",
) | {ord("\u00e6"): "ae", ord("\u0153"): "oe"}
_QUESTION = re.compile("[?\u061f\uff1f]")


def bare(text: str) -> str:
    """`text` without case, accents, punctuation and emoji, in words with one blank between them."""
    return _words(_MARKS.sub("", _decomposed(text)).translate(_LETTERS))


def spelled(text: str) -> str:
    """As `bare`, with all marks."""
    return _words(_decomposed(text))


def _decomposed(text: str) -> str:
    return unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())


def _words(decomposed: str) -> str:
    kept: list[str] = []
    for character in decomposed:
        category = unicodedata.category(character)
        if category[0] in "LN" or (
            category in ("Mn", "Mc") and kept and kept[-1] != " " and not _draws_nothing(character)
        ):
            kept.append(character)
        elif category not in ("Cf", "Me") and not _draws_nothing(character):
            kept.append(" ")
    return " ".join(unicodedata.normalize("NFC", "".join(kept)).split())


def _draws_nothing(character: str) -> bool:
    """A grapheme joiner, or a variation selector, which says how an emoji looks."""
    return character == "\u034f" or "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"


def _load() -> tuple[tuple[Entry, ...], Mapping[str, str], tuple[str, ...]]:
    tables: dict[str, Any] = tomllib.loads(resources.files("consent").joinpath("keywords.toml").read_text("utf-8"))
    sources, courtesy = tables.pop("sources"), tables.pop("courtesy")
    entries = tuple(entry for language, table in tables.items() for entry in _entries(language, table))
    return entries, MappingProxyType(sources), tuple(courtesy["words"])


def _entries(language: str, table: Mapping[str, Any]) -> Iterator[Entry]:
    exact = bool(table.get("exact", False))
    for name, keyword in (("stop", Keyword.STOP), ("typed", Keyword.STOP), ("start", Keyword.START)):
        for phrase, source in table.get(name, {}).items():
            yield Entry(language, keyword, phrase, source, name == "typed", exact)


ENTRIES, SOURCES, COURTESIES = _load()


def _forms(entries: Iterable[Entry]) -> Mapping[str, Keyword]:
    return MappingProxyType({entry.form: entry.keyword for entry in entries})


_ANYWHERE = _forms(entry for entry in ENTRIES if not entry.typed and not entry.exact)
_TYPED = _forms(entry for entry in ENTRIES if not entry.exact)
_ANYWHERE_EXACT = _forms(entry for entry in ENTRIES if not entry.typed and entry.exact)
_TYPED_EXACT = _forms(entry for entry in ENTRIES if entry.exact)
_POLITE = "|".join(sorted({bare(word) for word in COURTESIES} | {spelled(word) for word in COURTESIES}, reverse=True))
_BEFORE, _AFTER = re.compile(f"^(?:(?:{_POLITE}) )+"), re.compile(f"(?: (?:{_POLITE}))+$")

# Whoever says one of these has opted out by law, whatever else the word means to a workspace.
LAWFUL = frozenset(entry.form for entry in ENTRIES if entry.source == "cfr")


def said_by(word: str) -> Keyword | None:
    """What the table has for a bare form that was typed."""
    return _TYPED.get(word) or _TYPED_EXACT.get(word)


def keyword_in(text: str | None, own: Own = NOTHING_OWN) -> Keyword | None:
    """What a whole message that somebody typed says, or None."""
    if not text or len(text) > MAX_LENGTH:
        return None
    found = _typed(text, own)
    # Consent must be plain: who asks "Start?" has not said it.
    return None if found is Keyword.START and _QUESTION.search(text) else found


def _typed(text: str, own: Own) -> Keyword | None:
    readings = list(dict.fromkeys(_readings(bare(text))))
    if not own.stop.isdisjoint(readings):
        return Keyword.STOP
    if not own.start.isdisjoint(readings):
        return Keyword.START
    if not own.ignore.isdisjoint(readings):
        return None
    return _first(_TYPED, readings) or _first(_TYPED_EXACT, _readings(spelled(text)))


def button_keyword(payload: str | None, label: str | None, own: Own = NOTHING_OWN) -> Keyword | None:
    """What a tap on a quick-reply button says: by what the workspace named, else by the table without `typed` words."""
    texts = [text for text in (payload, label) if text and len(text) <= MAX_LENGTH]
    forms = [bare(text) for text in texts]
    if not own.stop_buttons.isdisjoint(forms):
        return Keyword.STOP
    if not own.start_buttons.isdisjoint(forms):
        return Keyword.START
    if not own.ignore.isdisjoint(forms):
        return None
    return _first(_ANYWHERE, forms) or _first(_ANYWHERE_EXACT, map(spelled, texts))


def _first(table: Mapping[str, Keyword], forms: Iterable[str]) -> Keyword | None:
    return next((table[form] for form in forms if form in table), None)


def _readings(word: str) -> Iterator[str]:
    """The message itself; without its please and thanks; once where it is the same word again; its letters joined."""
    yield word
    plain = _AFTER.sub("", _BEFORE.sub("", word))
    yield plain
    parts = plain.split()
    if len(parts) > 1 and len(set(parts)) == 1:
        yield parts[0]
    if len(parts) > 1 and all(len(part) == 1 for part in parts):
        yield "".join(parts)
