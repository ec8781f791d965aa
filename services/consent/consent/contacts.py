"""Contacts and whose word undoes whose (design.md, "Consent"). Pure: values in, values out.

Of each person two words are kept: the latest firm one (their own STOP or START, an operator's with proof) and the
latest that others told (import, PUT, a shop's sync). Both are maxima, so any order of arrival ends in the same state.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple
from uuid import NAMESPACE_URL, UUID, uuid5

from sendwhy.events import (
    GENERATED_ID_PREFIX,
    ContactUpdated,
    MarketingState,
    event_id_of,
    generated_contact_id,
)
from sendwhy.values import value_class

from consent.fields import NOTHING, FieldChange, Fields, PhoneSetter, is_other_number, phone_changes

SUBSCRIBED, UNSUBSCRIBED = MarketingState.SUBSCRIBED, MarketingState.UNSUBSCRIBED
# People's and contacts' own ids are UUIDs.
OWN_ID_LENGTH = 36
ERASURE = "erasure"
_SEVERITY: Mapping[MarketingState, int] = {
    MarketingState.SUBSCRIBED: 0,
    MarketingState.UNKNOWN: 1,
    MarketingState.NOT_SUBSCRIBED: 2,
    MarketingState.UNSUBSCRIBED: 3,
}
OTHERS_TOLD = 10
_MARKS_IN_WORDS: Mapping[str, str] = {
    "contact": "external id",
    "phone": "phone number",
    "user": "WhatsApp user id",
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


@value_class
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
    def is_vague(self) -> bool:
        """Whether nobody ever said yes or no: the state of most people in a shop's list."""
        return self.state not in (SUBSCRIBED, UNSUBSCRIBED)

    @property
    def weight(self) -> tuple[datetime, int, bool, str, str]:
        return self.moment, _SEVERITY[self.state], self.own, self.source, self.proof or ""


def latest(*words: Word | None) -> Word | None:
    return max((word for word in words if word is not None), key=lambda word: word.weight, default=None)


def latest_told(*words: Word | None) -> Word | None:
    """What others tell of several records of one person: the latest, but that one list never heard a yes takes back no
    plain no that another one heard."""
    last = latest(*words)
    plain = latest(*(word for word in words if word is not None and not word.is_vague))
    return plain if last is not None and last.is_vague and plain is not None and plain.state == UNSUBSCRIBED else last


def standing(firm: Word | None, told: Word | None) -> Word | None:
    """The word that holds. What others tell never undoes a firm no; a firm yes, only by a later plain no."""
    if firm is None or told is None:
        return firm or told
    undone = firm.state == SUBSCRIBED and told.state == UNSUBSCRIBED and told.weight > firm.weight
    return told if undone else firm


@value_class
class Person:
    """What all records of one person share: the id of the oldest, and the latest words over all of them.

    It is computed, never told: a record whose phone is corrected leaves without the words of those it leaves.
    """

    id: UUID
    firm: Word | None = None
    told: Word | None = None


@value_class
class Contact:
    """One source's record of a person, with its whole state; records that share an identity are one person.

    `firm` and `told` are what was said of this record, `person` what holds. `fields_at`: how fresh the fields are, by
    the clock of whoever told them.
    """

    key: Key
    fields: Fields
    firm: Word | None
    told: Word | None
    version: int
    created_at: datetime
    fields_at: datetime
    updated_at: datetime
    uid: UUID
    person: Person
    phone_setter: PhoneSetter | None = None

    @property
    def word(self) -> Word:
        nobodys = Word(MarketingState.UNKNOWN, self.created_at, "unknown")
        return standing(self.person.firm, self.person.told) or nobodys

    @property
    def known_since(self) -> datetime:
        """By the clock of whoever told of them: what waited in Kafka, or is read again, is heard later than that."""
        return min(self.created_at, self.fields_at)

    @property
    def id_mark(self) -> Mark:
        """The first of `marks`."""
        return Mark(self.key.workspace_id, "contact", self.key.contact_id)

    @property
    def marks(self) -> tuple[Mark, ...]:
        return marks_of(self.key.workspace_id, self.key.contact_id, self.fields)

    @property
    def own_ids(self) -> tuple[Mark, Mark]:
        """The person's and the contact's own id, by either of which a contact may be asked for."""
        workspace_id = self.key.workspace_id
        return Mark(workspace_id, "contact", str(self.person.id)), Mark(workspace_id, "contact", str(self.uid))

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
            person_id=str(self.person.id),
            external_ids=list(fields.external_ids),
            language=fields.language,
            address_country=fields.address_country,
            marketing_state=word.state,
            since=word.at,
            source=word.source,
            proof=word.proof,
        )


def _event_id(key: Key, version: int) -> UUID:
    return event_id_of(f"{key.workspace_id}/{key.contact_id}/{version}", "contact.updated")


def marks_of(workspace_id: str, contact_id: str | None, fields: Fields) -> tuple[Mark, ...]:
    """The identities that these fields hold; first the id itself."""
    named = [("contact", contact_id), ("phone", fields.phone_key), ("user", fields.user_id)]
    named += [("contact", name) for name in fields.external_ids if name != contact_id]
    return tuple([Mark(workspace_id, kind, value) for kind, value in named if value])


@value_class
class Memory:
    """What is kept of an identity beside and beyond its contacts (stored under a keyed tag, never in clear).

    `version`: where an erased contact's versions ended, so that a new one under its id goes on from there.
    `user_id`: of a phone, as Meta told it, also of nobody's contact: a later STOP may come without the phone. A contact
    that has the number no more has no right to it either.
    """

    word: Word | None = None
    erased_at: datetime | None = None
    version: int = 0
    user_id: str | None = None


class Origin(StrEnum):
    """Who brings a change; it decides whether an unknown person becomes a contact."""

    PERSON = "person"
    OPERATOR = "operator"
    PUT = "put"
    IMPORT = "import"
    SYNC = "sync"
    LINK = "link"
    SUGGESTION = "suggestion"
    ERASURE = "erasure"
    DELETED = "deleted"
    REDACT = "redact"


# Who keeps lists of people, in which a number may be somebody else's; Meta knows whose a number is.
LISTS = (Origin.PUT, Origin.IMPORT, Origin.SYNC, Origin.SUGGESTION)


@value_class
class Change:
    """One thing that happened to a contact, named by `contact_id`, or to whoever has that phone or user id.

    `cause` names it so that a repeat is known again; `by` is who brought it. `firm` words outrank told ones. A PUT
    empties the fields it leaves out, but those in `kept`. `note` goes into the history.
    """

    workspace_id: str
    cause: str
    at: datetime
    by: str
    origin: Origin
    contact_id: str | None = None
    fields: Fields = NOTHING
    word: Word | None = None
    firm: bool = False
    kept: frozenset[str] = frozenset()
    note: str | None = None

    @property
    def marks(self) -> tuple[Mark, ...]:
        return marks_of(self.workspace_id, self.contact_id, self.fields)


class EntryKind(StrEnum):
    """What an entry tells: a word on consent, only the phone's fields, or that records became, or no longer are, one
    person."""

    CONSENT = "consent"
    PHONE = "phone"
    MERGED = "merged"
    PARTED = "parted"


@value_class
class Entry:
    """One line of a contact's history: what was said, what stood after it, and what became of the phone's fields.

    `overwrote`: who had set by hand the number that this change replaced. `others`: the contact ids of the other
    records, where records merged or parted.
    """

    key: Key
    cause: str
    said: Word
    stood: Word
    by: str
    recorded_at: datetime
    kind: EntryKind
    origin: Origin
    note: str | None = None
    fields: tuple[FieldChange, ...] = ()
    overwrote: PhoneSetter | None = None
    others: tuple[str, ...] = ()

    def joined(self, later: "Entry") -> "Entry":
        """One cause may reach a record twice: as one that it names, and as one of the same person."""
        kind = EntryKind.CONSENT if EntryKind.CONSENT in (self.kind, later.kind) else self.kind
        said = self.said if self.kind == kind else later.said
        fields, overwrote = self.fields + later.fields, self.overwrote or later.overwrote
        return replace(self, kind=kind, said=said, stood=later.stood, fields=fields, overwrote=overwrote)


@value_class
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
    return generated_contact_id(change.workspace_id, change.fields.phone_key or change.fields.user_id or "")


@dataclass
class Book:
    """The contacts and memories that one batch touches; `apply` the changes in order, then store what `changed`."""

    now: datetime
    contacts: dict[Key, Contact] = field(default_factory=dict)
    memories: dict[Mark, Memory] = field(default_factory=dict)
    touched: dict[Key, None] = field(default_factory=dict)
    history: dict[tuple[Key, str], Entry] = field(default_factory=dict)
    erased: dict[Key, Erased] = field(default_factory=dict)
    _before: dict[Key, Contact] = field(default_factory=dict)
    _memories_before: dict[Mark, Memory] = field(default_factory=dict)
    _holders: dict[Mark, set[Key]] = field(default_factory=dict)
    _uids: dict[UUID, Key] = field(default_factory=dict)

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
                self._remember_link(change)
                return refusal
            targets = [self._created(change)]
        elif (refusal := self._would_bring_back(targets[0], change)) is not None:
            return refusal
        for contact in targets:
            self._apply_to(contact, change)
        self._remember_link(change)
        return None

    def _would_bring_back(self, contact: Contact, change: Change) -> str | None:
        """An import or a sync must not put an erased person's identity onto another record either. Nor must what Meta
        told before the erasure."""
        if change.origin not in (Origin.IMPORT, Origin.SYNC, Origin.LINK):
            return None
        gained = set(self._with_fields(contact, change).marks) - set(contact.marks)
        erased = [at for mark in gained if (at := self.memories.get(mark, Memory()).erased_at) is not None]
        if change.origin == Origin.LINK:
            erased = [at for at in erased if change.at <= at]
        return f"this person was erased on {max(erased):%Y-%m-%d}" if erased else None

    def changed(self) -> list[Contact]:
        """The contacts to write; call once, after the last `apply`: it gives what others see anew its next version."""
        for key in self.touched:
            before, contact = self._before.get(key), self.contacts.get(key)
            if contact is not None and (before is None or contact.to_event() != before.to_event()):
                self.contacts[key] = replace(contact, version=contact.version + 1, updated_at=self.now)
        return [contact for key, contact in self.contacts.items() if self._before.get(key) != contact]

    def renamed(self) -> list[Contact]:
        """The contacts whose external ids are not those that are stored."""
        stored = {key: one.fields.external_ids for key, one in self._before.items() if key not in self.erased}
        return [one for key, one in self.contacts.items() if one.fields.external_ids != stored.get(key, ())]

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
        self._uids[contact.uid] = contact.key
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
        """Of somebody erased, who had said it before that."""
        if change.firm and change.origin == Origin.PERSON:
            for mark in change.marks:
                memory = self.memories.get(mark, Memory())
                self.memories[mark] = replace(memory, word=_lasting(latest(memory.word, change.word)))

    def _remember_link(self, change: Change) -> None:
        phone_key, user_id = change.fields.phone_key, change.fields.user_id
        if change.origin not in (Origin.PERSON, Origin.LINK) or phone_key is None or user_id is None:
            return
        mark = Mark(change.workspace_id, "phone", phone_key)
        memory = self.memories.get(mark, Memory())
        if memory.erased_at is None and memory.user_id is None:
            self.memories[mark] = replace(memory, user_id=user_id)

    def _forget_link(self, left: Contact) -> None:
        """Of a number that no record has any more: whoever is erased later would not be found by it."""
        mark = Mark(left.key.workspace_id, "phone", left.fields.phone_key or "")
        memory = self.memories.get(mark, Memory())
        if memory.user_id is not None and not self._is_in_use(mark):
            self.memories[mark] = replace(memory, user_id=None)

    def _linked(self, workspace_id: str, phone_key: str | None) -> str | None:
        """The user id of whoever has that number."""
        return self.memories.get(Mark(workspace_id, "phone", phone_key or ""), Memory()).user_id

    def _created(self, change: Change) -> Contact:
        contact_id = change.contact_id or generated_id(change)
        for mark in (*change.marks, Mark(change.workspace_id, "contact", contact_id)):
            if (memory := self.memories.get(mark)) is not None:
                self.memories[mark] = replace(memory, erased_at=None)
        version = self.memories.get(Mark(change.workspace_id, "contact", contact_id), Memory()).version
        key = Key(change.workspace_id, contact_id)
        # Versions go on past an erasure, so a contact that comes back is somebody new.
        uid = uuid5(NAMESPACE_URL, f"sendwhy:{key.workspace_id}/{contact_id}/{version}")
        return Contact(key, NOTHING, None, None, version, self.now, change.at, self.now, uid, Person(uid))

    def _with_fields(self, contact: Contact, change: Change) -> Contact:
        fields, fields_at = _new_fields(contact, change)
        if fields.phone_key != contact.fields.phone_key:
            # A user id that was learnt by a number is of whoever has that, and a number may have been a stranger's.
            learnt = self._linked(change.workspace_id, contact.fields.phone_key)
            if change.fields.user_id is None and fields.user_id == learnt:
                fields = replace(fields, user_id=None)
            if fields.user_id is None:
                fields = replace(fields, user_id=self._linked(change.workspace_id, fields.phone_key))
        setter = contact.phone_setter
        if is_other_number(contact.fields, fields):
            setter = PhoneSetter(change.origin, change.by, self.now) if fields.phone else None
        return replace(contact, fields=fields, fields_at=fields_at, phone_setter=setter)

    def _apply_to(self, contact: Contact, change: Change) -> None:
        before = self.contacts.get(contact.key)
        after = self._with_fields(contact, change)
        leaves = before is not None and bool(set(before.marks) - set(after.marks))
        group = self._person(before)[1] if before and leaves else set()
        gained = set(after.marks) - set(before.marks if before else ())
        if change.word is not None and change.firm:
            after = replace(after, firm=latest(after.firm, change.word))
        elif change.word is not None:
            after = replace(after, told=latest(after.told, change.word))
        self._put(after)
        self.touched[after.key] = None
        if leaves and before:
            self._forget_link(before)
        if leaves or not self._joins(after, change, gained):
            group -= self._settle(after, change, gained)
        self._record(self.contacts[after.key], change, before)
        if before and group:
            self._part(before, group, change)

    def _joins(self, contact: Contact, change: Change, gained: Collection[Mark]) -> bool:
        """Whether this record joins a person, or stays with it, and changes nothing for the others; then it is done.

        Only spares work: an import in which thousands have the same phone must not visit all of them for each row.
        """
        persons = {self.contacts[key].person for mark in contact.marks if (key := self._another(mark, contact.key))}
        if len(persons) != 1:
            return False
        (person,) = persons
        words = [self.memories.get(mark, Memory()).word for mark in contact.marks]
        firm, told = latest(person.firm, contact.firm, *words), (person.told, contact.told)
        oldest = self.contacts.get(self._uids.get(person.id, contact.key))
        if firm != person.firm or oldest is None or oldest.uid != person.id:
            return False
        if not person.told == latest(*told) == latest_told(*told):
            return False
        if self._no_before(change, gained, [contact]) is not None:
            return False
        if (contact.created_at, contact.key) < (oldest.created_at, oldest.key):
            return False
        self._put(replace(contact, person=person, firm=_with_firm_no(contact.firm, person.firm)))
        self._remember(contact.marks, self.contacts[contact.key].firm)
        self._record_merger(self.contacts[contact.key], [contact, oldest], change)
        return True

    def _another(self, mark: Mark, key: Key) -> Key | None:
        return next((holder for holder in self._holders.get(mark, ()) if holder != key), None)

    def _settle(
        self, contact: Contact, change: Change, gained: Collection[Mark] = (), *, is_another: bool = False
    ) -> set[Key]:
        """Give all records of one person the same id and words; returns their keys. `is_another`: the change was to a
        record that is none of them.

        A firm no goes into every record and identity, and stays there when they part. A firm yes stays with those that
        it was said of: it must not follow a record that was one person with them by a wrong number only, and it undoes
        no no of somebody whom an import, a PUT or a sync makes one person with them.
        """
        marks, keys = self._person(contact)
        group = [self.contacts[key] for key in sorted(keys)]
        if (no := self._no_before(change, gained, group)) is not None:
            self._take_back(marks, group, no)
            contact = self.contacts[contact.key]
        person = self._person_of(marks, [self.contacts[one.key] for one in group])
        self._remember(contact.marks, contact.firm)
        if person.firm is not None and person.firm.state != SUBSCRIBED:
            self._remember(marks, person.firm)
        for other in group:
            firm = _with_firm_no(self.contacts[other.key].firm, person.firm)
            settled = replace(other, person=person, firm=firm)
            if settled == other:
                continue
            self._put(settled)
            self.touched[other.key] = None
            if is_another or other.key != contact.key:
                self._record_of_another(settled, other, change)
        self._record_merger(self.contacts[contact.key], group, change)
        return keys

    def _no_before(self, change: Change, gained: Iterable[Mark], group: Sequence[Contact]) -> Word | None:
        """The firm no of a part of `group` that stood before this change joined them, if a yes would undo it."""
        if change.origin not in LISTS or not gained:
            return None
        persons = {one.person.id: one.person.firm for one in group}
        for mark in gained:
            if (key := self._another(mark, group[0].key)) is not None:
                persons[self.contacts[key].person.id] = self.contacts[key].person.firm
        parts = [*persons.values(), *(self.memories.get(mark, Memory()).word for mark in gained)]
        last = latest(*parts, *(one.firm for one in group))
        noes = [word for word in parts if word is not None and word.state != SUBSCRIBED]
        return latest(*noes) if last is not None and last.state == SUBSCRIBED else None

    def _take_back(self, marks: Iterable[Mark], group: Iterable[Contact], no: Word) -> None:
        """Let the no stand for all of them, also where a later yes was said of one of them alone."""
        for mark in marks:
            memory = self.memories.get(mark, Memory())
            if memory.word is not None and memory.word.state == SUBSCRIBED:
                self.memories[mark] = replace(memory, word=_bare(no))
        for one in group:
            if one.firm is not None and one.firm.state == SUBSCRIBED:
                self._put(replace(one, firm=no))

    def _person_of(self, marks: Iterable[Mark], group: Sequence[Contact]) -> Person:
        oldest = min(group, key=lambda one: (one.created_at, one.key))
        words = [self.memories.get(mark, Memory()).word for mark in marks]
        firm = latest(*words, *(one.firm for one in group))
        return Person(oldest.uid, firm, latest_told(*(one.told for one in group)))

    def _remember(self, marks: Iterable[Mark], word: Word | None) -> None:
        for mark in marks if word is not None else ():
            memory = self.memories.get(mark, Memory())
            self.memories[mark] = replace(memory, word=_bare(latest(memory.word, word)))

    def _person(self, contact: Contact) -> tuple[list[Mark], set[Key]]:
        marks, keys = list(contact.marks), {contact.key}
        seen = set(marks)
        for mark in marks:
            for key in sorted(self._holders.get(mark, set()) - keys):
                keys.add(key)
                new = [other for other in self.contacts[key].marks if other not in seen]
                marks += new
                seen.update(new)
        return marks, keys

    def _part(self, before: Contact, left: set[Key], change: Change) -> None:
        """Settle anew the records that this one is no longer one person with."""
        key, person = before.key, before.person.id
        self._record_persons(self.contacts[key], EntryKind.PARTED, person, left, change)
        while left:
            other = min(left)
            left = left - self._settle(self.contacts[other], change, is_another=True)
            self._record_persons(self.contacts[other], EntryKind.PARTED, person, {key}, change)

    def _record(self, contact: Contact, change: Change, before: Contact | None) -> None:
        stood, word = contact.word, change.word
        moved = stood.state != (before.word.state if before else MarketingState.UNKNOWN)
        unheard = word is not None and word.state != stood.state
        heard = word is not None and (change.firm or before is None)
        fields = phone_changes(before.fields if before else NOTHING, contact.fields)
        if moved or unheard or heard:
            self._enter(contact, change, word or stood, EntryKind.CONSENT, fields, _overwritten(before, contact))
        elif fields:
            said = Word(stood.state, change.at, change.origin)
            self._enter(contact, change, said, EntryKind.PHONE, fields, _overwritten(before, contact))

    def _record_of_another(self, contact: Contact, before: Contact, change: Change) -> None:
        """What a change to one record did to another one of the same person."""
        firm, older = contact.person.firm, before.person.firm
        is_new = firm is not None and (older is None or older.weight[:4] < firm.weight[:4])
        if is_new or contact.word.state != before.word.state:
            said = firm if is_new else change.word
            self._enter(contact, change, said or contact.word, EntryKind.CONSENT)

    def _record_merger(self, contact: Contact, group: Sequence[Contact], change: Change) -> None:
        """`group` as it was before. Told by the record that changed, by those that joined, and by the oldest."""
        if len({one.person.id for one in group}) < 2:
            return
        person = contact.person.id
        tellers = [one for one in group if one.person.id != person or person == one.uid or one.key == contact.key]
        for one in tellers:
            self._record_persons(
                self.contacts[one.key], EntryKind.MERGED, person, {other.key for other in group} - {one.key}, change
            )

    def _record_persons(
        self, contact: Contact, kind: EntryKind, person: UUID, others: set[Key], change: Change
    ) -> None:
        stood = contact.word
        said = Word(stood.state, change.at, change.origin)
        names = tuple(key.contact_id for key in sorted(others)[:OTHERS_TOLD])
        cause = f"{change.cause}/{kind}/{person}"
        note = self._shared(contact, change) if kind == EntryKind.MERGED else None
        self.history.setdefault(
            (contact.key, cause),
            Entry(contact.key, cause, said, stood, change.by, self.now, kind, change.origin, note, others=names),
        )

    def _shared(self, contact: Contact, change: Change) -> str:
        if change.contact_id is None and change.fields.phone and change.fields.user_id:
            return change.note or "a message carried both the phone number and the WhatsApp user id"
        shared = {mark.kind for mark in contact.marks if len(self._holders.get(mark, ())) > 1}
        return "the same " + " and ".join(_MARKS_IN_WORDS[kind] for kind in sorted(shared))

    def _enter(
        self,
        contact: Contact,
        change: Change,
        said: Word,
        kind: EntryKind,
        fields: tuple[FieldChange, ...] = (),
        overwrote: PhoneSetter | None = None,
    ) -> None:
        place = (contact.key, change.cause)
        entry = Entry(
            *(*place, said, contact.word, change.by, self.now, kind, change.origin, change.note, fields, overwrote)
        )
        self.history[place] = self.history[place].joined(entry) if place in self.history else entry

    def _erase(self, change: Change) -> str | None:
        targets = self._targets(change)
        if targets and change.origin == Origin.DELETED and change.at < targets[0].fields_at:
            return "the contact was changed after it"
        if targets and change.origin == Origin.REDACT and change.at < targets[0].known_since:
            # An old webhook that is read again must not take who came after it.
            return "the contact was made after it"
        if targets:
            self._erase_records(targets[0], change)
            return None
        if change.origin == Origin.REDACT:
            # Whose record the shop deleted, or never told of, may have others under the same phone.
            others = self._targets(replace(change, contact_id=None))
            for other in [one for one in others if change.at >= one.known_since][:1]:
                self._erase_records(other, change)
        return self._tell_erased_again(change)

    def _erase_records(self, contact: Contact, change: Change) -> None:
        left = self._person(contact)[1]
        # A shop that deletes its customer speaks for its own record only; who asks to be erased is a whole person.
        doomed = [contact, *self._generated_twins(contact)]
        if change.origin != Origin.DELETED:
            doomed = [contact, *(self.contacts[key] for key in sorted(left - {contact.key}))]
        for one in doomed:
            self._drop(one)
        for one in doomed:
            own = tuple(mark for mark in one.marks if not self._is_in_use(mark))
            for mark in own:
                memory = self.memories.get(mark, Memory())
                version = one.version + 1 if mark.kind == "contact" else memory.version
                self.memories[mark] = Memory(_lasting(latest(memory.word, one.person.firm)), change.at, version)
            self.erased[one.key] = Erased(one.key, one.version + 1, change.at, own, change)
        left &= self.contacts.keys()
        while left:
            left -= self._settle(self.contacts[min(left)], change, is_another=True)

    def _is_in_use(self, mark: Mark) -> bool:
        """Whether a record that stays has this identity as well: nobody is refused by it, nothing erased by it."""
        return mark.kind != "contact" and bool(self._holders.get(mark))

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
        own = tuple(each for each in change.marks if not self._is_in_use(each))
        for each in own:
            known = self.memories.get(each, Memory())
            version = known.version + 1 if each == mark else known.version
            self.memories[each] = Memory(_lasting(known.word), change.at, version)
        self.erased[key] = Erased(key, memory.version + 1, change.at, own, change)
        return None


def _new_fields(contact: Contact, change: Change) -> tuple[Fields, datetime]:
    """The fields after a change, and how fresh they are then."""
    told, had = change.fields, contact.fields
    if change.origin == Origin.PUT:
        return replace(told, **{name: getattr(had, name) for name in change.kept}), change.at
    if told == NOTHING:
        return had, contact.fields_at
    if change.origin in (Origin.PERSON, Origin.LINK):
        # What Meta tells only fills gaps: the shop's spelling of a phone or a name stays.
        return had.filled_from(told), contact.fields_at
    if change.origin == Origin.SUGGESTION:
        # It makes what is known readable, not fresher: a shop's change of a moment ago may still be on its way.
        return told.filled_from(had), contact.fields_at
    if change.at < contact.fields_at:
        return had, contact.fields_at
    return told.filled_from(had), change.at


def _overwritten(before: Contact | None, after: Contact) -> PhoneSetter | None:
    """Who had set by hand the number that others have now replaced."""
    setter = before.phone_setter if before else None
    by_others = after.phone_setter is None or not after.phone_setter.is_by_hand
    return setter if setter and setter.is_by_hand and by_others and setter != after.phone_setter else None


def _with_firm_no(own: Word | None, firm: Word | None) -> Word | None:
    if firm is None or firm.state == SUBSCRIBED:
        return own
    return firm if own is None or own.weight[:4] < firm.weight[:4] else own


def _lasting(word: Word | None) -> Word | None:
    """What of a word outlives an erasure: a no. Who comes back is a new acquaintance, whose yes is still to be said."""
    return None if word is None or word.state == SUBSCRIBED else _bare(word)


def _bare(word: Word | None) -> Word | None:
    """A word as it may outlive its contact: without the proof, which may name the person."""
    return replace(word, proof=None) if word else None
