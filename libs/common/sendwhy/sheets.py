"""CSV for people, who open it in a spreadsheet: a cell that would act as a formula there gets a ' and is text."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

# Also as Chinese and Japanese keyboards write them; | and % call other programs in older ones.
_FORMULA = ("=", "+", "-", "@", "|", "%", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_NUMBER = re.compile(r"-?[0-9,.]+")


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(map(_cell, row) for row in rows)
    return text.getvalue()


def unguarded(cell: str) -> str:
    """A cell without the ' that stands before what would be a formula, as we and spreadsheets put it there."""
    return cell[1:] if cell[:1] == "'" and _may_be_formula(cell[1:]) else cell


def _cell(value: Any) -> Any:
    if isinstance(value, str) and _may_be_formula(value) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def _may_be_formula(text: str) -> bool:
    # Spreadsheets look past blanks, tabs and line ends.
    return text.lstrip().startswith(_FORMULA)
