"""Phone numbers: from what somebody typed to the number that Meta gets, or to what is wrong with it.

Two spellings of one number (Brazil's ninth digit, Mexico's 1, Argentina's 9) share one key, so that they are one
person. What is sent stays the spelling that was given, where it can exist: Meta takes both.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

import phonenumbers
from phonenumbers import NumberParseException, PhoneNumber, PhoneNumberType, ValidationResult
from sendwhy.values import value_class

MIN_DIGITS, MAX_DIGITS = 5, 15
CACHED_NUMBERS = 65_536
# In our own lists, for who may not see numbers: what is left of one must never be read as another.
_MASK = re.compile(r"[•*]{2,}")
_FILLERS = frozenset(" -().,/_\t·•‐‑‒–—−")
# Ranges that hold services, not people: nobody can register WhatsApp there. Landlines can (WhatsApp Business).
_NOBODYS_RANGES = frozenset(
    {PhoneNumberType.PREMIUM_RATE, PhoneNumberType.SHARED_COST, PhoneNumberType.PAGER, PhoneNumberType.VOICEMAIL}
)
_MOBILE_RANGES = frozenset({PhoneNumberType.MOBILE, PhoneNumberType.FIXED_LINE_OR_MOBILE})


@value_class
class Phone:
    """`e164` is what Meta gets, `key` (digits) is equal for all spellings of one number, `country` in ISO letters."""

    e164: str
    key: str
    country: str | None
    calling_code: str


class PhoneFault(StrEnum):
    MISSING_CALLING_CODE = "missing_calling_code"
    IMPOSSIBLE = "impossible"


class Ground(StrEnum):
    """Why a calling code is suggested."""

    PHONE_COUNTRY = "phone_country"
    ADDRESS_COUNTRY = "address_country"
    SHOP_COUNTRY = "shop_country"
    DIGITS = "digits"


class Hint(NamedTuple):
    """A country (ISO letters) that a number may belong to, and how one comes to think so."""

    ground: Ground
    country: str | None


_GROUNDS_IN_WORDS: Mapping[Ground, str] = MappingProxyType(
    {
        Ground.PHONE_COUNTRY: "phone_country_code",
        Ground.ADDRESS_COUNTRY: "the address' country",
        Ground.SHOP_COUNTRY: "the shop's country",
    }
)


@value_class
class Suggestion:
    """What the number would be if its ground held; for a person to judge, never applied by itself.

    `country` is that of the ground, None where only the digits speak; `text` says the ground in words.
    """

    calling_code: str
    phone: str
    ground: Ground
    country: str | None
    text: str


@value_class
class Reading:
    """Either a phone, or a fault with one sentence on it."""

    phone: Phone | None
    fault: PhoneFault | None = None
    detail: str = ""


@lru_cache(CACHED_NUMBERS)
def read_phone(given: str, calling_code: str | None = None) -> Reading:
    """Read `given` with the calling code (digits) that is stored beside it."""
    text = _plain(given)
    if text is None:
        return _impossible("it holds characters that belong to no phone number")
    if text.startswith("+"):
        return _international(text)
    if not MIN_DIGITS <= len(text) <= MAX_DIGITS + 2:
        return _impossible(f"no number has {len(text)} digits")
    if (code := _known_code(calling_code)) is not None:
        return _with_code(text, code)
    return Reading(None, PhoneFault.MISSING_CALLING_CODE, "the number has no calling code, so it may belong to anybody")


def suggest(given: str, calling_code: str | None, hints: Sequence[Hint]) -> Suggestion | None:
    """What `given` would be with the first hint that makes a number of it; None unless its calling code is missing."""
    text = _plain(given)
    if text is None or read_phone(given, calling_code).fault != PhoneFault.MISSING_CALLING_CODE:
        return None
    # A known code that leaves it open is not overruled by a country.
    for ground, country in () if _known_code(calling_code) else hints:
        region = country.strip().upper() if country else ""
        code = phonenumbers.country_code_for_region(region)
        phone = _with_code(text, str(code)).phone if code else None
        if phone is not None:
            return Suggestion(str(code), phone.e164, ground, region, f"{_GROUNDS_IN_WORDS[ground]} {region}")
    reading = _international(f"+{text}")
    if reading.phone is None or _likelihood(reading) == 0:
        return None
    code_text = reading.phone.calling_code
    return Suggestion(code_text, reading.phone.e164, Ground.DIGITS, None, f"the digits begin with {code_text}")


@lru_cache(CACHED_NUMBERS)
def place_of_user_id(user_id: str) -> tuple[str, str] | None:
    """Country (ISO letters) and calling code of a WhatsApp user id, which begins with the country's letters and a dot
    (Meta, "Business-scoped user IDs": GB.704155…). None where it says none."""
    country, dot, _ = user_id.partition(".")
    code = phonenumbers.country_code_for_region(country) if dot else 0
    return (country, str(code)) if code else None


def phone_of_wa_id(wa_id: str) -> Phone | None:
    """Meta names people by international digits without a plus."""
    return read_phone(wa_id if wa_id.startswith("+") else f"+{wa_id}").phone


def is_masked(given: str) -> bool:
    """Whether it is a number of which only some digits are shown, as +5255••••5678."""
    return _MASK.search(given) is not None


def _plain(given: str) -> str | None:
    """`given` as digits with or without a leading plus (a leading 00 means plus), or None."""
    text = unicodedata.normalize("NFKC", given).strip()
    if is_masked(text):
        return None
    for prefix in ("tel:", "whatsapp:"):
        text = text.removeprefix(prefix)
    kept = []
    for character in text:
        if character.isdecimal():
            kept.append(str(unicodedata.decimal(character)))
        elif character == "+" and not kept:
            kept.append("+")
        elif character not in _FILLERS and unicodedata.category(character) not in ("Cf", "Zs"):
            return None
    plain = "".join(kept)
    if plain.startswith("00"):
        plain = f"+{plain[2:]}"
    return plain if any(character != "+" for character in plain) else None


def _known_code(calling_code: str | None) -> str | None:
    plain = _plain(calling_code) if calling_code else None
    digits = plain.removeprefix("+") if plain else ""
    known = digits.isdecimal() and len(digits) <= 3 and int(digits) in phonenumbers.COUNTRY_CODE_TO_REGION_CODE
    return digits if known else None


def _international(text: str) -> Reading:
    number = _parsed(text)
    if number is None:
        return _impossible("no country has this calling code")
    number = _without_mexicos_one(number)
    result = phonenumbers.is_possible_number_with_reason(number)
    if result != ValidationResult.IS_POSSIBLE:
        return _impossible(_POSSIBLE_FAULTS.get(result, "its length fits no number of that country"))
    if phonenumbers.number_type(number) in _NOBODYS_RANGES:
        return _impossible("it lies in a range of services that no person has")
    phone = _phone(number)
    # One trunk zero after the calling code is a habit; where more is left out each time, nobody knows which is meant.
    if phone.e164 != text and _international(phone.e164).phone != phone:
        return _impossible("it has more zeros before it than any number of that country")
    return Reading(phone)


_POSSIBLE_FAULTS: Mapping[int, str] = MappingProxyType(
    {
        ValidationResult.TOO_SHORT: "it is too short for its country",
        ValidationResult.TOO_LONG: "it is too long for its country",
        ValidationResult.IS_POSSIBLE_LOCAL_ONLY: "its area code is missing",
    }
)


def _with_code(digits: str, code: str) -> Reading:
    national = _international(f"+{code}{digits}")
    international = _international(f"+{digits}") if digits.startswith(code) else None
    if international is None or international.phone in (None, national.phone):
        return national
    if national.phone is None:
        return international
    by_likelihood = sorted((national, international), key=_likelihood, reverse=True)
    if _likelihood(by_likelihood[0]) > _likelihood(by_likelihood[1]):
        return by_likelihood[0]
    # Both could be: sending to the wrong one would reach a stranger.
    return Reading(
        None,
        PhoneFault.MISSING_CALLING_CODE,
        f"the digits fit with and without +{code} before them",
    )


def _impossible(detail: str) -> Reading:
    return Reading(None, PhoneFault.IMPOSSIBLE, detail)


def _parsed(text: str) -> PhoneNumber | None:
    try:
        return phonenumbers.parse(text)
    except NumberParseException:
        return None


def _likelihood(reading: Reading) -> int:
    """2 for a range of mobiles, 1 for another range in use, 0 for what is only possible by its length."""
    number = _parsed(reading.phone.e164) if reading.phone else None
    if number is None or not phonenumbers.is_valid_number(number):
        return 0
    return 2 if phonenumbers.number_type(number) in _MOBILE_RANGES else 1


def _phone(number: PhoneNumber) -> Phone:
    code = number.country_code or 0
    national = phonenumbers.national_significant_number(number)
    canonical = _ONE_SPELLING[code](national) if code in _ONE_SPELLING else national
    region = phonenumbers.region_code_for_number(number) or phonenumbers.region_code_for_country_code(code)
    country = region if region not in ("ZZ", "001") else None
    return Phone(f"+{code}{national}", f"{code}{canonical}", country, str(code))


def _without_mexicos_one(number: PhoneNumber) -> PhoneNumber:
    # Abolished in 2019, still in WhatsApp's own ids: +52 1 55 1234 5678 is +52 55 1234 5678.
    national = phonenumbers.national_significant_number(number)
    if number.country_code == 52 and len(national) == 11 and national.startswith("1"):
        return PhoneNumber(country_code=52, national_number=int(national[1:]))
    return number


def _brazil(national: str) -> str:
    """Mobiles (first digit after the area code 6 to 9) got a ninth digit; landlines (2 to 5) did not."""
    return f"{national[:2]}9{national[2:]}" if len(national) == 10 and national[2] in "6789" else national


def _argentina(national: str) -> str:
    """The 9 after 54 marks a mobile when called from abroad."""
    return national[1:] if len(national) == 11 and national.startswith("9") else national


_ONE_SPELLING: Mapping[int, Callable[[str], str]] = MappingProxyType({55: _brazil, 54: _argentina})
