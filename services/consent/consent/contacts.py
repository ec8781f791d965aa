"""Contacts and whose word undoes whose (design.md, "Consent"). Pure: values in, values out.

Of each person two words are kept: the latest firm one (their own STOP or START, an operator's with proof) and the
latest that others told (import, PUT, a shop's sync). Both are maxima, so any order of arrival ends in the same state.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple
from uuid import NAMESPACE_URL, UUID, uuid5

from sendwhy.events import ContactUpdated, MarketingState, event_id_of

from consent.phones import Reading, read_phone

SUBSCRIBED, UNSUBSCRIBED = MarketingState.SUBSCRIBED, MarketingState.UNSUBSCRIBED
GENERATED_ID_PREFIX = "wa-"
ERASURE = "erasure"
_SEVERITY: Mapping[MarketingState, int] = {
    MarketingState.SUBSCRIBED: 0,
    MarketingState.UNKNOWN: 1,
    MarketingState.NOT_SUBSCRIBED: 2,
    MarketingState.UNSUBSCRIBED: 3,
}
_REST_OF_SECOND = timedelta(microseconds=999_999)


class Key(NamedTuple):
    workspace_id: str
    contact_id: str


class Mark(NamedTuple):
    """One identity of a person within a workspace: kind `contact`, `phone` (its key) or `user` (a BSUID)."""

    workspace_id: str
    kind: str
    value: str


@dataclass(frozen=True, slots=True)
class Word:
    """What somebody said of a person's consent; `own`: the person did. `proof` is a wamid, a form, a note."""

    state: MarketingState
    at: datetime
    source: str
    proof: str | None = None
    own: bool = False

    @property
    def moment(self) -> datetime:
        """Meta's times are whole seconds: a person's STOP holds to the end of its second."""
        if self.own and self.state == UNSUBSCRIBED:
            return self.at.replace(microsecond=0) + _REST_OF_SECOND
        return self.at

    @property
    def weight(self) -> tuple[datetime, int, bool, str, str]:
        return self.moment, _SEVERITY[self.state], self.own, self.source, self.proof or ""


def latest(*words: Word | None) -> Word | None:
    return max((word for word in words if word is not None), key=lambda word: word.weight, default=None)


def standing(firm: Word | None, told: Word | None) -> Word | None:
    """The word that holds. What others tell never undoes a firm no; a firm yes, only by a later plain no."""
    if firm is None or told is None:
        return firm or told
    undone = firm.state == SUBSCRIBED and told.state == UNSUBSCRIBED and told.weight > firm.weight
    return told if undone else firm


@dataclass(frozen=True, slots=True)
class Fields:
    """What a source has on a person beside consent. `phone` as it was given."""

    phone: str | None = None
    country_code: str | None = None
    calling_code: str | None = None
    user_id: str | None = None
    name: str | None = None

    @property
    def reading(self) -> Reading | None:
        return read_phone(self.phone, self.calling_code, self.country_code) if self.phone else None

    @property
    def e164(self) -> str | None:
        reading = self.reading
        return reading.phone.e164 if reading and reading.phone else None

    @property
    def phone_key(self) -> str | None:
        reading = self.reading
        return reading.phone.key if reading and reading.phone else None

    def filled_from(self, older: "Fields") -> "Fields":
        """These fields; those that are not told stay as they were. A phone comes with its own codes."""
        codes = older if self.phone is None or self.phone == older.phone else Fields()
        return Fields(
            phone=self.phone or older.phone,
            country_code=self.country_code or codes.country_code,
            calling_code=self.calling_code or codes.calling_code,
            user_id=self.user_id or older.user_id,
            name=self.name or older.name,
        )


@dataclass(frozen=True, slots=True)
class Contact:
    """One contact's whole state. `fields_at`: how fresh the fields are, by the clock of whoever told them."""

    key: Key
    fields: Fields
    firm: Word | None
    told: Word | None
    version: int
    created_at: datetime
    fields_at: datetime
    updated_at: datetime

    @property
    def word(self) -> Word:
        nobodys = Word(MarketingState.UNKNOWN, self.created_at, "unknown")
        return standing(self.firm, self.told) or nobodys

    @property
    def marks(self) -> tuple[Mark, ...]:
        return marks_of(self.key.workspace_id, self.key.contact_id, self.fields.phone_key, self.fields.user_id)

    @property
    def is_generated(self) -> bool:
        return self.key.contact_id.startswith(GENERATED_ID_PREFIX)

    def to_event(self) -> ContactUpdated:
        word, fields = self.word, self.fields
        return ContactUpdated(
            event_id=_event_id(self.key, self.version),
            occurred_at=self.updated_at,
            workspace_id=self.key.workspace_id,
            contact_id=self.key.contact_id,
            version=self.version,
            phone=fields.e164,
            phone_given=fields.phone,
            phone_country_code=fields.country_code,
            phone_calling_code=fields.calling_code,
            user_id=fields.user_id,
            name=fields.name,
            marketing_state=word.state,
            since=word.at,
            source=word.source,
            proof=word.proof,
        )


def _event_id(key: Key, version: int) -> UUID:
    return event_id_of(f"{key.workspace_id}/{key.contact_id}/{version}", "contact.updated")


def marks_of(
    workspace_id: str, contact_id: str | None = None, phone_key: str | None = None, user_id: str | None = None
) -> tuple[Mark, ...]:
    named = (("contact", contact_id), ("phone", phone_key), ("user", user_id))
    return tuple(Mark(workspace_id, kind, value) for kind, value in named if value)


@dataclass(frozen=True, slots=True)
class Memory:
    """What is kept of an identity beside and beyond its contacts (stored under a keyed tag, never in clear).

    `version`: where an erased contact's versions ended, so that a new one under its id goes on from there.
    """

    word: Word | None = None
    erased_at: datetime | None = None
    version: int = 0


class Origin(StrEnum):
    """Who brings a change; it decides whether an unknown person becomes a contact."""

    PERSON = "person"
    OPERATOR = "operator"
    PUT = "put"
    IMPORT = "import"
    SYNC = "sync"
    LINK = "link"
    ERASURE = "erasure"
    DELETED = "deleted"
    REDACT = "redact"


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that happened to a contact, named by `contact_id`, or to whoever has that phone or user id.

    `cause` names it so that a repeat is known again; `by` is who brought it. `firm` words outrank told ones.
    """

    workspace_id: str
    cause: str
    at: datetime
    by: str
    origin: Origin
    contact_id: str | None = None
    fields: Fields = Fields()
    word: Word | None = None
    firm: bool = False

    @property
    def marks(self) -> tuple[Mark, ...]:
        return marks_of(self.workspace_id, self.contact_id, self.fields.phone_key, self.fields.user_id)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a contact's history: what was said, and what stood after it."""

    key: Key
    cause: str
    said: Word
    stood: Word
    by: str
    recorded_at: datetime


@dataclass(frozen=True, slots=True)
class Erased:
    """`marks`: the identities whose decisions are redacted. `asked`: what asked for it, one for all of a person's
    contacts; `told_again`: they had been erased before."""

    key: Key
    version: int
    at: datetime
    marks: tuple[Mark, ...]
    asked: Change
    told_again: bool = False

    def to_event(self) -> ContactUpdated:
        """The last state of an erased contact, without anything personal: what waits for them is recalled."""
        return ContactUpdated(
            event_id=_event_id(self.key, self.version),
            occurred_at=self.at,
            workspace_id=self.key.workspace_id,
            contact_id=self.key.contact_id,
            version=self.version,
            marketing_state=UNSUBSCRIBED,
            since=self.at,
            source=ERASURE,
        )


def generated_id(change: Change) -> str:
    """The id of somebody who is known only by their phone or user id."""
    name = change.fields.phone_key or change.fields.user_id
    return f"{GENERATED_ID_PREFIX}{uuid5(NAMESPACE_URL, f'sendwhy:{change.workspace_id}/{name}')}"


@dataclass
class Book:
    """The contacts and memories that one batch touches; `apply` the changes in order, then store what `changed`."""

    now: datetime
    contacts: dict[Key, Contact] = field(default_factory=dict)
    memories: dict[Mark, Memory] = field(default_factory=dict)
    touched: dict[Key, None] = field(default_factory=dict)
    history: list[Entry] = field(default_factory=list)
    erased: dict[Key, Erased] = field(default_factory=dict)
    _before: dict[Key, Contact] = field(default_factory=dict)
    _memories_before: dict[Mark, Memory] = field(default_factory=dict)
    _holders: dict[Mark, set[Key]] = field(default_factory=dict)

    def load(self, contacts: Iterable[Contact], memories: Mapping[Mark, Memory]) -> None:
        for contact in contacts:
            self._before[contact.key] = contact
            self._put(contact)
        self.memories.update(memories)
        self._memories_before.update(memories)

    def marks_for(self, changes: Iterable[Change]) -> set[Mark]:
        """Every identity that these changes reach, as far as the contacts loaded so far tell."""
        marks = {mark for change in changes for mark in change.marks}
        marks |= {mark for contact in self.contacts.values() for mark in contact.marks}
        for change in changes:
            marks |= {mark for contact in self._targets(change) for mark in self._with_fields(contact, change).marks}
            if change.contact_id is None and change.marks:
                marks.add(Mark(change.workspace_id, "contact", generated_id(change)))
        return marks

    def apply(self, change: Change) -> str | None:
        """Apply one change; returns why it was refused, or None."""
        if change.origin in (Origin.ERASURE, Origin.DELETED, Origin.REDACT):
            return self._erase(change)
        targets = self._targets(change)
        if not targets:
            if (refusal := self._cannot_create(change)) is not None:
                self._remember_word(change)
                return refusal
            targets = [self._created(change)]
        for contact in targets:
            self._apply_to(contact, change)
        return None

    def changed(self) -> list[Contact]:
        """The contacts to write; call once, after the last `apply`: it gives what others see anew its next version."""
        for key in self.touched:
            before, contact = self._before.get(key), self.contacts.get(key)
            if contact is not None and (before is None or contact.to_event() != before.to_event()):
                self.contacts[key] = replace(contact, version=contact.version + 1, updated_at=self.now)
        return [contact for key, contact in self.contacts.items() if self._before.get(key) != contact]

    def changed_memories(self) -> dict[Mark, Memory]:
        return {mark: memory for mark, memory in self.memories.items() if self._memories_before.get(mark) != memory}

    def events(self) -> list[ContactUpdated]:
        """The whole state of every contact touched, changed or not: a repeated input must tell it again."""
        return [self.contacts[key].to_event() for key in self.touched if key in self.contacts]

    def _put(self, contact: Contact) -> None:
        older = self.contacts.get(contact.key)
        for mark in older.marks if older else ():
            self._holders[mark].discard(contact.key)
        self.contacts[contact.key] = contact
        for mark in contact.marks:
            self._holders.setdefault(mark, set()).add(contact.key)

    def _drop(self, contact: Contact) -> None:
        del self.contacts[contact.key]
        for mark in contact.marks:
            self._holders[mark].discard(contact.key)

    def _targets(self, change: Change) -> list[Contact]:
        if change.contact_id is not None:
            contact = self.contacts.get(Key(change.workspace_id, change.contact_id))
            return [contact] if contact else []
        keys = {key for mark in change.marks for key in self._holders.get(mark, ())}
        return [self.contacts[key] for key in sorted(keys)]

    def _cannot_create(self, change: Change) -> str | None:
        erased = [at for mark in change.marks if (at := self.memories.get(mark, Memory()).erased_at) is not None]
        match change.origin:
            case Origin.PUT:
                return None
            case Origin.PERSON if not erased or change.at > max(erased):
                return None
            case Origin.IMPORT | Origin.SYNC if not erased:
                return None
            case Origin.OPERATOR | Origin.LINK:
                return "no such contact"
        return f"this person was erased on {max(erased):%Y-%m-%d}"

    def _remember_word(self, change: Change) -> None:
        if change.firm and change.origin == Origin.PERSON:
            for mark in change.marks:
                memory = self.memories.get(mark, Memory())
                self.memories[mark] = replace(memory, word=_bare(latest(memory.word, change.word)))

    def _created(self, change: Change) -> Contact:
        contact_id = change.contact_id or generated_id(change)
        for mark in (*change.marks, Mark(change.workspace_id, "contact", contact_id)):
            if (memory := self.memories.get(mark)) is not None:
                self.memories[mark] = replace(memory, erased_at=None)
        version = self.memories.get(Mark(change.workspace_id, "contact", contact_id), Memory()).version
        key = Key(change.workspace_id, contact_id)
        return Contact(key, Fields(), None, None, version, self.now, change.at, self.now)

    def _with_fields(self, contact: Contact, change: Change) -> Contact:
        if change.origin == Origin.PUT:
            return replace(contact, fields=change.fields, fields_at=change.at)
        if change.fields == Fields():
            return contact
        if change.origin in (Origin.PERSON, Origin.LINK):
            # What Meta tells only fills gaps: the shop's spelling of a phone or a name stays.
            return replace(contact, fields=contact.fields.filled_from(change.fields))
        if change.at < contact.fields_at:
            return contact
        return replace(contact, fields=change.fields.filled_from(contact.fields), fields_at=change.at)

    def _apply_to(self, contact: Contact, change: Change) -> None:
        before = contact.word if contact.key in self.contacts else None
        contact = self._with_fields(contact, change)
        if change.word is not None and change.firm:
            contact = replace(contact, firm=latest(contact.firm, change.word))
        elif change.word is not None:
            contact = replace(contact, told=latest(contact.told, change.word))
        self._put(contact)
        self.touched[contact.key] = None
        self._settle(contact, change)
        self._record(self.contacts[contact.key], change, before)

    def _settle(self, contact: Contact, change: Change) -> None:
        """Give the latest firm word of one person to all their identities and contacts."""
        marks, keys = self._person(contact)
        words = [self.memories.get(mark, Memory()).word for mark in marks]
        firm = latest(*words, *(self.contacts[key].firm for key in keys))
        if firm is None:
            return
        for mark in marks:
            memory = self.memories.get(mark, Memory())
            self.memories[mark] = replace(memory, word=_bare(latest(memory.word, firm)))
        for key in sorted(keys):
            other = self.contacts[key]
            if other.firm is None or other.firm.weight[:4] < firm.weight[:4]:
                self._put(replace(other, firm=firm))
                self.touched[key] = None
                if key != contact.key:
                    self._record(self.contacts[key], change, other.word, firm)

    def _person(self, contact: Contact) -> tuple[list[Mark], set[Key]]:
        marks, keys = list(contact.marks), {contact.key}
        for mark in marks:
            for key in sorted(self._holders.get(mark, set()) - keys):
                keys.add(key)
                marks += [other for other in self.contacts[key].marks if other not in marks]
        return marks, keys

    def _record(self, contact: Contact, change: Change, before: Word | None, said: Word | None = None) -> None:
        stood = contact.word
        word = said or change.word
        moved = stood.state != (before.state if before else MarketingState.UNKNOWN)
        unheard = word is not None and word.state != stood.state
        if moved or unheard or (word is not None and (change.firm or before is None)):
            self.history.append(Entry(contact.key, change.cause, word or stood, stood, change.by, self.now))

    def _erase(self, change: Change) -> str | None:
        targets = self._targets(change)
        if not targets:
            return self._tell_erased_again(change)
        if change.origin == Origin.DELETED and change.at < targets[0].fields_at:
            return "the contact was changed after it"
        if change.origin == Origin.REDACT and change.at < targets[0].created_at:
            # An old webhook that is read again must not take who came after it.
            return "the contact was made after it"
        for contact in [*targets, *self._generated_twins(targets[0])]:
            for mark in contact.marks:
                memory = self.memories.get(mark, Memory())
                word = _bare(latest(memory.word, contact.firm))
                version = contact.version + 1 if mark.kind == "contact" else memory.version
                self.memories[mark] = Memory(word, change.at, version)
            self._drop(contact)
            self.erased[contact.key] = Erased(contact.key, contact.version + 1, change.at, contact.marks, change)
        return None

    def _generated_twins(self, contact: Contact) -> list[Contact]:
        keys = {key for mark in contact.marks for key in self._holders.get(mark, ())} - {contact.key}
        return [twin for key in sorted(keys) if (twin := self.contacts[key]).is_generated]

    def _tell_erased_again(self, change: Change) -> str | None:
        key = Key(change.workspace_id, change.contact_id or "")
        mark = Mark(key.workspace_id, "contact", key.contact_id)
        memory = self.memories.get(mark, Memory())
        if memory.erased_at is not None:
            self.erased[key] = Erased(key, memory.version, memory.erased_at, (mark,), change, told_again=True)
            return None
        if change.origin != Origin.REDACT:
            return "no such contact"
        # A shop's order holds for people whom we have only as the recipients of messages, too.
        for each in change.marks:
            known = self.memories.get(each, Memory())
            version = known.version + 1 if each == mark else known.version
            self.memories[each] = replace(known, erased_at=change.at, version=version)
        self.erased[key] = Erased(key, memory.version + 1, change.at, change.marks, change)
        return None


def _bare(word: Word | None) -> Word | None:
    """A word as it may outlive its contact: without the proof, which may name the person."""
    return replace(word, proof=None) if word else None
