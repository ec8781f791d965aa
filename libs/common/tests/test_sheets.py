"""What a spreadsheet would take for a formula is text in our CSV; all else is as it was."""

import csv
import io
from typing import Any

import pytest
from sendwhy.sheets import csv_text, unguarded

FORMULA = '=HYPERLINK("http://evil")'


def read(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


@pytest.mark.parametrize(
    "cell",
    [
        *(f"{first}1+1" for first in "=+-@|%"),
        *(f"{blank}{FORMULA}" for blank in (" ", "\t", "\r", "\n", "\r\n", "\u00a0", "\u3000", "\v\f")),
        *(f"{first}1+1" for first in "\uff1d\uff0b\uff0d\uff20"),
        "=cmd|' /C calc'!A0",
        "-1\n=2",
        "+525512345678",
        "-",
    ],
)
def test_a_formula_is_text(cell: str) -> None:
    assert read(csv_text([["a", cell]])) == [["a", f"'{cell}"]]
    assert unguarded(f"'{cell}") == cell


@pytest.mark.parametrize("cell", ["", "'", "'tis", "a'=1", "=1", "''=1"])
def test_what_got_no_mark_keeps_its_own(cell: str) -> None:
    assert unguarded(cell) == cell


@pytest.mark.parametrize("cell", ["", "a=b", "-12.5", "-1,000", " a", "'=1", 12, -12, -0.5, None, True])
def test_what_is_no_formula_stays(cell: Any) -> None:
    assert read(csv_text([["a", cell]])) == [["a", "" if cell is None else str(cell)]]
