"""The SQL of the facts: what a round of a driver looks up of its messages' people and templates. As in store.py.

In one statement, and each part of it some steps through an index: as statements of their own, most of what they took
was being statements.
"""

from collections.abc import Iterable
from dataclasses import field
from datetime import datetime

from sendwhy.events import ContactUpdated
from sendwhy.postgres import Connection
from sendwhy.values import value_class

from dispatcher.decide import Sender, Template
from dispatcher.store import components_of
from dispatcher.windows import Window


@value_class
class Known:
    """`windows` and `caps` by address (a phone, else a user id); `contacts` by contact_id: its phone and its state,
    which is None where it is subscribed; `users`: their user ids, and `user_windows`: the windows of these, by
    contact_id; `stopped`: who has opted out, by phone and by user id; `templates` by name and language."""

    windows: dict[str, Window] = field(default_factory=dict)
    caps: dict[str, datetime] = field(default_factory=dict)
    contacts: dict[str, tuple[str | None, ContactUpdated | None]] = field(default_factory=dict)
    users: dict[str, str] = field(default_factory=dict)
    user_windows: dict[str, Window] = field(default_factory=dict)
    stopped: dict[str, ContactUpdated] = field(default_factory=dict)
    templates: dict[tuple[str, str], Template] = field(default_factory=dict)


_KNOWN = """
select 'window' as kind, phone as name, null as other, opened_at as at, free_entry_at, null::bytea as body,
       null::text[] as words, null::int as seconds
from conversation_window where sender_id = $1 and phone = any($4::text[])
union all
select 'cap', phone, null, until, null, null, null, null
from marketing_cap where workspace_id = $2 and phone = any($4::text[]) and until > clock_timestamp()
union all
select 'contact', c.contact_id, c.phone, w.opened_at, w.free_entry_at,
       case when c.marketing_state <> 'SUBSCRIBED' then c.body end, array[c.user_id], null
from contact c left join conversation_window w on w.sender_id = $1 and w.phone = c.user_id
where c.workspace_id = $2 and c.contact_id = any($5::text[])
union all
select 'stopped', contact_id, phone, null, null, body, null, null
from contact where workspace_id = $2 and phone = any($6::text[]) and marketing_state = 'UNSUBSCRIBED'
union all
select 'stopped', contact_id, user_id, null, null, body, null, null
from contact where workspace_id = $2 and user_id = any($6::text[]) and marketing_state = 'UNSUBSCRIBED'
union all
select 'template', name, language, said_at, null, components, array[status, category, said_by, rejected_reason],
       ttl_seconds
from template where waba_id = $3 and name = any($7::text[])
"""


async def known(
    connection: Connection,
    sender: Sender,
    *,
    addresses: Iterable[str],
    contact_ids: Iterable[str] = (),
    spelled: Iterable[str] = (),
    templates: Iterable[str] = (),
) -> Known:
    """`spelled`: these addresses in each of their spellings, as contacts have them; `templates`: their names."""
    found = Known()
    asked = (list(addresses), list(contact_ids), list(spelled), list(templates))
    rows = await connection.fetch(_KNOWN, sender.sender_id, sender.workspace_id, sender.waba_id, *asked)
    for kind, name, other, at, free_entry_at, body, words, seconds in rows:
        if kind == "contact":
            found.contacts[name] = (other, None if body is None else ContactUpdated.model_validate_json(body))
            if words[0] is not None:
                found.users[name] = words[0]
            if at is not None:
                found.user_windows[name] = Window(at, free_entry_at)
        elif kind == "window":
            found.windows[name] = Window(at, free_entry_at)
        elif kind == "cap":
            found.caps[name] = at
        elif kind == "stopped":
            found.stopped[other] = ContactUpdated.model_validate_json(body)
        else:
            status, category, said_by, why = words
            template = Template(name, other, status, category, components_of(body), why, said_by, at, seconds)
            found.templates[name, other] = template
    return found
