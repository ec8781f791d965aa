"""JSON with one bad character in it is read for the rest."""

import pytest
from pydantic import JsonValue
from sendwhy.lenient import identifier, json_of

ENDLESS = b"7" * 5000
NO_IDS: list[JsonValue] = ["", " ", -1, 10**20, 1.5, True, None, [], {}]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (rb'{"a": "\ud83d", "b": 1}', {"a": "\ufffd", "b": 1}),
        (rb'{"a": "\ud83d\udc4b \\ud83d"}', {"a": "👋 \\ud83d"}),
        (rb'"\u0000"', "\ufffd"),
        (b'{"a": "x\ny\tz"}', {"a": "x y z"}),
        (b'{"a": "\xff"}', {"a": "\ufffd"}),
        (b"\xef\xbb\xbf[1]", [1]),
        (b'{"a": -%b, "b": [%b.5e3]}' % (ENDLESS, ENDLESS), {"a": None, "b": [None]}),
        (b'{"a": %b, "b": "\\"%b"}' % (ENDLESS, ENDLESS), {"a": None, "b": f'"{ENDLESS.decode()}'}),
    ],
)
def test_one_bad_character_costs_nothing_else(body: bytes, told: object) -> None:
    assert json_of(body) == told


@pytest.mark.parametrize("body", [b"", b"{", b'{"a": 1', b"[" * 300 + b"]" * 300, b"{} {}"])
def test_what_is_no_json_or_half_of_it_is_not_guessed(body: bytes) -> None:
    with pytest.raises(ValueError, match="Invalid JSON"):
        json_of(body)


def test_an_endless_text_is_read_once() -> None:
    # With a second look from each quote in it this would take hours.
    with pytest.raises(ValueError, match="Invalid JSON"):
        json_of(b'"' + rb"\"" * 1_500_000)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("1001", "1001"),
        (1001, "1001"),
        (0, "0"),
        (415566778899001.0, "415566778899001"),
        (" 1001\n", "1001"),
        ("a\x00b", "a b"),
        ("x" * 65, "x" * 64),
        *((value, None) for value in NO_IDS),
    ],
)
def test_an_id_is_a_line_or_a_number(value: JsonValue, told: str | None) -> None:
    assert identifier(value) == told
