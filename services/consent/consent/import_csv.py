"""Reading a CSV file of contacts in bounded memory, whatever is in it. A bad row is refused with its reason and the
others go on. Pure, but for the file that it reads.

charset-normalizer judges the encoding and clevercsv the separator, each only where the file itself doesn't settle it:
bytes that are valid UTF-8 are UTF-8, and the separator must be one with which the header names a contact_id.
"""

import codecs
import csv
import io
import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from dataclasses import field as of
from typing import IO

import clevercsv
from charset_normalizer import from_bytes
from charset_normalizer.constant import IANA_SUPPORTED
from pydantic import ValidationError

from consent.import_columns import Columns, ImportRow, UnreadableFile, fault_of, map_columns

BATCH_ROWS = 500
CHUNK_BYTES = 128 * 1024
SAMPLE_BYTES = 32 * 1024
SEPARATOR_SAMPLE_LETTERS = 8 * 1024
SEPARATORS = (",", ";", "\t", "|")
ROW_LETTERS_MAX = 1024 * 1024
BATCH_LETTERS_MAX = 4 * ROW_LETTERS_MAX
COLUMNS_MAX = 1000
# A quote that is never closed would else swallow the rows after it, as many as a cell may hold.
ROW_LINES_MAX = 200
CELL_SHOWN_LETTERS = 4096
_SEPARATOR_LINE = re.compile(r'^"?sep=(.)"?\s*$', re.IGNORECASE)
_NO_TEXT = {b"PK\x03\x04": "an Excel workbook or a zip archive", b"\xd0\xcf\x11\xe0": "an old Excel workbook"} | {
    b"\x1f\x8b": "compressed (gzip)",
    b"%PDF": "a PDF",
}
# Short lists of names tell these two apart, but not one Western code page from the next.
_CODE_PAGES = ["cp1252", "cp1251"]
# Without UTF-7, which can spell what is no letter.
_ENCODINGS = {codecs.lookup(name).name.replace("-", "_") for name in IANA_SUPPORTED} - {"utf_7"}
_WIDE = ["utf_16_le", "utf_16_be"]


@dataclass(frozen=True, slots=True)
class Layout:
    """What was found out about a file before its rows are read. `lines`: how many follow the header, where no cell
    holds a line break."""

    encoding: str
    separator: str
    columns: Columns
    size: int
    lines: int
    begins_with_separator: bool


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """`number` as a spreadsheet counts: the header is row 1. `told`: its cells by field."""

    number: int
    cells: tuple[str, ...]
    field: str
    detail: str
    told: Mapping[str, str] = of(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NumberedRow:
    number: int
    cells: tuple[str, ...]
    row: ImportRow


@dataclass(slots=True)
class Batch:
    """At most 500 rows, good and bad, and how many of the file's bytes are read with them (about: it is read ahead)."""

    rows: list[NumberedRow] = of(default_factory=list)
    refused: list[RefusedRow] = of(default_factory=list)
    read_bytes: int = 0

    def __len__(self) -> int:
        return len(self.rows) + len(self.refused)


def examine(file: IO[bytes], wanted: Mapping[str, str], encoding: str | None = None) -> Layout:
    """Encoding, separator and columns of a file, from its start. Raises UnreadableFile."""
    scan = _scan(file)
    for start, kind in _NO_TEXT.items():
        if scan.head.startswith(start):
            raise UnreadableFile(f"The file is {kind}, not CSV. Save the sheet as CSV and send that.")
    encoding = _known(encoding) if encoding else _encoding_of(scan)
    text = _text(file, encoding)
    try:
        sample = text.read(SEPARATOR_SAMPLE_LETTERS)
    finally:
        text.detach()
    first, _, rest = sample.partition("\n")
    told = _SEPARATOR_LINE.match(first)
    sample = rest if told else sample
    separators = [told[1]] if told else _separators_of(sample)
    columns = _columns(file, encoding, separators, wanted, skips=bool(told))
    return Layout(encoding, columns[0], columns[1], scan.size, max(0, scan.lines - 1 - bool(told)), bool(told))


def read_batches(file: IO[bytes], layout: Layout) -> Iterator[Batch]:
    """The file's rows, 500 at a time, with those that can't be read."""
    text = _text(file, layout.encoding)
    records = _Records(text, layout.separator)
    for _ in range(1 + layout.begins_with_separator):
        next(records, None)
    batch, letters = Batch(), 0
    for number, cells in enumerate(records, start=2):
        outcome = _row(number, layout.columns, cells)
        letters += 0 if isinstance(cells, _Broken) else sum(map(len, cells))
        if isinstance(outcome, NumberedRow):
            batch.rows.append(outcome)
        elif outcome is not None:
            batch.refused.append(outcome)
        if len(batch) >= BATCH_ROWS or letters >= BATCH_LETTERS_MAX:
            batch.read_bytes = file.tell()
            yield batch
            batch, letters = Batch(), 0
    if len(batch):
        batch.read_bytes = layout.size
        yield batch
    text.detach()


@dataclass(slots=True)
class _Scan:
    """A walk over all bytes. `foreign`: lines with others than ASCII's; `letters`: valid UTF-8 beyond ASCII."""

    size: int = 0
    lines: int = 0
    head: bytes = b""
    foreign: bytes = b""
    letters: int = 0
    broken: int = 0


def _scan(file: IO[bytes]) -> _Scan:
    scan = _Scan()
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    returns = 0
    last = b""
    file.seek(0)
    while chunk := file.read(CHUNK_BYTES):
        scan.head = scan.head or chunk[:SAMPLE_BYTES]
        scan.size += len(chunk)
        scan.lines += chunk.count(b"\n")
        returns += chunk.count(b"\r")
        last = chunk[-1:]
        text = decoder.decode(chunk)
        if not text.isascii():
            _note_foreign(scan, chunk, text)
    scan.broken += decoder.decode(b"", final=True).count("\ufffd")
    scan.lines = (scan.lines or returns) + (last not in (b"\n", b"\r", b""))
    return scan


def _note_foreign(scan: _Scan, chunk: bytes, text: str) -> None:
    foreign = len(text) - len(text.encode("ascii", "ignore"))
    broken = text.count("\ufffd") - chunk.count(b"\xef\xbf\xbd")
    scan.broken += broken
    scan.letters += foreign - broken
    if len(scan.foreign) < SAMPLE_BYTES:
        lines = (line for line in chunk.splitlines() if not line.isascii())
        scan.foreign += b"\n".join(line[:1024] for _, line in zip(range(256), lines, strict=False))


def _encoding_of(scan: _Scan) -> str:
    head = scan.head
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if head.count(b"\0") * 4 > len(head):
        best = from_bytes(head[: len(head) // 2 * 2], cp_isolation=_WIDE).best()
        return best.encoding.replace("_", "-") if best else "utf-8"
    # More whole letters than broken ones: UTF-8 with some spoilt cells, which are refused one by one.
    if scan.letters >= scan.broken:
        return "utf-8"
    best = from_bytes(head[:2048] + b"\n" + scan.foreign, cp_isolation=_CODE_PAGES).best()
    return best.encoding if best else "cp1252"


def _known(encoding: str) -> str:
    try:
        name = codecs.lookup(encoding.strip()).name
    except (LookupError, ValueError):
        # ValueError: a name with NUL or with what is no ASCII.
        name = ""
    if name.replace("-", "_") not in _ENCODINGS:
        raise UnreadableFile(
            f"The encoding {encoding[:40]!r} is not known here.",
            {"encoding": "say utf-8, windows-1252, windows-1251 or another of IANA's names, or leave it out"},
        )
    return name


def _text(file: IO[bytes], encoding: str) -> io.TextIOWrapper:
    file.seek(0)
    return io.TextIOWrapper(file, "utf-8-sig" if encoding == "utf-8" else encoding, errors="replace", newline="")


def _separators_of(sample: str) -> list[str]:
    """The likeliest separators first."""
    try:
        dialect = clevercsv.Sniffer().sniff(sample, delimiters=list(SEPARATORS))
    except clevercsv.Error:
        dialect = None
    return sorted(SEPARATORS, key=lambda separator: dialect is None or separator != dialect.delimiter)


def _columns(
    file: IO[bytes], encoding: str, separators: list[str], wanted: Mapping[str, str], *, skips: bool
) -> tuple[str, Columns]:
    """The first separator whose header names a contact_id; if none does, what is wrong with the likeliest one."""
    wrong: UnreadableFile | None = None
    for separator in separators:
        try:
            return separator, map_columns(_header(file, encoding, separator, skips=skips), wanted)
        except UnreadableFile as error:
            wrong = wrong or error
    assert wrong is not None
    raise wrong


def _header(file: IO[bytes], encoding: str, separator: str, *, skips: bool) -> tuple[str, ...]:
    text = _text(file, encoding)
    try:
        records = _Records(text, separator)
        if skips:
            next(records, None)
        header = next(records, ())
    finally:
        text.detach()
    if isinstance(header, _Broken):
        raise UnreadableFile(f"The header can't be read: {header.why}")
    if not any(cell.strip() for cell in header):
        raise UnreadableFile("The file is empty: its first row must name the columns, contact_id among them.")
    if len(header) > COLUMNS_MAX:
        raise UnreadableFile(f"The header has {len(header)} columns; {COLUMNS_MAX} are taken at most.")
    return header


@dataclass(frozen=True, slots=True)
class _Broken:
    """A line that is no row of CSV."""

    line: str
    why: str


class _TooLong(str):
    """The start of a line that is too long to be held."""


class _Lines:
    """A text's lines for csv.reader, of bounded length; `taken` are those of the row that is being read, and the ones
    after its first can be handed back."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self._back: deque[str] = deque()
        self._letters = 0
        self.taken: list[str] = []

    def begin_row(self) -> None:
        self.taken.clear()
        self._letters = 0

    def hand_back(self) -> str:
        """All but the row's first line are read again; returns that one."""
        first, *others = self.taken
        self._back.extendleft(reversed(others))
        return first

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if len(self.taken) >= ROW_LINES_MAX or self._letters >= ROW_LETTERS_MAX:
            raise csv.Error(f"a quote is not closed within {ROW_LINES_MAX} lines")
        line = self._back.popleft() if self._back else self._read()
        if not line:
            raise StopIteration
        self.taken.append(line)
        self._letters += len(line)
        if isinstance(line, _TooLong):
            raise csv.Error(f"the line is longer than {ROW_LETTERS_MAX} letters")
        return line

    def _read(self) -> str:
        line = self._text.readline(ROW_LETTERS_MAX)
        if len(line) < ROW_LETTERS_MAX or line.endswith(("\n", "\r")):
            return line
        start = _TooLong(line[:CELL_SHOWN_LETTERS])
        while line and not line.endswith(("\n", "\r")):
            line = self._text.readline(ROW_LETTERS_MAX)
        return start


class _Records:
    """The rows of a CSV text, of bounded length each; a row that breaks costs its first line, not those after it."""

    def __init__(self, text: io.TextIOWrapper, separator: str) -> None:
        self._lines = _Lines(text)
        self._reader = csv.reader(self._lines, delimiter=separator, strict=True)

    def __iter__(self) -> Iterator[tuple[str, ...] | _Broken]:
        return self

    def __next__(self) -> tuple[str, ...] | _Broken:
        self._lines.begin_row()
        try:
            return tuple(next(self._reader))
        except csv.Error as error:
            return _Broken(self._lines.hand_back()[:CELL_SHOWN_LETTERS].rstrip("\r\n"), str(error))


def _row(number: int, columns: Columns, cells: tuple[str, ...] | _Broken) -> NumberedRow | RefusedRow | None:
    if isinstance(cells, _Broken):
        return RefusedRow(number, (cells.line,), "", cells.why)
    if not any(cell.strip() for cell in cells):
        return None
    told = columns.told(cells)
    count = next(place for place in range(len(cells), 0, -1) if cells[place - 1].strip())
    if count > len(columns.header):
        detail = f"has {count} cells, and the header {len(columns.header)}: is a separator too many?"
        return RefusedRow(number, _shown(cells), "", detail, told)
    try:
        return NumberedRow(number, _shown(cells), ImportRow.model_validate(told))
    except ValidationError as error:
        return RefusedRow(number, _shown(cells), *fault_of(error), told)


def _shown(cells: tuple[str, ...]) -> tuple[str, ...]:
    """The cells as the result file shows them: giant ones cut."""
    return tuple(
        cell if len(cell) <= CELL_SHOWN_LETTERS else f"{cell[:CELL_SHOWN_LETTERS]}…" for cell in cells[:COLUMNS_MAX]
    )
