"""What a search by name compares: no accents, no case, words alone; and where a phone's number is at home. Pure."""

import re
import unicodedata

from phonenumbers import COUNTRY_CODE_TO_REGION_CODE, country_code_for_region

from message_log.language import gettext as _

_WORD = re.compile(r"\w+")
_WORDS_MAX = 8
_ANYWHERE = "001"


def folded(name: str | None) -> str | None:
    """“Inés  O'Hara” as "ines o hara"; None where there is no word in it."""
    if name is None:
        return None
    plain = "".join(each for each in unicodedata.normalize("NFKD", name) if not unicodedata.combining(each))
    return " ".join(_WORD.findall(plain.casefold())) or None


def prefix_query(searched: str) -> str | None:
    """For PostgreSQL's to_tsquery: each word as the beginning of one. None where there is nothing to search for."""
    words = (folded(searched) or "").split()[:_WORDS_MAX]
    return " & ".join(f"'{word}':*" for word in words) or None


def calling_code_of(digits: str | None) -> str | None:
    """The calling code that a number in international form begins with."""
    lengths = (1, 2, 3) if digits else ()
    return next((digits[:n] for n in lengths if digits and int(digits[:n]) in COUNTRY_CODE_TO_REGION_CODE), None)


def code_of_country(given: str) -> str | None:
    """A calling code from what people write for a country: "MX", "52" or "+52"; None where it is none."""
    text = given.strip().removeprefix("+")
    if text.isascii() and text.isdigit():
        return text if int(text) in COUNTRY_CODE_TO_REGION_CODE and not text.startswith("0") else None
    return str(country_code_for_region(text.upper()) or "") or None


def countries_of(calling_code: str) -> str:
    """The countries of a calling code as ISO letters, the main one first: "MX"; "US and 24 more"; "" for none."""
    regions = [one for one in COUNTRY_CODE_TO_REGION_CODE.get(int(calling_code), ()) if one != _ANYWHERE]
    if len(regions) > 2:
        return _("%(country)s and %(count)s more", country=regions[0], count=len(regions) - 1)
    if len(regions) == 2:
        return _("%(country)s and %(other)s", country=regions[0], other=regions[1])
    return "".join(regions)
