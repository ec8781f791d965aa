"""Texts of the pages in the language of whoever asks (ADR 27). The English text is the key; `locales/` holds the
catalogue (messages.pot, generated) and each further language (<code>/LC_MESSAGES/messages.po)."""

import gettext as standard
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import structlog
from babel import Locale, UnknownLocaleError
from babel.core import negotiate_locale
from babel.messages.catalog import Catalog, Message
from babel.messages.mofile import write_mo
from babel.messages.pofile import PoFileError, read_po
from babel.numbers import format_decimal
from babel.support import LazyProxy
from fastapi import Request, Response
from sendwhy.logs import describe

LOCALES = Path(__file__).parent / "locales"
COOKIE = "sendwhy_language"
DOMAIN = "messages"
SOURCE = "en"
_ACCEPTED_MAX = 20
_KEPT_SECONDS = 365 * 86400
_TAG = re.compile(r"<[^<>]*>")
_FOR_SCRIPTS = re.compile(r"{\w+}")
_NAMED = re.compile(r"%\((\w+)\)s")
_FILLABLE = re.compile(r"%%|%\(\w+\)s")

log = structlog.get_logger("sendwhy")


@dataclass(frozen=True, slots=True)
class Language:
    """`code`: as `<html lang>` wants it; `name`: in itself, as whoever can't read another finds it."""

    code: str
    name: str
    locale: Locale
    texts: standard.NullTranslations


def _language(code: str, texts: standard.NullTranslations) -> Language:
    locale = Locale.parse(code, sep="-")
    return Language(code, (locale.get_display_name() or code).capitalize(), locale, texts)


ENGLISH = _language(SOURCE, standard.NullTranslations())
_spoken: ContextVar[Language] = ContextVar("spoken", default=ENGLISH)


def load(folder: Path = LOCALES) -> Mapping[str, Language]:
    """English and every language that has a catalogue, by code. What is wrong in a catalogue is left out, so that its
    source text shows, and told in the log: nobody's page fails by it."""
    found = {SOURCE: ENGLISH}
    for file in sorted(folder.glob(f"*/LC_MESSAGES/{DOMAIN}.po")):
        code = file.parts[-3].replace("_", "-")
        try:
            with file.open("rb") as opened:
                catalogue = read_po(opened, locale=code.replace("-", "_"), abort_invalid=True)
            found[code] = _language(code, _checked(catalogue, code))
        except (OSError, ValueError, PoFileError, UnknownLocaleError) as error:
            log.error("a language can't be read, so it is not offered", language=code, error=describe(error))
    return MappingProxyType(found)


def _checked(catalogue: Catalog, code: str) -> standard.NullTranslations:
    for message in list(catalogue):
        fault = fault_of(message, catalogue)
        if fault is not None:
            log.error("a translation is left out", language=code, text=str(message.id)[:100], fault=fault)
            catalogue.delete(message.id, message.context)
    compiled = BytesIO()
    write_mo(compiled, catalogue)
    compiled.seek(0)
    return standard.GNUTranslations(cast(Any, compiled))


def fault_of(message: Message, catalogue: Catalog) -> str | None:
    """Why a translation can't stand for its source: other placeholders, other markup, or too few plurals."""
    if not message.id or not message.string or message.fuzzy:
        return None
    errors = [str(error) for error in message.check(catalogue)]
    sources = [message.id] if isinstance(message.id, str) else list(message.id)
    texts = [message.string] if isinstance(message.string, str) else list(message.string)
    if not any(texts):
        return None
    for text in texts:
        if _markup(text) not in map(_markup, sources):
            errors.append("its tags, quotes or angle brackets are others")
        elif _placeholders(text) not in map(_placeholders, sources) or not _can_be_filled(text):
            errors.append("its placeholders are others")
    return "; ".join(errors) or None


def _markup(text: str) -> tuple[list[str], list[str], list[str]]:
    """Tags, what could open one or end an attribute, and what scripts fill in: a translation says the same in other
    words, and no more."""
    loose = [each for each in _TAG.sub("", text) if each in '<>"']
    return sorted(_TAG.findall(text)), sorted(loose), sorted(_FOR_SCRIPTS.findall(text))


def _placeholders(text: str) -> list[str]:
    return sorted(_NAMED.findall(text))


def _can_be_filled(text: str) -> bool:
    return "%" not in _FILLABLE.sub("", text)


@cache
def languages() -> Mapping[str, Language]:
    """Those of this process, read once."""
    return load()


def choose(given: str | None, accepted: str, available: Mapping[str, Language]) -> Language:
    """The language kept, else the first of Accept-Language that there is, else English."""
    if given in available:
        return available[str(given)]
    codes = {code.lower(): code for code in available}
    wanted = negotiate_locale(_by_liking(accepted.lower()), list(codes), sep="-")
    return available[codes[wanted]] if wanted else ENGLISH


def _by_liking(accepted: str) -> list[str]:
    """The languages of an Accept-Language, the most wanted first."""
    found = []
    for entry in accepted.split(",")[:_ACCEPTED_MAX]:
        code, _, parameters = entry.strip().partition(";")
        try:
            liking = float(parameters.partition("=")[2] or 1)
        except ValueError:
            continue
        if code and liking > 0:
            found.append((liking, code.strip()))
    return [code for _, code in sorted(found, key=lambda pair: -pair[0])]


def language_of(request: Request, available: Mapping[str, Language]) -> Language:
    return choose(request.cookies.get(COOKIE), request.headers.get("accept-language", ""), available)


def keep(response: Response, code: str, *, secure: bool) -> None:
    """Of no person and no session: who logs out keeps their language."""
    response.set_cookie(COOKIE, code, max_age=_KEPT_SECONDS, path="/", secure=secure, httponly=True, samesite="lax")


@contextmanager
def speaking(language: Language) -> Iterator[None]:
    """What is said within is said in this language. Outside of pages, in the API and in CSV, it is English."""
    token = _spoken.set(language)
    try:
        yield
    finally:
        _spoken.reset(token)


def spoken() -> Language:
    return _spoken.get()


def gettext(text: str, **values: object) -> str:
    """A text with %(name)s in it filled; %% is a percent sign, as in templates."""
    return _spoken.get().texts.gettext(text) % values


def pgettext(context: str, text: str, **values: object) -> str:
    """As `gettext`, of a word with several meanings."""
    return _spoken.get().texts.pgettext(context, text) % values


def ngettext(one: str, many: str, number: int, **values: object) -> str:
    """As `gettext`, by a number; `%(num)s` is that number, written for reading."""
    return _spoken.get().texts.ngettext(one, many, number) % {"num": decimal(number), **values}


def lazy(text: str, **values: object) -> str:
    """A text of a table, or of an answer that is kept for several people: said when it is shown, in the language of
    that moment."""
    return cast(str, LazyProxy(gettext, text, enable_cache=False, **values))


def lazy_in(context: str, text: str) -> str:
    return cast(str, LazyProxy(pgettext, context, text, enable_cache=False))


def told(text: str) -> str:
    """A text that comes as a value, such as a reason's title, if the catalogue has it; as it is otherwise."""
    return _spoken.get().texts.gettext(text) if text else text


def decimal(number: float) -> str:
    """1,234"""
    return format_decimal(number, locale=_spoken.get().locale)


def speak(environment: Any) -> None:
    """Let Jinja templates say `_("…")`, `ngettext`, `pgettext` and `{% trans %}`; what is filled in is escaped."""
    environment.add_extension("jinja2.ext.i18n")
    environment.policies["ext.i18n.trimmed"] = True
    environment.install_gettext_callables(
        lambda text: _spoken.get().texts.gettext(text),
        lambda one, many, number: _spoken.get().texts.ngettext(one, many, number),
        newstyle=True,
        pgettext=lambda context, text: _spoken.get().texts.pgettext(context, text),
        npgettext=lambda context, one, many, number: _spoken.get().texts.npgettext(context, one, many, number),
    )
