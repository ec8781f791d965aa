"""A workspace's own words and buttons beside the table of words.py: what may stand there, and what they say. Pure."""

from collections.abc import Iterator, Mapping
from datetime import datetime

from sendwhy.events import Inbound, MessageReceived
from sendwhy.values import value_class

from consent.words import LAWFUL, Keyword, Own, bare, button_keyword, keyword_in, said_by

SHOWN_TEXT_MAX = 200
LISTS = ("stop", "start", "stop_buttons", "start_buttons", "ignore")
_APART = (("stop", "start"), ("stop", "ignore"), ("start", "ignore"), ("stop_buttons", "start_buttons"))


@value_class
class Keywords:
    """As the workspace wrote them. `ignore`: words of the table that mean something else to its customers."""

    stop: tuple[str, ...] = ()
    start: tuple[str, ...] = ()
    stop_buttons: tuple[str, ...] = ()
    start_buttons: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()

    def named(self, name: str) -> tuple[str, ...]:
        words: tuple[str, ...] = getattr(self, name)
        return words

    @property
    def own(self) -> Own:
        return Own(**{name: frozenset(map(bare, self.named(name))) for name in LISTS})


@value_class
class Kept:
    """The keywords that hold, and who set them when; version 0: nobody did."""

    keywords: Keywords = Keywords()
    version: int = 0
    changed_by: str | None = None
    changed_at: datetime | None = None


def faults_in(keywords: Keywords) -> dict[str, str]:
    """What can't be, by the field: `stop.0` is the first word of `stop`."""
    return dict(_faults(keywords))


def _faults(keywords: Keywords) -> Iterator[tuple[str, str]]:
    forms = {name: [bare(word) for word in keywords.named(name)] for name in LISTS}
    for name, words in forms.items():
        for i, word in enumerate(words):
            if (fault := _fault(name, word, forms)) is not None:
                yield f"{name}.{i}", fault


def _fault(name: str, word: str, forms: Mapping[str, list[str]]) -> str | None:
    if not word:
        return "has no letter and no digit, and would never be found"
    if name in ("ignore", "start", "start_buttons") and word in LAWFUL:
        return "is an opt-out by law (47 CFR 64.1200), and can be nothing else"
    if name == "start" and said_by(word) is Keyword.STOP:
        return "is an opt-out already"
    other = next((one for first, one in _APART if first == name and word in forms[one]), None)
    return f"stands in {other} too, perhaps in another spelling" if other else None


def judge(event: MessageReceived, own: Own) -> tuple[Keyword | None, str]:
    """What a person's message says of their consent, and how they said it (the word's source). A STOP counts wherever
    they say it; an "ok" to a group is no consent."""
    if event.kind == Inbound.TEXT:
        keyword = keyword_in(event.text, own)
        if keyword is Keyword.START and not event.is_said_to_us:
            return None, ""
        return keyword, f"{keyword}_reply"
    if event.kind in (Inbound.BUTTON, Inbound.INTERACTIVE):
        keyword = button_keyword(event.payload, event.text, own)
        return keyword, f"{keyword}_button"
    return None, ""


def proof_of(event: MessageReceived) -> str:
    """The message's id and the person's own words, as an operator needs to see them."""
    said = f'"{_shown(event.text)}"' if event.text else ""
    tapped = f"payload {_shown(event.payload)}" if event.payload else ""
    return " ".join(filter(None, (event.wamid, said, tapped)))


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_TEXT_MAX else f"{line[:SHOWN_TEXT_MAX]}…"
