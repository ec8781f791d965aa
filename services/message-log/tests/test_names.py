"""What a search by name compares, and where numbers are at home."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from message_log.names import calling_code_of, code_of_country, countries_of, folded, prefix_query


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("Inés  O'Hara", "ines o hara"),
        ("ŁUKASZ", "łukasz"),
        ("ＦＵＬＬ", "full"),
        ("🙂", None),
        (None, None),
        ("", None),
    ],
)
def test_a_name_is_compared_without_accents_and_case(name: str | None, plain: str | None) -> None:
    assert folded(name) == plain


def test_each_word_of_a_search_may_be_the_beginning_of_a_name() -> None:
    assert prefix_query("Iné o'h") == "'ine':* & 'o':* & 'h':*"
    assert prefix_query("'); drop--") == "'drop':*"
    assert prefix_query("!!") is None


@given(st.text())
def test_a_search_never_leaves_its_quotes(text: str) -> None:
    query = prefix_query(text) or ""
    for word in query.split(" & ") if query else ():
        assert word.startswith("'")
        assert word.endswith("':*")
        assert word[1:-3].replace("_", "a").isalnum()


@pytest.mark.parametrize(
    ("digits", "code"),
    [("525512345678", "52"), ("14155550100", "1"), ("447700900142", "44"), ("00", None), ("", None), (None, None)],
)
def test_a_number_begins_with_its_calling_code(digits: str | None, code: str | None) -> None:
    assert calling_code_of(digits) == code


@pytest.mark.parametrize(
    ("given_as", "code"),
    [("MX", "52"), ("mx", "52"), ("+52", "52"), ("52", "52"), ("US", "1"), ("XX", None), ("052", None), ("٥٢", None)],
)
def test_a_country_may_be_letters_or_a_calling_code(given_as: str, code: str | None) -> None:
    assert code_of_country(given_as) == code


def test_a_calling_code_names_its_countries() -> None:
    assert countries_of("52") == "MX"
    assert countries_of("1").startswith("US and ")
    assert countries_of("7") == "RU and KZ"
    assert countries_of("800") == ""
