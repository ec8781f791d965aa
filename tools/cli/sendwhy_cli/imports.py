"""`sendwhy import`: brings a CSV file of contacts to consent, and tells what became of its rows."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx

from sendwhy_cli.client import Client
from sendwhy_cli.errors import CommandError, Exit
from sendwhy_cli.files import written
from sendwhy_cli.progress import Rate, Tell
from sendwhy_cli.services import CONSENT
from sendwhy_cli.terminal import unknown_shape

PIECE_BYTES = 256 * 1024
POLL_SECONDS = 0.3
# A preview reads the whole file before it answers.
PREVIEW_SECONDS = 1800.0
SHOWN = 10
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(frozen=True)
class Wanted:
    """`columns`: a field's column by field, as in phone=Mobile."""

    columns: dict[str, str]
    is_dry: bool


def columns_of(pairs: Sequence[str]) -> dict[str, str]:
    """--map phone=Column as a dictionary. Raises CommandError."""
    columns = {}
    for pair in pairs:
        field, equals, column = pair.partition("=")
        if not (field and equals):
            raise CommandError(Exit.USAGE, f"--map {pair}: write it as phone=Column")
        columns[field.strip()] = column
    return columns


def take(client: Client, file: IO[bytes], size: int | None, wanted: Wanted, tell: Tell) -> dict[str, Any]:
    """Upload the file, then wait until it is imported; the import's last state. Raises CommandError."""
    rate = Rate()
    parameters = {f"map.{field}": column for field, column in wanted.columns.items()}
    headers = {"content-type": "text/csv", "prefer": "respond-async"}
    if wanted.is_dry:
        parameters["dry_run"] = "true"
    if size is not None:
        headers["content-length"] = str(size)
    try:
        view = client.ask(
            "POST",
            CONSENT,
            "contacts",
            "import",
            content=_pieces(file, size, tell),
            params=parameters,
            headers=headers,
            timeout=httpx.Timeout(PREVIEW_SECONDS, connect=5),
        )
        while view["state"] == "running" and not wanted.is_dry:
            what = "waits for an older import" if view["waiting"] else "imports"
            rows = f"{view['read']:,} rows, {rate.of(view['read']):,.0f}/s"
            tell(what, view["bytes_read"], view["bytes_total"], rows)
            time.sleep(POLL_SECONDS)
            view = client.get(CONSENT, "contacts", "imports", view["import_id"])
    except CommandError as error:
        if error.code is not Exit.UNREACHABLE:
            raise
        sentence = f"{error}; the same file may be sent again: rows that are in change nothing"
        raise CommandError(error.code, sentence, error.problem) from error
    except (KeyError, TypeError) as error:
        raise unknown_shape(error) from error
    return dict(view)


def save_refused(client: Client, view: dict[str, Any], path: Path) -> None:
    """The file of refused rows. Raises CommandError."""
    with written(path, "--refused ") as out:
        client.download(out.write, CONSENT, "contacts", "imports", view["import_id"], "refused.csv")


def _pieces(file: IO[bytes], size: int | None, tell: Tell) -> Iterator[bytes]:
    sent = 0
    while piece := file.read(PIECE_BYTES):
        yield piece
        sent += len(piece)
        tell("uploads", sent, size, f"{sent / 1e6:,.1f} MB")


def show(view: dict[str, Any]) -> Iterator[str]:
    """The lines for a person."""
    kind = "would be imported" if view["dry_run"] else "imported"
    yield (
        f"{view['imported']:,} of {view['read']:,} rows {kind} ({view['unchanged']:,} say what already stood),"
        f" {view['refused_count']:,} refused"
    )
    columns = ", ".join(f"{field} = {column!r}" for field, column in view["mapping"].items())
    separator = SEPARATORS.get(view["separator"], repr(view["separator"]))
    yield f"read as {view['encoding']}, separated by {separator}: {columns}"
    if view["ignored"]:
        yield f"ignored columns: {', '.join(map(repr, view['ignored']))}"
    if view["repeated_count"]:
        first = view["repeated"][0]
        yield (
            f"{view['repeated_count']:,} rows are on a contact that an earlier row names too, the later one holds:"
            f" row {first['row']} repeats row {first['earlier_row']}"
        )
    for one in view["refused"][:SHOWN]:
        yield f"  row {one['row']}: {one['field'] + ': ' if one['field'] else ''}{one['detail']}"
    if view["refused_count"] > SHOWN:
        yield f"  and {view['refused_count'] - min(SHOWN, len(view['refused'])):,} more"
    if view["fault"]:
        yield f"failed: {view['fault']}"
