"""Contacts from CSV (contract.md: contact_id, phone, phone_country_code, phone_calling_code, name, marketing_state,
source, proof). A bad row is refused with its reason and the others go on."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Annotated

from pydantic import BaseModel, BeforeValidator, Field, ValidationError
from sendwhy.events import ContactId, Line, MarketingState, Name
from sendwhy.stage import fields_of

from consent.contacts import Change, Origin, Word
from consent.fields import Fields

BATCH_ROWS = 500
REFUSED_SHOWN = 100


class UnreadableFile(Exception):
    """The file as a whole can't be imported; the message says why."""


class Refused(BaseModel):
    """`row` as a spreadsheet counts: the header is row 1."""

    row: int
    field: str
    detail: str


class Report(BaseModel):
    """`refused` holds the first 100 of `refused_count`."""

    read: int = 0
    imported: int = 0
    refused: list[Refused] = Field(default_factory=list)
    refused_count: int = 0

    def refuse(self, refused: Sequence[Refused]) -> None:
        self.refused_count += len(refused)
        self.refused += refused[: REFUSED_SHOWN - len(self.refused)]


def _readable(text: str) -> str:
    if "\ufffd" in text:
        raise ValueError("is not UTF-8")
    return text


_Text = BeforeValidator(_readable)


class ImportRow(BaseModel):
    """One row; empty cells count as not told."""

    contact_id: Annotated[ContactId, _Text]
    phone: Annotated[Line, Field(max_length=64), _Text] | None = None
    phone_country_code: Annotated[str, Field(pattern="^[A-Za-z]{2}$")] | None = None
    phone_calling_code: Annotated[str, Field(pattern=r"^\+?[0-9]{1,3}$")] | None = None
    name: Annotated[Name, _Text] | None = None
    marketing_state: Annotated[MarketingState, BeforeValidator(lambda text: str(text).upper())] | None = None
    source: Annotated[Line, Field(max_length=64), _Text] | None = None
    proof: Annotated[Line, Field(max_length=512), _Text] | None = None


@dataclass(frozen=True, slots=True)
class NumberedRow:
    number: int
    row: ImportRow

    def to_change(self, workspace: str, import_id: str, by: str, now: datetime) -> Change:
        row, state = self.row, self.row.marketing_state
        return Change(
            workspace_id=workspace,
            cause=f"import/{import_id}/{self.number}",
            at=now,
            by=by,
            origin=Origin.IMPORT,
            contact_id=row.contact_id,
            fields=Fields(row.phone, row.phone_country_code, row.phone_calling_code, None, row.name),
            word=Word(state, now, row.source or "import", row.proof) if state else None,
        )


def read_batches(file: IO[bytes]) -> Iterator[tuple[list[NumberedRow], list[Refused]]]:
    """The file's rows, 500 at a time, with those that can't be read. Raises UnreadableFile for a wrong header."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="")
    lines = csv.reader(text, delimiter=_delimiter(text), strict=True)
    header = _header(lines)
    good: list[NumberedRow] = []
    bad: list[Refused] = []
    for number, cells in _numbered(lines):
        outcome = (
            _row(number, header, cells) if isinstance(cells, list) else Refused(row=number, field="", detail=cells)
        )
        if isinstance(outcome, NumberedRow):
            good.append(outcome)
        elif outcome is not None:
            bad.append(outcome)
        if len(good) + len(bad) >= BATCH_ROWS:
            yield good, bad
            good, bad = [], []
    if good or bad:
        yield good, bad


def _delimiter(text: io.TextIOWrapper) -> str:
    """Spreadsheets of many countries write semicolons."""
    first = text.readline(10_000)
    text.seek(0)
    return ";" if first.count(";") > first.count(",") else ","


def _header(lines: Iterator[list[str]]) -> list[str]:
    try:
        header = [cell.strip().lower() for cell in next(lines, [])]
    except csv.Error as error:
        raise UnreadableFile(f"The header can't be read: {error}") from None
    if "contact_id" not in header:
        raise UnreadableFile("The first row must name the columns, and contact_id is not among them.")
    return header


def _numbered(lines: Iterator[list[str]]) -> Iterator[tuple[int, list[str] | str]]:
    number = 1
    while True:
        number += 1
        try:
            yield number, next(lines)
        except csv.Error as error:
            yield number, str(error)
        except StopIteration:
            return


def _row(number: int, header: Sequence[str], cells: Sequence[str]) -> NumberedRow | Refused | None:
    told: Mapping[str, str] = {name: cell.strip() for name, cell in zip(header, cells, strict=False) if cell.strip()}
    if not told:
        return None
    if len(cells) > len(header):
        return Refused(row=number, field="", detail=f"has {len(cells)} cells, the header {len(header)}")
    try:
        return NumberedRow(number, ImportRow.model_validate(told))
    except ValidationError as error:
        field, _, detail = fields_of(error)[0].partition(": ")
        return Refused(row=number, field=field, detail=detail)
