"""Which column of a file is which field of a contact, and what a cell may hold. Pure.

A column is claimed by what the caller says (`map.phone=Mobile`), else by a field's own name, else by one of its other
names, else by likeness. Only the best claims on a field count; two equally good ones are refused, since a guess would
write to the wrong number.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError
from rapidfuzz import fuzz, process
from sendwhy.events import ContactId, Line, MarketingState, Name
from sendwhy.sheets import unguarded

from consent.phones import is_masked

LIKENESS_MIN = 88
# Of short words one letter is half the meaning: "fname" is not "name".
LIKENESS_LENGTH_MIN = 6
SHOWN_COLUMNS, SHOWN_LETTERS = 20, 40
_YES = frozenset({"yes", "y", "true", "1", "si", "sí", "sim", "ja", "oui", "да", "opted in", "opt-in"})
_NO = frozenset({"no", "n", "false", "0", "não", "nao", "nein", "non", "нет", "opted out", "opt-out"})
_CAMEL = re.compile(r"(?<=[a-zà-ÿ])(?=[A-Z])")
_BETWEEN_WORDS = re.compile(r"[\W_]+")


class UnreadableFile(Exception):
    """The file as a whole can't be imported; the message says why, `errors` names the query parameters to use,
    or the body."""

    def __init__(self, why: str, errors: Mapping[str, str] | None = None) -> None:
        super().__init__(why)
        self.errors = errors or {"body": why}


@dataclass(frozen=True, slots=True)
class Known:
    """A column's other names, comma-separated, as lists of many makers and languages have them; `of`: the attribute of
    a contact's Fields that it fills."""

    names: str
    of: str | None = None


def _readable(text: str) -> str:
    if "\ufffd" in text:
        raise ValueError("holds bytes that don't belong to the file's encoding")
    return text


def _whole(phone: str) -> str:
    """A list that somebody without the right to see numbers took from here must not overwrite them."""
    if is_masked(phone):
        raise ValueError("is masked: take the list with the right to see numbers, or leave the column out")
    return phone


_Text = BeforeValidator(_readable)
_ContactId = Annotated[ContactId, _Text]
_Phone = Annotated[Line, Field(max_length=64), AfterValidator(_whole), _Text]
_Country = Annotated[str, Field(pattern="^[A-Za-z]{2}$")]
_Code = Annotated[str, Field(pattern=r"^\+?[0-9]{1,3}$")]
_Name = Annotated[Name, _Text]
_Language = Annotated[str, Field(pattern=r"^[A-Za-z]{2,3}([_-][A-Za-z0-9]{2,8})*$", max_length=16)]
_State = Annotated[MarketingState, BeforeValidator(lambda text: str(text).upper())]
_Source = Annotated[Line, Field(max_length=64), _Text]
_Proof = Annotated[Line, Field(max_length=512), _Text]

_IDS = Known(
    "contact, id, customer id, customer number, customer no, customer, client id, client number, member id,"
    "subscriber id, shopify id, record id, id cliente, id de cliente, cliente id, numero de cliente, id contacto,"
    "id do cliente, kunden id, kundennummer, kunden nr, kontakt id, id client, numero client, klantnummer,"
    "codice cliente, id клиента, номер клиента"
)
_PHONES = Known(
    "phone number, phone no, mobile, mobile number, mobile phone, mobile phone number, cell, cell phone, cellphone,"
    "telephone, telephone number, whatsapp, whatsapp number, whatsapp phone, msisdn, telefono, numero de telefono,"
    "telefono movil, movil, celular, numero de celular, telefone, numero de telefone, telemovel, handy, handynummer,"
    "telefon, telefonnummer, rufnummer, mobilnummer, mobiltelefon, telephone portable, numero de telephone, portable,"
    "cellulare, numero di telefono, telefoon, telefoonnummer, телефон, номер телефона, мобильный",
    of="phone",
)
_COUNTRIES = Known("phone country, country code, country iso, iso country", of="country_code")
_CODES = Known(
    "calling code, country calling code, dial code, dialing code, dialling code, ddi, phone prefix, landesvorwahl,"
    "vorwahl, prefijo, codigo de pais, lada, indicatif",
    of="calling_code",
)
_NAMES = Known(
    "full name, contact name, customer name, display name, nombre, nombre completo, nome, nome completo, kundenname,"
    "nom, nom complet, naam, имя, фио",
    of="name",
)
_STATES = Known(
    "marketing, marketing status, marketing consent, marketing opt in, accepts marketing, accepts whatsapp marketing,"
    "whatsapp opt in, whatsapp consent, opt in, opted in, subscribed, subscription status, acepta marketing,"
    "aceita marketing, einwilligung"
)
_SOURCES = Known("consent source, opt in source, quelle, origen")
_LANGUAGES = Known("locale, language code, idioma, sprache, langue, lingua, taal, язык", of="language")
# Not "country" alone: lists have names there, and each row would be refused for its.
_ADDRESSES = Known("address country code, default address country code, billing country code", of="address_country")
_PROOFS = Known("consent proof, proof of consent, nachweis, prueba")


class ImportRow(BaseModel):
    """One row; empty cells count as not told. A further column is one further line here (and its other names)."""

    contact_id: Annotated[_ContactId, _IDS]
    phone: Annotated[_Phone | None, _PHONES] = None
    phone_country_code: Annotated[_Country | None, _COUNTRIES] = None
    phone_calling_code: Annotated[_Code | None, _CODES] = None
    name: Annotated[_Name | None, _NAMES] = None
    marketing_state: Annotated[_State | None, _STATES] = None
    source: Annotated[_Source | None, _SOURCES] = None
    proof: Annotated[_Proof | None, _PROOFS] = None
    language: Annotated[_Language | None, _LANGUAGES] = None
    address_country: Annotated[_Country | None, _ADDRESSES] = None


# What a cell of a field must be, for whoever made the file.
_COUNTRY = "must be a country's two letters, as MX"
_MUST_BE = {
    "phone_country_code": _COUNTRY,
    "phone_calling_code": "must be 1 to 3 digits, as 52 or +52",
    "marketing_state": "must be SUBSCRIBED, UNSUBSCRIBED, NOT_SUBSCRIBED or UNKNOWN",
    "language": "must be a language's code, as es or es_MX",
    "address_country": _COUNTRY,
}


def fault_of(error: ValidationError) -> tuple[str, str]:
    """The first wrong field of a row, and what to do about it."""
    first = error.errors(include_input=False, include_url=False)[0]
    field = str(first["loc"][0])
    match first["type"]:
        case "missing":
            return field, "is empty, and every row needs it"
        case "string_too_long" | "too_long":
            return field, f"must be at most {first['ctx']['max_length']} characters long"
        case "string_pattern_mismatch" | "enum" if field in _MUST_BE:
            return field, _MUST_BE[field]
    return field, first["msg"].removeprefix("Value error, ")


def plain(name: str) -> str:
    """A header as it is compared: small letters without accents, one blank between words."""
    text = unicodedata.normalize("NFKD", _CAMEL.sub(" ", name.strip()))
    text = "".join(letter for letter in text if not unicodedata.combining(letter))
    return _BETWEEN_WORDS.sub(" ", text.casefold()).strip()


_KNOWN = {
    field: next(mark for mark in info.metadata if isinstance(mark, Known))
    for field, info in ImportRow.model_fields.items()
}
ATTRIBUTES: Mapping[str, str] = {field: known.of for field, known in _KNOWN.items() if known.of}
OTHER_NAMES: Mapping[str, str] = {
    plain(other): field for field, known in _KNOWN.items() for other in (field, *known.names.split(","))
}


class Claim(IntEnum):
    """How good a column's claim on a field is."""

    LIKENESS = 1
    OTHER_NAME = 2
    OWN_NAME = 3
    CALLER = 4


@dataclass(frozen=True, slots=True)
class Columns:
    """A file's header, and where each field stands in it. `lenient`: fields whose column the contract doesn't name, so
    that other words for yes and no are taken there."""

    header: tuple[str, ...]
    places: Mapping[str, int]
    lenient: frozenset[str]

    @property
    def mapping(self) -> dict[str, str]:
        return {field: self.header[place] for field, place in self.places.items()}

    @property
    def ignored(self) -> list[str]:
        used = set(self.places.values())
        return [name for place, name in enumerate(self.header) if place not in used and name]

    def told(self, cells: Sequence[str]) -> dict[str, str]:
        """A row's cells by field, without blanks around them; the empty ones are left out."""
        told = {field: _cell(cells[place]) for field, place in self.places.items() if place < len(cells)}
        if "marketing_state" in self.lenient and (word := told.get("marketing_state")):
            told["marketing_state"] = _state_of(word)
        return {field: cell for field, cell in told.items() if cell}


def _cell(text: str) -> str:
    """A cell's words: a spreadsheet, and our own file of refused rows, put a ' before what would be a formula."""
    return unguarded(text.strip()).strip()


def _state_of(word: str) -> str:
    if word.casefold() in _YES:
        return MarketingState.SUBSCRIBED
    return MarketingState.NOT_SUBSCRIBED if word.casefold() in _NO else word


def field_of(name: str) -> tuple[str, Claim] | None:
    """The field that a column's name speaks of, if any."""
    if (own := name.strip().lower()) in ImportRow.model_fields:
        return own, Claim.OWN_NAME
    # With and without a blank in the middle of WhatsApp.
    spellings = (plain(name), plain(name.lower()))
    for asked in spellings:
        if (field := OTHER_NAMES.get(asked)) is not None:
            return field, Claim.OTHER_NAME
    likely = next(filter(None, map(_likeness, spellings)), None)
    return (likely, Claim.LIKENESS) if likely else None


def _likeness(asked: str) -> str | None:
    if len(asked) < LIKENESS_LENGTH_MIN:
        return None
    # A slip of the pen adds no word: "accepts sms marketing" is not "accepts marketing".
    words = asked.count(" ")
    known = [other for other in OTHER_NAMES if len(other) >= LIKENESS_LENGTH_MIN and other.count(" ") == words]
    found = process.extractOne(asked, known, scorer=fuzz.ratio, score_cutoff=LIKENESS_MIN)
    return OTHER_NAMES[found[0]] if found else None


def map_columns(cells: Sequence[str], wanted: Mapping[str, str]) -> Columns:
    """Where each field stands in this header. `wanted`: columns by field, as the caller says; an empty one: none.

    Raises UnreadableFile, which names the columns in question.
    """
    # PostgreSQL, which keeps the header, takes no NUL.
    header = tuple(cell.replace("\0", "\ufffd").strip() for cell in cells)
    claims: dict[str, list[tuple[Claim, int]]] = {field: [] for field in ImportRow.model_fields}
    taken = {_place_of(field, column, header): field for field, column in wanted.items() if column.strip()}
    for place, name in enumerate(header):
        if place in taken:
            claims[taken[place]].append((Claim.CALLER, place))
        elif (found := field_of(name)) is not None and found[0] not in wanted:
            claims[found[0]].append((found[1], place))
    places, lenient = {}, set()
    for field, claimed in claims.items():
        if claimed:
            best = max(claim for claim, _ in claimed)
            places[field] = _only(field, [place for claim, place in claimed if claim == best], header)
            if best != Claim.OWN_NAME:
                lenient.add(field)
    if "contact_id" not in places:
        raise UnreadableFile(
            "The first row must name the columns, and contact_id is not among them. It names:"
            f" {_shown(header)}. Say which one holds the contact's id.",
            {"map.contact_id": "name the column that holds the contact's id"},
        )
    return Columns(header, places, frozenset(lenient))


def _place_of(field: str, column: str, header: Sequence[str]) -> int:
    parameter = f"map.{field}"
    if field not in ImportRow.model_fields:
        raise UnreadableFile(
            f"There is no field {field!r} to map a column to.",
            {parameter: f"the fields are {', '.join(ImportRow.model_fields)}"},
        )
    exact = [place for place, name in enumerate(header) if name == column.strip()]
    alike = [place for place, name in enumerate(header) if name.casefold() == column.strip().casefold()]
    if not (exact or alike):
        raise UnreadableFile(
            f"No column is called {column[:SHOWN_LETTERS]!r}. The file has: {_shown(header)}.",
            {parameter: "names no column of the file"},
        )
    return _only(field, exact or alike, header)


def _only(field: str, places: Sequence[int], header: Sequence[str]) -> int:
    if len(places) > 1:
        named = [f"{header[place][:SHOWN_LETTERS]!r} (column {place + 1})" for place in places]
        raise UnreadableFile(
            f"Several columns may be {field}: {', '.join(named)}. Say which one, or rename the others.",
            {f"map.{field}": "name the column to take"},
        )
    return places[0]


def _shown(header: Sequence[str]) -> str:
    named = [repr(name[:SHOWN_LETTERS]) for name in header[:SHOWN_COLUMNS]]
    return ", ".join(named) + (f" and {len(header) - SHOWN_COLUMNS} more" if len(header) > SHOWN_COLUMNS else "")
