"""What an import's rows change (pure): a row that says what already stands changes nothing, so that the same file may
be imported again, whole or after an import that was cut short."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sendwhy.events import EARLIEST

from consent.contacts import SUBSCRIBED, UNSUBSCRIBED, Book, Change, Contact, Key, Mark, Origin, Word, standing
from consent.fields import Fields
from consent.import_columns import ATTRIBUTES
from consent.import_csv import NumberedRow, RefusedRow


@dataclass(frozen=True, slots=True)
class Cause:
    """Whose file it is: `digest` names its content, `by` whoever sent it."""

    workspace_id: str
    digest: bytes
    by: str


def fields_of_row(row: NumberedRow) -> Fields:
    return Fields(**{attribute: getattr(row.row, field) for field, attribute in ATTRIBUTES.items()})


def change_of(row: NumberedRow, cause: Cause, at: datetime, version: int = 0) -> Change:
    """A row as a change. The cause in the history is the same for each import of this file, as long as the contact
    (`version`) has not changed in between."""
    said = row.row
    state = said.marketing_state
    return Change(
        workspace_id=cause.workspace_id,
        cause=f"import/{cause.digest.hex()[:32]}/{row.number}/{version}",
        at=at,
        by=cause.by,
        origin=Origin.IMPORT,
        contact_id=said.contact_id,
        fields=fields_of_row(row),
        word=Word(state, at, said.source or "import", said.proof) if state else None,
    )


def changes_of(rows: Sequence[NumberedRow], cause: Cause, now: datetime) -> list[Change]:
    """A batch's changes, each a microsecond later than the one before: of rows on one contact the last must win."""
    last = len(rows) - 1
    return [change_of(row, cause, now - timedelta(microseconds=last - i)) for i, row in enumerate(rows)]


def news(change: Change, contact: Contact | None) -> Change | None:
    """What of a change the contact doesn't say already; None if nothing."""
    if contact is None:
        return change
    told, word = contact.told, change.word
    firm = contact.person.firm
    if word is not None and word.is_vague and firm and (firm.state, contact.word.state) == (SUBSCRIBED, UNSUBSCRIBED):
        # That a file never heard a yes must not take back the plain no that undid the person's own one.
        word = None
    if word is not None and told is not None:
        is_known = (told.state, told.source, told.proof) == (word.state, word.source, word.proof)
        # Told anew, a no would undo a yes that the person gave since: that is news.
        older, newer = standing(firm, told), standing(firm, word)
        if is_known and older is not None and newer is not None and older.state == newer.state:
            word = None
    fields = Fields() if change.fields.filled_from(contact.fields) == contact.fields else change.fields
    if word is None and fields == Fields():
        return None
    return replace(change, word=word, fields=fields)


@dataclass(frozen=True, slots=True)
class Outcome:
    """`refused`: positions of rows, and why."""

    refused: list[tuple[int, str]]
    unchanged: int


def apply_to(book: Book, rows: Sequence[NumberedRow], cause: Cause, now: datetime) -> Outcome:
    """Apply a batch to the book that was opened for it."""
    refused: list[tuple[int, str]] = []
    unchanged = 0
    for i, change in enumerate(changes_of(rows, cause, now)):
        contact = book.contacts.get(Key(cause.workspace_id, rows[i].row.contact_id))
        if contact is not None:
            change = replace(change, cause=change_of(rows[i], cause, change.at, contact.version).cause)
        new = news(change, contact)
        if new is None:
            unchanged += 1
        elif (why := book.apply(new)) is not None:
            refused.append((i, why))
    return Outcome(refused, unchanged)


def marks_of_refused(workspace: str, refused: RefusedRow) -> tuple[Mark, ...]:
    """Whom a refused row speaks of, as far as that can be read."""
    told = {field: cell for field, cell in refused.told.items() if len(cell) <= 128}
    fields = Fields(phone=told.get("phone"), calling_code=told.get("phone_calling_code"))
    return Change(workspace, "", EARLIEST, "", Origin.IMPORT, told.get("contact_id"), fields).marks


def name_of(contact_id: str) -> int:
    """A number for a contact's id, by which a file's rows on one contact are found without keeping the ids."""
    return int.from_bytes(hashlib.blake2b(contact_id.encode(), digest_size=8).digest(), signed=True)
