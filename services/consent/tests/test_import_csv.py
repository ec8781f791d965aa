"""What is made of a CSV file, whatever is in it: encoding, separator, columns, rows, and the memory that it takes."""

import csv
import io
import tracemalloc
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from consent.import_columns import Claim, UnreadableFile, field_of, map_columns
from consent.import_csv import NumberedRow, RefusedRow, examine, read_batches
from hypothesis import given
from hypothesis import strategies as st
from sendwhy.sheets import csv_text

FULL = (
    "contact_id,phone,phone_country_code,phone_calling_code,name,marketing_state,source,proof,language,address_country"
)


def read(body: bytes | str, wanted: dict[str, str] | None = None, encoding: str | None = None) -> Any:
    """The file's layout, its good rows and its refused ones."""
    file = io.BytesIO(body.encode() if isinstance(body, str) else body)
    layout = examine(file, wanted or {}, encoding)
    batches = list(read_batches(file, layout))
    rows = [row for batch in batches for row in batch.rows]
    return layout, rows, [row for batch in batches for row in batch.refused]


def ids(rows: Iterable[NumberedRow]) -> list[tuple[int, str]]:
    return [(row.number, row.row.contact_id) for row in rows]


@pytest.mark.parametrize(
    ("header", "field"),
    [
        ("Phone Number", "phone"),
        ("phoneNumber", "phone"),
        ("PHONE_NUMBER", "phone"),
        ("Phone Numbr", "phone"),
        ("Teléfono", "phone"),
        ("Número de teléfono", "phone"),
        ("mobile", "phone"),
        ("Handy", "phone"),
        ("Handynummer", "phone"),
        ("WhatsApp-Nummer", "phone"),
        ("номер телефона", "phone"),
        ("customer id", "contact_id"),
        ("CustomerID", "contact_id"),
        ("Kunden-Nr.", "contact_id"),
        ("Accepts Marketing", "marketing_state"),
        ("Full Name", "name"),
        ("Nombre", "name"),
        ("Country Code", "phone_country_code"),
        ("Calling code", "phone_calling_code"),
        ("E-Mail-Adresse", None),
        ("E-Mail", None),
        ("Email Number", None),
        ("Accepts Email Marketing", None),
        ("Accepts SMS Marketing", None),
        ("Default Address Phone", None),
        ("First Name", None),
        ("Last Name", None),
        ("Company Name", None),
        ("fname", None),
        ("Total Spent", None),
        ("Fax", None),
        ("Order number", None),
        ("", None),
        ("💚", None),
    ],
)
def test_a_header_speaks_of_a_field_or_of_none(header: str, field: str | None) -> None:
    found = field_of(header)
    assert (found[0] if found else None) == field


@pytest.mark.parametrize("name", FULL.split(","))
def test_the_contracts_own_names_are_the_best_claim(name: str) -> None:
    for spelling in (name, name.upper(), f" {name.title()} "):
        assert field_of(spelling) == (name, Claim.OWN_NAME)


def test_an_own_name_wins_over_likeness_and_the_caller_over_both() -> None:
    header = ["contact_id", "Mobile", "phone", "Phone Number", "Fax"]
    assert map_columns(header, {}).mapping == {"contact_id": "contact_id", "phone": "phone"}
    assert map_columns(header, {}).ignored == ["Mobile", "Phone Number", "Fax"]
    assert map_columns(header, {"phone": "fax"}).mapping["phone"] == "Fax"
    assert "phone" not in map_columns(header, {"phone": ""}).mapping
    taken = map_columns(["id", "customer id", "Mobile"], {"contact_id": "customer id", "name": "id"})
    assert taken.mapping == {"contact_id": "customer id", "name": "id", "phone": "Mobile"}


@pytest.mark.parametrize(
    ("header", "wanted", "words"),
    [
        (["contact_id", "Mobile", "Phone Number"], {}, ["'Mobile' (column 2)", "'Phone Number' (column 3)"]),
        (["contact_id", "phone", "phone"], {}, ["column 2", "column 3"]),
        (["customer id", "client id"], {}, ["customer id", "client id"]),
        (["phone", "name"], {}, ["contact_id is not among them", "'phone', 'name'"]),
        (["contact_id", "x"], {"phone": "y"}, ["No column is called 'y'", "'x'"]),
        (["contact_id", "x"], {"fone": "x"}, ["no field 'fone'"]),
        ([f"c{i}" * 50 for i in range(500)], {}, ["and 480 more"]),
    ],
)
def test_what_cannot_be_mapped_is_named(header: list[str], wanted: dict[str, str], words: list[str]) -> None:
    with pytest.raises(UnreadableFile) as refused:
        map_columns(header, wanted)
    assert not [word for word in words if word not in str(refused.value)]
    assert refused.value.errors
    assert len(str(refused.value)) < 1500


NAMES = {
    "es": ["Inés Muñoz", "José Peña", "María Ángeles"],
    "de": ["Jürgen Groß", "Käthe Müller", "Sören Weiß"],
    "fr": ["François Lefèvre", "Zoé Bâcle", "Anaïs Noël"],
    "pt": ["João Conceição", "Antônio Simões", "Luísa"],
    "one": ["Inés", "Ana", "Bo"],
    "ru": ["Наталья Иванова", "Пётр Сидоров", "Ольга"],
}


@pytest.mark.parametrize(
    ("language", "encoding", "found"),
    [
        *((language, encoding, "utf-8") for language in NAMES for encoding in ("utf-8", "utf-8-sig")),
        *((language, encoding, "utf-16") for language in NAMES for encoding in ("utf-16",)),
        *((language, "utf-16-le", "utf-16-le") for language in NAMES if language != "ru"),
        *((language, "utf-16-be", "utf-16-be") for language in NAMES if language != "ru"),
        *((language, "cp1252", "cp1252") for language in NAMES if language != "ru"),
        *((language, "latin-1", "cp1252") for language in NAMES if language != "ru"),
        ("ru", "cp1251", "cp1251"),
    ],
)
@pytest.mark.parametrize("plain_rows", [0, 300])
def test_encodings_are_detected(language: str, encoding: str, found: str, plain_rows: int) -> None:
    lines = ["contact_id;name;phone", *(f"p-{i};Ana Lopez;+525512345678" for i in range(plain_rows))]
    lines += [f"c-{i};{name};+525512345678" for i, name in enumerate(NAMES[language])]
    layout, rows, refused = read("\r\n".join(lines).encode(encoding))
    assert (layout.encoding, layout.separator, refused) == (found, ";", [])
    assert [row.row.name for row in rows[plain_rows:]] == NAMES[language]
    assert layout.lines == plain_rows + 3


@given(st.lists(st.text(st.characters(codec="utf-8", categories=["L", "N", "S", "Zs"]), min_size=1), min_size=1))
def test_what_is_utf_8_is_never_taken_for_something_else(names: list[str]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([["contact_id", "name"], *[[f"c-{i}", name] for i, name in enumerate(names)]])
    layout, _, _ = read(text.getvalue())
    assert layout.encoding == "utf-8"


def test_spoilt_cells_in_a_utf_8_file_are_refused_one_by_one() -> None:
    body = "contact_id,name\nc-1,Inés\nc-2,José\nc-3,".encode() + b"Mar\xeda\nc-4,Ana\n"
    layout, rows, refused = read(body)
    assert (layout.encoding, len(rows)) == ("utf-8", 3)
    assert [(one.number, one.field) for one in refused] == [(4, "name")]
    assert "encoding" in refused[0].detail


def test_an_encoding_that_is_told_is_believed() -> None:
    body = "contact_id,name\nc-1,Žofie Kůň\n".encode("cp1250")
    layout, rows, _ = read(body, encoding="windows-1250")
    assert (layout.encoding, rows[0].row.name) == ("cp1250", "Žofie Kůň")
    for wrong in ("klingon", "base64", "idna", "unicode_escape", "utf-7", "\0", "utf-8\0", "\ud800"):
        with pytest.raises(UnreadableFile) as refused:
            read(body, encoding=wrong)
        assert "encoding" in refused.value.errors


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_separators_are_detected(separator: str, end: str) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, lineterminator=end)
    writer.writerow(["Customer ID", "Phone Number", "Full name", "Created", "Amount"])
    for i in range(20):
        writer.writerow([f"c-{i}", "+525512345678", 'Pérez, Ana; "la jefa"', "2026-01-02 10:11:12", "1,5"])
    layout, rows, refused = read(text.getvalue())
    assert (layout.separator, len(rows), refused) == (separator, 20, [])
    assert rows[7].row.name == 'Pérez, Ana; "la jefa"'
    assert layout.lines == 20


@pytest.mark.parametrize("phone", ["+4915••••6789", "••••", "***89"])
def test_a_masked_number_overwrites_none(phone: str) -> None:
    _, rows, (refused,) = read(csv_text([["contact_id", "phone"], ["c-1", phone]]))
    assert (rows, refused.field, refused.told["phone"]) == ([], "phone", phone)
    assert refused.detail.startswith("is masked")


@pytest.mark.parametrize("first", "=+-@|%＝＋－＠")
def test_what_our_own_files_mark_as_text_comes_back_as_it_was(first: str) -> None:
    _, (row,), refused = read(csv_text([["contact_id", "name"], [f"{first}7712", f"{first}Ana"]]))
    assert (row.row.contact_id, row.row.name, refused) == (f"{first}7712", f"{first}Ana", [])


def test_a_header_alone_settles_the_separator() -> None:
    for separator in (",", ";", "\t", "|"):
        assert read(f"contact_id{separator}phone{separator}a b, c\n")[0].separator == separator
    assert ids(read("contact_id\nc-1\nc-2\n")[1]) == [(2, "c-1"), (3, "c-2")]


REAL_LIFE: list[tuple[str, bytes | str, list[tuple[int, str]], list[tuple[int, str]]]] = [
    ("excel's first line", "sep=;\r\ncontact_id;name\r\nc-1;Ana\r\n", [(2, "c-1")], []),
    ("excel's first line in quotes", '"sep=|"\ncontact_id|name\nc-1|Ana\n', [(2, "c-1")], []),
    ("excel's first line after a mark", b"\xef\xbb\xbfsep=;\ncontact_id;name\nc-1;Ana\n", [(2, "c-1")], []),
    ("line breaks in quotes", 'contact_id,note\nc-1,"one\ntwo\r\nthree"\nc-2,x\n', [(2, "c-1"), (3, "c-2")], []),
    ("quotes in quotes", 'contact_id,name\nc-1,"the ""big"" one"\n', [(2, "c-1")], []),
    ("a quote in the middle", 'contact_id,name\nc-1,5" pipe\n', [(2, "c-1")], []),
    ("separators at the end", "contact_id;phone;\nc-1;+525512345678;\nc-2;;;;;\n", [(2, "c-1"), (3, "c-2")], []),
    ("too many cells", "contact_id\nc-1,x\nc-2\n", [(3, "c-2")], [(2, "")]),
    ("blank lines count", "contact_id\n\nc-1\n,,\n  \nc-2", [(3, "c-1"), (6, "c-2")], []),
    ("a NUL", "contact_id,name,other\nc-1,a\0b,\nc-2,a,\0\n", [(3, "c-2")], [(2, "name")]),
    ("a quote never closed", 'contact_id,name\nc-1,"Ana\nc-2,Bo\nc-3,Cy\n', [(3, "c-2"), (4, "c-3")], [(2, "")]),
    ("text after a quote", 'contact_id,name\nc-1,"Ana" Sol\nc-2,Bo\n', [(3, "c-2")], [(2, "")]),
    ("a long cell", f"contact_id,name\nc-1,{'x' * 100_000}\nc-2,Bo\n", [(3, "c-2")], [(2, "name")]),
    ("a long cell of a column that is not taken", f"contact_id,x\nc-1,{'x' * 100_000}\n", [(2, "c-1")], []),
    ("a longer cell", f"contact_id,x\nc-1,{'x' * 200_000}\nc-2,\n", [(3, "c-2")], [(2, "")]),
    ("a giant line", f"contact_id,x\nc-0,\n{'y' * 3_000_000}\nc-1,\n", [(2, "c-0"), (4, "c-1")], [(3, "")]),
    ("a giant line in quotes", f'contact_id,x\n"c-0,\n{"y" * 3_000_000}\nc-1,\n', [(4, "c-1")], [(2, ""), (3, "")]),
    ("header only", "contact_id,phone\n", [], []),
    ("header only, without an end", "contact_id,phone", [], []),
    ("an id that is missing", "contact_id,phone\n,+525512345678\n", [], [(2, "contact_id")]),
    ("the last of many errors", "contact_id,marketing_state\nc-1,maybe\n", [], [(2, "marketing_state")]),
]


@pytest.mark.parametrize(("body", "good", "bad"), [case[1:] for case in REAL_LIFE], ids=[case[0] for case in REAL_LIFE])
def test_lists_of_real_life(body: bytes | str, good: list[tuple[int, str]], bad: list[tuple[int, str]]) -> None:
    _, rows, refused = read(body)
    assert ids(rows) == good
    assert [(one.number, one.field) for one in refused] == bad
    assert all(len(cell) < 5000 for row in (*rows, *refused) for cell in row.cells)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (b"PK\x03\x04" + b"\0" * 50, "Excel"),
        (b"\x1f\x8b\x08" + bytes(range(256)), "gzip"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 10, "contact_id"),
        (bytes(range(256)) * 100, "contact_id"),
        (b"y" * 3_000_000, "longer"),
        (b"," * 5_000, "empty"),
        (b"x," * 5_000, "columns"),
        (b'"contact_id\nc-1\n', "header"),
        (b"c-1,+525512345678\n", "contact_id"),
    ],
)
def test_what_is_no_list_of_contacts_is_told_so(body: bytes, word: str) -> None:
    with pytest.raises(UnreadableFile) as refused:
        read(body)
    assert word in str(refused.value)
    assert len(str(refused.value)) < 1500


@given(st.binary(max_size=2000))
def test_no_bytes_break_the_reader(rubbish: bytes) -> None:
    _, rows, refused = read(b"contact_id,phone,name\n" + rubbish)
    numbers = [row.number for row in (*rows, *refused)]
    assert len(numbers) == len(set(numbers))


@pytest.mark.parametrize(
    ("header", "cell", "state"),
    [
        ("Accepts Marketing", "yes", "SUBSCRIBED"),
        ("Accepts Marketing", "TRUE", "SUBSCRIBED"),
        ("Accepts Marketing", "1", "SUBSCRIBED"),
        ("Accepts Marketing", "no", "NOT_SUBSCRIBED"),
        ("Accepts Marketing", "False", "NOT_SUBSCRIBED"),
        ("Accepts Marketing", "unsubscribed", "UNSUBSCRIBED"),
        ("Accepts Marketing", "", None),
        ("marketing_state", "subscribed", "SUBSCRIBED"),
    ],
)
def test_yes_and_no_are_states_where_the_contract_names_no_column(header: str, cell: str, state: str | None) -> None:
    _, rows, _ = read(f"contact_id,{header}\nc-1,{cell}\n")
    assert rows[0].row.marketing_state == state


@pytest.mark.parametrize(("header", "cell"), [("marketing_state", "yes"), ("Accepts Marketing", "perhaps")])
def test_no_other_word_is_guessed_to_be_a_consent(header: str, cell: str) -> None:
    _, rows, refused = read(f"contact_id,{header}\nc-1,{cell}\n")
    assert (rows, refused[0].field) == ([], "marketing_state")


class Endless(io.RawIOBase):
    """A file of so many rows that is never held; every seventh is bad."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._made: Iterator[bytes] = iter(())
        self._left = b""
        self.seek(0)

    def seek(self, offset: int, whence: int = 0) -> int:
        assert (offset, whence) == (0, 0)
        self._made = (self._line(i) for i in range(self._rows + 1))
        self._left = b""
        return 0

    @staticmethod
    def _line(i: int) -> bytes:
        if i == 0:
            return b"contact_id,phone,name,marketing_state\n"
        return f"c-{i},+52551234{i % 10_000:04},Inés {i},{'maybe' if i % 7 == 0 else 'SUBSCRIBED'}\n".encode()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return 0

    def readinto(self, buffer: Any) -> int:
        while len(self._left) < len(buffer) and (line := next(self._made, None)):
            self._left += line
        taken, self._left = self._left[: len(buffer)], self._left[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)


def peak_of(rows: int) -> int:
    """Bytes of memory at the most while a file of so many rows is examined and read."""
    file: Any = io.BufferedReader(Endless(rows))
    tracemalloc.start()
    try:
        layout = examine(file, {})
        count = sum(len(batch) for batch in read_batches(file, layout))
        assert (count, layout.lines) == (rows, rows)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_ten_times_the_rows_take_no_more_memory() -> None:
    peak_of(100)
    small, large = peak_of(6_000), peak_of(30_000)
    assert large < small + 512 * 1024


def test_batches_of_giant_rows_are_small() -> None:
    row = f"c-1,{'x' * 100_000},{'y' * 100_000}\n"
    file = io.BytesIO(("contact_id,a,b\n" + row * 100).encode())
    batches = list(read_batches(file, examine(file, {})))
    assert len(batches) > 2
    assert len(batches[0]) < 30
    assert sum(len(batch) for batch in batches) == 100


@pytest.mark.parametrize(
    ("column", "cell", "words"),
    [
        ("phone_country_code", "MEX", "must be a country's two letters, as MX"),
        ("phone_calling_code", "+52 1", "must be 1 to 3 digits, as 52 or +52"),
        ("marketing_state", "maybe", "must be SUBSCRIBED, UNSUBSCRIBED, NOT_SUBSCRIBED or UNKNOWN"),
        ("language", "Spanish (Mexico)", "must be a language's code, as es or es_MX"),
        ("source", "x" * 65, "must be at most 64 characters long"),
    ],
)
def test_a_refusal_says_what_the_cell_must_be(column: str, cell: str, words: str) -> None:
    _, _, refused = read(f"contact_id,{column}\nc-1,{cell}\n")
    assert [(one.field, one.detail) for one in refused] == [(column, words)]


def test_a_row_without_its_id_is_told_so() -> None:
    _, _, refused = read("contact_id,name\n,Ana\n")
    assert [(one.field, one.detail) for one in refused] == [("contact_id", "is empty, and every row needs it")]


def test_a_refused_row_keeps_its_cells_and_whom_it_speaks_of() -> None:
    _, _, refused = read("id,mobile,mail,opt in\nc-1, +52 55 ,a@b.c,maybe\n")
    told = {"contact_id": "c-1", "phone": "+52 55", "marketing_state": "maybe"}
    assert refused == [RefusedRow(2, ("c-1", " +52 55 ", "a@b.c", "maybe"), "marketing_state", refused[0].detail, told)]
