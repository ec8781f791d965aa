"""What is known at this moment about waiting messages, in few queries: for the driver and for evaluate alike."""

from collections.abc import Sequence

from sendwhy.events import ContactUpdated, TemplateContent
from sendwhy.postgres import Connection
from sendwhy.topics import TOPICS, Topic

from dispatcher import facts_store, people_store, store, sync_store
from dispatcher.decide import Facts, Message, Sender, Template, names_of, nearest_names, withdraws
from dispatcher.facts_store import Known
from dispatcher.store import Key
from dispatcher.windows import Window, latest, spelled_of


async def load(
    connection: Connection, sender: Sender, messages: Sequence[Message], quality_policy: str
) -> dict[Key, Facts]:
    """The facts of messages of one sender, but for its limits, which are counted message by message."""
    forms = {one.address: spelled_of(one.funded.resolved) for one in messages}
    # Until Meta has shown the account to this token, it may be another's, whose templates are not told of.
    is_shown = sender.templates_synced_at is not None
    wanted = {one.name for message in messages if (one := message.template) and is_shown}
    found = await facts_store.known(
        connection,
        sender,
        addresses=forms,
        contact_ids=dict.fromkeys(name for message in messages for name in names_of(message)),
        spelled=dict.fromkeys(form for each in forms.values() for form in each),
        templates=wanted,
    )
    templates = [_template_of(message, found) for message in messages]
    missing = {
        _template_id(message.template): message.template
        for message, template in zip(messages, templates, strict=True)
        if template is None and message.template is not None
    }
    names = await store.template_names(connection, sender.waba_id) if missing and is_shown else []
    # Once for all: a whole campaign may name one that isn't there.
    nearest = {asked: nearest_names(named, names) for asked, named in missing.items()}
    incomplete = await sync_store.incomplete(connection, sender.waba_id) if missing else None
    free_form = any(message.template is None for message in messages)
    read_until = None
    if free_form:
        read_until = await people_store.inbound_read_until(connection, TOPICS[Topic.MESSAGE_RECEIVED].partitions)
    known = {}
    for message, template in zip(messages, templates, strict=True):
        spelled = forms[message.address]
        contact, is_contact = _contact(message, found, spelled)
        window = window_of(message, found, spelled)
        known[message.key] = Facts(
            sender=sender,
            template=template,
            nearest=nearest.get(_template_id(message.template), ()) if message.template else (),
            listing_incomplete=incomplete,
            window_opened_at=window.opened_at if window else None,
            free_entry_at=window.free_entry_at if window else None,
            inbound_read_until=read_until,
            contact=contact,
            is_contact=is_contact,
            capped_until=found.caps.get(message.address),
            quality_policy=quality_policy,
        )
    return known


def window_of(message: Message, known: Known, forms: Sequence[str]) -> Window | None:
    """The person's, who may write under their number or under their user id: that of a contact to whose number the
    message goes. A contact without one has the number that the request names beside it. What goes to a user id goes
    within the window of that one."""
    own = [known.windows[message.address]] if message.address in known.windows else []
    if known.user_windows and message.funded.resolved.phone is not None:
        named = [name for name in names_of(message) if name in known.user_windows]
        own += [known.user_windows[name] for name in named if known.contacts[name][0] in (None, *forms)]
    return latest(*own) if own else None


def _contact(message: Message, known: Known, forms: Sequence[str]) -> tuple[ContactUpdated | None, bool]:
    """The state that takes the message out, if there is one: of the person it goes to, of the contact it names, or of
    who has opted out at its number, where that is not the person's own. And whether anybody has one."""
    names = [name for name in names_of(message) if name in known.contacts]
    own = [known.contacts[name] for name in names]
    states = [state for _, state in own if state is not None]
    if known.stopped and not {*(phone for phone, _ in own), *map(known.users.get, names)}.intersection(forms):
        # Whose number or user id it is shares their words with all records of it: their own state is the newest.
        states += [known.stopped[form] for form in forms if form in known.stopped]
    return next((state for state in states if withdraws(state, message)), None), bool(own)


def _template_of(message: Message, known: Known) -> Template | None:
    wanted = message.template
    return known.templates.get(_template_id(wanted)) if wanted else None


def _template_id(wanted: TemplateContent) -> tuple[str, str]:
    return wanted.name, wanted.language.code
