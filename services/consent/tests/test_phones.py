import pytest
from consent.fields import Fields
from consent.phones import PhoneFault, phone_of_wa_id, read_phone
from hypothesis import given
from hypothesis import strategies as st

READ = [
    # given, calling code, country → E.164
    ("+525512345678", None, None, "+525512345678"),
    ("+52 (55) 1234-5678", None, None, "+525512345678"),
    ("+5215512345678", None, None, "+525512345678"),
    ("5512345678", "52", None, "+525512345678"),
    ("5512345678", "+52", "MX", "+525512345678"),
    ("525512345678", "52", None, "+525512345678"),
    ("+5511987654321", None, None, "+5511987654321"),
    ("+551187654321", None, None, "+551187654321"),
    ("11 98765-4321", "55", None, "+5511987654321"),
    ("+5491123456789", None, None, "+5491123456789"),
    ("+541123456789", None, None, "+541123456789"),
    ("+447700900142", None, None, "+447700900142"),
    ("+44 (0)7700 900142", None, None, "+447700900142"),
    ("07700900142", "44", None, "+447700900142"),
    ("0044 7700 900142", None, None, "+447700900142"),
    ("4917612345678", "49", None, "+4917612345678"),
    ("0176 12345678", "49", None, "+4917612345678"),
    ("+49 30 901820", None, None, "+4930901820"),
    ("06 12 34 56 78", "33", None, "+33612345678"),
    ("612345678", "34", None, "+34612345678"),
    ("3331234567", "39", None, "+393331234567"),
    ("+39 06 6982", None, None, "+39066982"),
    ("9876543210", "91", None, "+919876543210"),
    ("919876543210", "91", None, "+919876543210"),
    ("08123456789", "62", None, "+628123456789"),
    ("89161234567", "7", None, "+79161234567"),
    ("２０２５５５０１２３", "1", None, "+12025550123"),
    ("1 202 555 0123", "1", None, "+12025550123"),
    ("tel:+1-202-555-0123", None, None, "+12025550123"),
    ("\u202a+12025550123\u202c", None, None, "+12025550123"),
]

FAULTY = [
    ("5512345678", None, None, PhoneFault.MISSING_CALLING_CODE),
    ("5512345678", None, "MX", PhoneFault.MISSING_CALLING_CODE),
    ("525512345678", None, "MX", PhoneFault.MISSING_CALLING_CODE),
    ("07700900142", None, "GB", PhoneFault.MISSING_CALLING_CODE),
    ("5512345678", "000", None, PhoneFault.MISSING_CALLING_CODE),
    ("+999123456789", None, None, PhoneFault.IMPOSSIBLE),
    ("+5255123", None, None, PhoneFault.IMPOSSIBLE),
    ("+52551234567890", None, None, PhoneFault.IMPOSSIBLE),
    ("+12345678", None, None, PhoneFault.IMPOSSIBLE),
    ("123", None, "MX", PhoneFault.IMPOSSIBLE),
    ("55123", "52", None, PhoneFault.IMPOSSIBLE),
    ("+1 900 555 1234", None, None, PhoneFault.IMPOSSIBLE),
    ("call me", None, None, PhoneFault.IMPOSSIBLE),
    # As our lists show numbers to those who may not see them: another number without the dots.
    ("+4915••••6789", None, None, PhoneFault.IMPOSSIBLE),
    ("+4915****6789", None, None, PhoneFault.IMPOSSIBLE),
    ("***89", None, None, PhoneFault.IMPOSSIBLE),
    ("15••••6789", "49", None, PhoneFault.IMPOSSIBLE),
    ("+", None, None, PhoneFault.IMPOSSIBLE),
    ("00000000000", None, None, PhoneFault.IMPOSSIBLE),
]


@pytest.mark.parametrize(("given_phone", "code", "country", "e164"), READ)
def test_readable_numbers(given_phone: str, code: str | None, country: str | None, e164: str) -> None:
    reading = Fields(given_phone, country, code).reading
    assert reading is not None
    assert reading.phone is not None, reading
    assert reading.phone.e164 == e164


@pytest.mark.parametrize(("given_phone", "code", "country", "fault"), FAULTY)
def test_faulty_numbers(given_phone: str, code: str | None, country: str | None, fault: PhoneFault) -> None:
    reading = Fields(given_phone, country, code, address_country=country).reading
    assert reading is not None
    assert (reading.phone, reading.fault) == (None, fault)
    assert reading.detail


@pytest.mark.parametrize(
    ("fields", "shop", "suggested", "ground"),
    [
        (Fields("5512345678", "MX"), None, "+525512345678", "phone_country_code MX"),
        (Fields("5512345678", "mx"), None, "+525512345678", "phone_country_code MX"),
        (Fields("07700900142", "GB"), None, "+447700900142", "phone_country_code GB"),
        (Fields("525512345678"), None, "+525512345678", "the digits begin with 52"),
        (Fields("5512345678", address_country="MX"), "US", "+525512345678", "the address' country MX"),
        (Fields("5512345678", "MX", address_country="MX"), None, "+525512345678", "the address' country MX"),
        (Fields("5512345678", "MX", address_country="US"), None, "+525512345678", "phone_country_code MX"),
        (Fields("5512345678"), "MX", "+525512345678", "the shop's country MX"),
        (Fields("525512345678"), "US", "+525512345678", "the digits begin with 52"),
    ],
)
def test_a_missing_calling_code_is_suggested_and_not_applied(
    fields: Fields, shop: str | None, suggested: str, ground: str
) -> None:
    assert fields.e164 is None
    suggestion = fields.suggestion(shop)
    assert suggestion is not None
    assert (suggestion.phone, suggestion.text) == (suggested, ground)


@pytest.mark.parametrize("fields", [Fields(), Fields("+525512345678"), Fields("123", "MX"), Fields("5512345678")])
def test_nothing_is_suggested_where_no_code_is_missing_or_nothing_tells_which(fields: Fields) -> None:
    assert fields.suggestion() is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("+5215512345678", "+525512345678"),
        ("+5511987654321", "+551187654321"),
        ("+5491123456789", "+541123456789"),
        ("+55 21 98765-4321", "+55 21 8765-4321"),
        ("+5521 7876-5432", "+5521 97876-5432"),
    ],
)
def test_two_spellings_are_one_person(one: str, other: str) -> None:
    first, second = read_phone(one).phone, read_phone(other).phone
    assert first is not None
    assert second is not None
    assert first.key == second.key


@pytest.mark.parametrize(
    ("landline", "mobile"),
    [
        ("+551134567890", "+5511934567890"),
        ("+552125551234", "+5521925551234"),
        ("+5548 3222-1234", "+5548 93222-1234"),
        ("+55 85 4002-8922", "+55 85 94002-8922"),
    ],
)
def test_a_landline_is_never_rewritten(landline: str, mobile: str) -> None:
    phone, other = read_phone(landline).phone, read_phone(mobile).phone
    assert phone is not None
    assert (phone.e164, phone.key) == (f"+{phone.key}", "".join(filter(str.isdecimal, landline)))
    assert other is None or other.key != phone.key


def test_meta_names_people_without_a_plus() -> None:
    phone = phone_of_wa_id("5215512345678")
    assert phone is not None
    assert phone.key == "525512345678"


@given(st.text(max_size=64), st.text(max_size=4) | st.none(), st.text(max_size=3) | st.none())
def test_any_text_is_either_a_phone_or_a_fault(text: str, code: str | None, country: str | None) -> None:
    reading = Fields(text, country, code).reading or read_phone(text, code)
    assert Fields(text, country, code).suggestion(country) is None or reading.phone is None
    assert (reading.phone is None) == (reading.fault is not None)


@given(st.from_regex(r"\+[1-9][0-9]{6,14}", fullmatch=True))
def test_reading_what_was_read_changes_nothing(text: str) -> None:
    phone = read_phone(text).phone
    if phone is not None:
        assert read_phone(phone.e164).phone == phone


def test_one_zero_after_the_calling_code_is_a_habit_and_two_are_no_number() -> None:
    assert read_phone("+31 0612345678") == read_phone("+31612345678")
    assert read_phone("+31001300171").fault is PhoneFault.IMPOSSIBLE
