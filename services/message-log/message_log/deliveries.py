"""What stands in a raw webhook delivery, read without trusting any of it: enough to link it to messages and senders.

webhook-ingest alone decides what a delivery means; this only finds what it is about.
"""

import re
from collections.abc import Iterator
from typing import Any

from sendwhy.lenient import identifier, json_of
from sendwhy.values import value_class

PARTS_MAX = 2000
TEXT_MAX = 512

_CALLBACK = re.compile(r"sw1:([A-Za-z0-9_\-]{1,64}):([A-Za-z0-9._:\-]{1,128})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@value_class
class Part:
    """One element of a delivery. `kind`: "status sent", "message text", or the webhook's field. `workspace_id` is the
    address's; the one beside `message_id`, which the element names itself, proves nothing: whoever has an app of its
    own may name another's."""

    kind: str
    workspace_id: str | None = None
    sender_id: str | None = None
    waba_id: str | None = None
    wamid: str | None = None
    message_id: str | None = None
    named_workspace_id: str | None = None


def parts_of(body: bytes, *, workspace_id: str | None = None) -> list[Part]:
    """The elements of a delivery, at most PARTS_MAX; `workspace_id` where the address already named it (shops).

    What can't be read is one part, "unreadable": the delivery is still listed.
    """
    try:
        payload = json_of(body)
    except ValueError:
        return [Part("unreadable", workspace_id)]
    if workspace_id is not None:
        return [Part("customer", workspace_id)]
    parts: list[Part] = []
    for part in _meta_parts(payload):
        if len(parts) == PARTS_MAX:
            break
        parts.append(part)
    return parts or [Part("unknown")]


def _meta_parts(payload: Any) -> Iterator[Part]:
    for entry in _dicts(payload, "entry"):
        waba_id = identifier(entry.get("id"))
        for change in _dicts(entry, "changes"):
            value = change.get("value")
            yield from _change_parts(
                _text(change, "field") or "unknown", value if isinstance(value, dict) else {}, waba_id
            )


def _change_parts(field: str, value: dict[str, Any], waba_id: str | None) -> Iterator[Part]:
    metadata = value.get("metadata")
    sender_id = identifier(metadata.get("phone_number_id")) if isinstance(metadata, dict) else None
    found = False
    for status in _dicts(value, "statuses"):
        found = True
        workspace, message = _callback(status)
        kind = f"status {_text(status, 'status') or 'unknown'}"
        yield Part(kind, None, sender_id, waba_id, _text(status, "id"), message, workspace)
    for message_in in _dicts(value, "messages"):
        found = True
        kind = f"message {_text(message_in, 'type') or 'unknown'}"
        yield Part(kind, None, sender_id, waba_id, _text(message_in, "id"), None)
    if not found:
        yield Part(field, None, sender_id, waba_id)


def _callback(status: dict[str, Any]) -> tuple[str | None, str | None]:
    found = _CALLBACK.fullmatch(_text(status, "biz_opaque_callback_data") or "")
    return (found[1], found[2]) if found else (None, None)


def _dicts(holder: Any, name: str) -> Iterator[dict[str, Any]]:
    """The objects of a list; one alone may stand without it, as webhook-ingest reads it too."""
    elements = holder.get(name) if isinstance(holder, dict) else None
    several = [elements] if isinstance(elements, dict) else elements
    return (each for each in several if isinstance(each, dict)) if isinstance(several, list) else iter(())


def _text(holder: dict[str, Any], name: str) -> str | None:
    value = holder.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= TEXT_MAX:
        return None
    # What can all be printed has no control characters, and says so in a tenth of the time.
    return value if value.isprintable() or not _CONTROL.search(value) else None
