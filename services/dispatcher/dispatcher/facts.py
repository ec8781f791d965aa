"""What is known at this moment about waiting messages, in one query a table: for the driver and for evaluate alike."""

from collections.abc import Mapping, Sequence

from sendwhy.events import ContactUpdated
from sendwhy.postgres import Connection
from sendwhy.privacy import spellings
from sendwhy.topics import TOPICS, Topic

from dispatcher import people_store, store, sync_store
from dispatcher.decide import Facts, Message, Sender, Template, names_of, withdraws
from dispatcher.store import Key


async def load(
    connection: Connection, sender: Sender, messages: Sequence[Message], quality_policy: str
) -> dict[Key, Facts]:
    """The facts of messages of one sender, but for its limits, which are counted message by message."""
    names = {message.template.name for message in messages if message.template}
    templates = await store.templates_named(connection, sender.waba_id, names) if names else {}
    found = {message.key: _template_of(message, templates) for message in messages}
    missing = any(message.template and found[message.key] is None for message in messages)
    known_templates = await store.template_names(connection, sender.waba_id) if missing else []
    incomplete = await sync_store.incomplete(connection, sender.waba_id) if missing else None
    phones = {message.phone for message in messages}
    windows = await people_store.windows(connection, sender.sender_id, phones)
    free_form = any(message.template is None for message in messages)
    read_until = None
    if free_form:
        read_until = await people_store.inbound_read_until(connection, TOPICS[Topic.MESSAGE_RECEIVED].partitions)
    capped = await people_store.capped(connection, sender.workspace_id, phones)
    people = await contacts(connection, sender.workspace_id, messages)
    return {
        message.key: Facts(
            sender=sender,
            template=found[message.key],
            known_templates=known_templates,
            listing_incomplete=incomplete,
            window_opened_at=window.opened_at if (window := windows.get(message.phone)) else None,
            free_entry_at=window.free_entry_at if window else None,
            inbound_read_until=read_until,
            contact=people.get(message.key),
            capped_until=capped.get(message.phone),
            quality_policy=quality_policy,
        )
        for message in messages
    }


async def contacts(connection: Connection, workspace_id: str, messages: Sequence[Message]) -> dict[Key, ContactUpdated]:
    """By message, the state that its gate asks: the one that takes it out of the person it goes to, the contact it
    names, and who has opted out at its number, where that is not the person's own."""
    asked = {(message.funded.workspace_id, name) for message in messages for name in names_of(message)}
    known = await people_store.contacts(connection, asked) if asked else {}
    phones = {message.key: [f"+{digits}" for digits in spellings(message.phone)] for message in messages}
    stopped = await people_store.stopped_at(connection, workspace_id, {one for each in phones.values() for one in each})
    found: dict[Key, ContactUpdated] = {}
    for message in messages:
        named = [known.get((message.funded.workspace_id, name)) for name in names_of(message)]
        own = [one for one in named if one is not None]
        # Whose number it is shares their words with all records of it: their own state is the newest.
        has_it = any(one.phone in phones[message.key] for one in own)
        there = [] if has_it else [stopped[phone] for phone in phones[message.key] if phone in stopped]
        asks = [one for one in (*own, *there) if withdraws(one, message)] or own
        if asks:
            found[message.key] = asks[0]
    return found


def _template_of(message: Message, templates: Mapping[tuple[str, str], store.TemplateRow]) -> Template | None:
    wanted = message.template
    row = templates.get((wanted.name, wanted.language.code)) if wanted else None
    return row.template if row else None
