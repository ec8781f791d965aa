"""What an import answers with."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import asyncpg
from pydantic import BaseModel, Field
from pydantic_core import from_json
from sendwhy.events import Moment


class RefusedView(BaseModel):
    """`row` as a spreadsheet counts: the header is row 1."""

    row: int
    field: str
    detail: str


class RepeatedView(BaseModel):
    """A row on a contact that `earlier_row` is on too: the later one holds."""

    row: int
    earlier_row: int


class ImportView(BaseModel):
    """`refused` and `repeated` hold the first 100 of their counts; `unchanged` rows are imported ones that said what
    already stood. `rows_total` is counted in lines: cells that hold line breaks make it larger than `read` gets.
    `waiting`: an older import of the workspace goes first. `mapping`: the columns taken, by field."""

    import_id: UUID | None
    state: str
    waiting: bool
    dry_run: bool = False
    read: int
    imported: int
    unchanged: int
    refused: list[RefusedView] = Field(default_factory=list)
    refused_count: int
    repeated: list[RepeatedView] = Field(default_factory=list)
    repeated_count: int
    encoding: str
    separator: str
    mapping: dict[str, str]
    ignored: list[str]
    bytes_read: int
    bytes_total: int
    rows_total: int
    by: str
    started_at: Moment
    finished_at: Moment | None = None
    fault: str | None = None
    result_file: str | None


class ImportPage(BaseModel):
    """`refused` is left empty here."""

    items: list[ImportView]
    next_cursor: str | None


def address_of(workspace: str, import_id: UUID) -> str:
    return f"/v1/workspaces/{workspace}/contacts/imports/{import_id}"


def about_of(row: asyncpg.Record) -> Mapping[str, Any]:
    about: Mapping[str, Any] = from_json(row["about"])
    return about


def view_of(row: asyncpg.Record, refused: Sequence[tuple[int, str, str, Any]] = ()) -> ImportView:
    """An import as its row has it, with its first refusals (row, field, detail, cells)."""
    about = about_of(row)
    state = row["state"]
    return ImportView(
        import_id=row["import_id"],
        state="running" if state == "waiting" else state,
        waiting=state == "waiting",
        read=row["read"],
        imported=row["imported"],
        unchanged=row["unchanged"],
        refused=[RefusedView(row=number, field=field, detail=detail) for number, field, detail, _ in refused],
        refused_count=row["refused_count"],
        repeated=[RepeatedView(row=number, earlier_row=earlier) for number, earlier in about["repeated"]],
        repeated_count=row["repeated_count"],
        encoding=about["encoding"],
        separator=about["separator"],
        mapping=about["mapping"],
        ignored=about["ignored"],
        bytes_read=row["bytes_read"],
        bytes_total=about["bytes_total"],
        rows_total=about["rows_total"],
        by=row["by"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        fault=row["fault"],
        result_file=f"{address_of(row['workspace_id'], row['import_id'])}/refused.csv",
    )
