"""What a source has on a person beside consent, and what one change did to it. Pure."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from sendwhy.values import value_class

from consent.phones import Ground, Hint, Reading, Suggestion, read_phone, suggest

PHONE_FIELDS = {"phone": "phone", "phone_country_code": "country_code", "phone_calling_code": "calling_code"}
BY_HAND = frozenset({"put", "suggestion"})


@value_class
class Fields:
    """`phone` as it was given. `external_ids`: further names under which other systems know the person."""

    phone: str | None = None
    country_code: str | None = None
    calling_code: str | None = None
    user_id: str | None = None
    name: str | None = None
    language: str | None = None
    address_country: str | None = None
    external_ids: tuple[str, ...] = ()

    @property
    def reading(self) -> Reading | None:
        return read_phone(self.phone, self.calling_code) if self.phone else None

    @property
    def e164(self) -> str | None:
        reading = self.reading
        return reading.phone.e164 if reading and reading.phone else None

    @property
    def phone_key(self) -> str | None:
        reading = self.reading
        return reading.phone.key if reading and reading.phone else None

    def suggestion(self, shop_country: str | None = None) -> Suggestion | None:
        """What the phone would be, where only its calling code is missing; the nearest ground first."""
        hints = [Hint(Ground.ADDRESS_COUNTRY, self.address_country), Hint(Ground.SHOP_COUNTRY, shop_country)]
        if self.country_code != self.address_country:
            hints.insert(0, Hint(Ground.PHONE_COUNTRY, self.country_code))
        return suggest(self.phone, self.calling_code, tuple(hints)) if self.phone else None

    def filled_from(self, older: "Fields") -> "Fields":
        """These fields; those that are not told stay as they were. A phone comes with its own codes."""
        codes = older if self.phone is None or self.phone == older.phone else Fields()
        return Fields(
            phone=self.phone or older.phone,
            country_code=self.country_code or codes.country_code,
            calling_code=self.calling_code or codes.calling_code,
            user_id=self.user_id or older.user_id,
            name=self.name or older.name,
            language=self.language or older.language,
            address_country=self.address_country or older.address_country,
            external_ids=self.external_ids or older.external_ids,
        )


NOTHING = Fields()


@value_class
class PhoneSetter:
    """Who last set a contact's phone or calling code. `origin`: put, suggestion, import, sync, person or link."""

    origin: str
    by: str
    at: datetime

    @property
    def is_by_hand(self) -> bool:
        return self.origin in BY_HAND


@value_class
class FieldChange:
    """One of the phone's fields (as the API names them) before and after a change."""

    field: str
    old: str | None
    new: str | None


def phone_changes(old: Fields, new: Fields) -> tuple[FieldChange, ...]:
    pairs = ((name, getattr(old, key), getattr(new, key)) for name, key in PHONE_FIELDS.items())
    return tuple(FieldChange(name, before, after) for name, before, after in pairs if before != after)


def before_changes(fields: Fields, olds: Mapping[str, str | None]) -> Fields:
    """Fields as they were, given the old values of those of the phone's fields that have changed."""
    return replace(
        fields,
        phone=olds.get("phone", fields.phone),
        country_code=olds.get("phone_country_code", fields.country_code),
        calling_code=olds.get("phone_calling_code", fields.calling_code),
    )


def is_other_number(old: Fields, new: Fields) -> bool:
    """Whether another number would be dialled; a country alone changes nothing that is sent."""
    return (old.phone, old.calling_code) != (new.phone, new.calling_code)
