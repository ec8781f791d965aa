"""What was known of contacts at an earlier moment: the consent that stood, and the phone's fields as they were."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from sendwhy.postgres import Connection

from consent import store
from consent.contacts import Contact, Key, Word
from consent.decide import Facts
from consent.fields import before_changes


@dataclass(frozen=True, slots=True)
class Past:
    """`olds`: by contact, those of the phone's fields (as the API names them) that have changed since, as they were."""

    moment: datetime
    words: Mapping[Key, Word]
    olds: Mapping[Key, Mapping[str, str | None]]

    def facts(self, now: Facts) -> Facts:
        """The facts as they were. Where the contact came later, or its phone has no history, that stays open."""
        contact = now.contact
        if now.veto is not None and now.veto.at > self.moment:
            now = replace(now, veto=None)
        word = self.words.get(contact.key) if contact else None
        if contact is None or contact.phone_setter is None or contact.created_at > self.moment:
            return replace(now, standing=word, is_past=True)
        fields = before_changes(contact.fields, self.olds.get(contact.key, {}))
        return replace(now, standing=word, contact=replace(contact, fields=fields))


async def past_of(connection: Connection, contacts: Iterable[Contact], moment: datetime) -> Past:
    keys = [contact.key for contact in contacts]
    words = await store.words_at(connection, keys, moment)
    return Past(moment, words, await store.phone_fields_at(connection, keys, moment))
