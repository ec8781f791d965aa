"""Finding contacts by any of a person's names, and the person behind a contact."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from uuid import UUID

from sendwhy.postgres import Connection
from sendwhy.problems import not_found

from consent import store
from consent.contacts import Contact, Mark


async def contact_named(connection: Connection, workspace: str, name: str) -> Contact:
    """The contact of that id; else the one that has it among its external ids; else the person of that own id.

    Raises Problem 404.
    """
    if (contact := await find_contact(connection, workspace, name)) is None:
        raise not_found("The contact")
    return contact


async def find_contact(connection: Connection, workspace: str, name: str) -> Contact | None:
    return (await find_contacts(connection, workspace, [name])).get(name)


async def find_contacts(connection: Connection, workspace: str, names: Iterable[str]) -> dict[str, Contact]:
    """Contacts by the names that were asked for."""
    asked = set(names)
    found: dict[str, Contact] = {}
    marks = [Mark(workspace, "contact", name) for name in asked]
    for contact in sorted(await store.contacts_named(connection, marks), key=by_likelihood):
        for name in names_of(contact) & asked:
            if name == contact.key.contact_id or name not in found:
                found[name] = contact
    return found


def names_of(contact: Contact) -> set[str]:
    """Everything that a contact may be asked for by. A person's own id may stand for any of its records."""
    return {contact.key.contact_id, *contact.fields.external_ids, str(contact.person.id), str(contact.uid)}


async def records_of(connection: Connection, contact: Contact) -> list[Contact]:
    """All records of the contact's person, this one included, the likeliest first."""
    records = await store.contacts_of_persons(connection, [contact])
    return sorted(records, key=by_likelihood)


def by_likelihood(contact: Contact) -> tuple[bool, float, str]:
    """Records that a message made yield to named ones, older states to newer ones."""
    return contact.is_generated, -contact.updated_at.timestamp(), contact.key.contact_id


async def with_phones_of_persons(connection: Connection, contacts: Sequence[Contact]) -> list[Contact]:
    """These contacts; one that has no phone takes that of another record of its person, else another one's user id."""
    without = [contact for contact in contacts if contact.fields.phone is None]
    if not without:
        return list(contacts)
    records = sorted(await store.contacts_of_persons(connection, without), key=by_likelihood)
    phones: dict[UUID, Contact] = {}
    users: dict[UUID, str] = {}
    for record in records:
        if record.fields.phone is not None:
            phones.setdefault(record.person.id, record)
        if record.fields.user_id is not None:
            users.setdefault(record.person.id, record.fields.user_id)
    return [_with_user_id(_with_phone(one, phones.get(one.person.id)), users.get(one.person.id)) for one in contacts]


def _with_user_id(contact: Contact, other: str | None) -> Contact:
    fields = contact.fields
    if fields.phone is not None or fields.user_id is not None or other is None:
        return contact
    return replace(contact, fields=replace(fields, user_id=other))


def _with_phone(contact: Contact, other: Contact | None) -> Contact:
    if contact.fields.phone is not None or other is None:
        return contact
    phone, country, code = other.fields.phone, other.fields.country_code, other.fields.calling_code
    return replace(contact, fields=replace(contact.fields, phone=phone, country_code=country, calling_code=code))


def external_ids_of(records: Sequence[Contact]) -> list[str]:
    """Every name under which other systems know the person."""
    own = {record.key.contact_id for record in records if not record.is_generated}
    return sorted(own.union(*(record.fields.external_ids for record in records)))


def shown_phone(phone: str | None, *, clear: bool) -> str | None:
    """A phone as whoever asks may see it: all of it, or its last two digits."""
    return phone if phone is None or clear else f"***{phone[-2:]}"
