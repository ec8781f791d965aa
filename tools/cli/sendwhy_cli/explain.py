"""`sendwhy explain`: one entry of the catalogue of reasons, by any of its names."""

from __future__ import annotations

import re
from typing import Any

from rapidfuzz import fuzz, process
from rich.console import Console, Group
from rich.padding import Padding
from rich.text import Text
from sendwhy.reasons import BY_SUBCODE, CATALOGUE, ReasonCode, ReasonInfo, reason_for_meta

from sendwhy_cli import terminal

# `foo` is 68 like what has o's in it.
SIMILAR_ENOUGH = 75
SUGGESTIONS = 3
# A number of Meta's: alone, with a subcode (100/33), or as the `message` of an error begins, "(#131026) …".
_META = re.compile(
    r"(?:\(#(?P<said>\d+)\).*|#?(?P<code>\d+)(?:(?:/|\s*(?:with )?subcode )(?P<subcode>\d+))?)", re.DOTALL
)


def find(words: str) -> list[ReasonCode]:
    """The entries that bear this name: a code, a title, an alias, or one of Meta's numbers. Mostly one or none."""
    if told := _META.fullmatch(words.strip()):
        number = int(told["said"] or told["code"])
        if told["subcode"]:
            return [reason_for_meta(number, subcode=int(told["subcode"]))]
        return [reason_for_meta(number), *(reason for (code, _), reason in BY_SUBCODE.items() if code == number)]
    wanted = _plain(words)
    return [code for code, info in CATALOGUE.items() if wanted in map(_plain, _names(code, info))]


def suggest(words: str) -> list[ReasonCode]:
    """The entries whose names are most like these words, best first."""
    names = [(_plain(name), code) for code, info in CATALOGUE.items() for name in _names(code, info)]
    texts = [text for text, _ in names]
    hits = process.extract(_plain(words), texts, scorer=fuzz.WRatio, score_cutoff=SIMILAR_ENOUGH, limit=None)
    return list(dict.fromkeys(names[index][1] for _, _, index in hits))[:SUGGESTIONS]


def as_json(code: ReasonCode) -> dict[str, Any]:
    info = CATALOGUE[code]
    return {
        "code": code,
        "title": info.title,
        "also_known_as": list(info.also_known_as),
        "meta_codes": sorted(info.meta_codes),
        "meta_rules": list(info.meta_rules),
        "services": sorted(info.services),
        "meaning": info.meaning,
        "causes": list(info.causes),
        "what_to_do": info.what_to_do,
        "prevention": info.prevention,
        "recoverable": info.recoverable,
        "waiting_helps": info.waiting_helps,
    }


def show(console: Console, code: ReasonCode) -> None:
    info = CATALOGUE[code]
    console.print(Text.assemble((info.title, "bold"), f"  {code}"))
    facts = {
        "What it means": info.meaning,
        "Why it happens": "\n".join(f"- {cause}" for cause in info.causes),
        "What to do now": info.what_to_do,
        "How to prevent it": info.prevention,
        "Who says it": ", ".join(sorted(info.services)),
        "Does waiting help": "yes" if info.waiting_helps else "no",
        "Can be sent again": info.recoverable.replace("_", " "),
        "Also known as": ", ".join(info.also_known_as),
        "Meta's codes": ", ".join(info.meta_told()),
    }
    for heading, text in facts.items():
        if text:
            terminal.draw(console, Group(Text(f"\n{heading}", style="bold"), Padding(Text(text), (0, 0, 0, 2))))


def _names(code: ReasonCode, info: ReasonInfo) -> tuple[str, ...]:
    return (code, info.title, *info.also_known_as)


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name).strip().casefold()
