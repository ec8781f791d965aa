"""What opens a person's 24 h window at a number. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from sendwhy.events import EARLIEST, Inbound, MessageReceived, Resolved
from sendwhy.privacy import spellings


@dataclass(frozen=True, slots=True)
class Window:
    """When a person last opened the 24 h window of a number, and last came by a free entry point (an ad, a button)."""

    opened_at: datetime
    free_entry_at: datetime | None = None


def opened_at(event: MessageReceived) -> datetime | None:
    """When this opened or renewed the window; None where it doesn't.

    Meta ("Send messages"): a message or a call from the user. Whether a reaction does is on no page; it is a message
    of the person's in all else, so it does: if Meta disagrees, it says 131047, which is the same reason, and charges
    nothing, while a wrong refusal of ours would lose an answer that could have been sent. A call counts from its
    start, told at its end as well.
    """
    if not event.is_said_to_us:
        return None
    if event.kind is Inbound.CALL:
        return min(event.occurred_at, _started(event.raw.get("start_time")) or event.occurred_at)
    return event.occurred_at


def _started(seconds: object) -> datetime | None:
    text = str(seconds)
    started = datetime.fromtimestamp(int(text), UTC) if text.isascii() and text.isdigit() and len(text) < 11 else None
    return started if started is not None and started >= EARLIEST else None


def latest(*windows: Window) -> Window:
    """The window of a person who has these."""
    free = max((one.free_entry_at for one in windows if one.free_entry_at is not None), default=None)
    return Window(max(one.opened_at for one in windows), free)


def opened_by(events: Iterable[MessageReceived]) -> dict[tuple[str, str], Window]:
    """The windows that these open, by (sender_id, phone), in all spellings of a number: Meta names Mexicans by one
    that nobody else uses any more. And by the WhatsApp user id, where Meta tells it: whose that is may be told later,
    and who loses their number is answered at it."""
    found: dict[tuple[str, str], Window] = {}
    for event in events:
        at = opened_at(event)
        if at is None:
            continue
        opened = Window(at, at if _came_free(event) else None)
        for name in _names(event):
            key = (event.sender_id, name)
            found[key] = latest(opened, found.get(key, opened))
    return found


def _names(event: MessageReceived) -> list[str]:
    return [*(spelled(event.phone) if event.phone else ()), *((event.user_id,) if event.user_id else ())]


def spelled(phone: str) -> list[str]:
    """A number in each of its spellings, as windows and contacts have them."""
    return [f"+{digits}" for digits in spellings(phone)]


def spelled_of(resolved: Resolved) -> list[str]:
    """Where a message goes, likewise; a user id has one spelling."""
    address = resolved.address or ""
    return [address] if resolved.is_by_user_id else spelled(address)


def _came_free(event: MessageReceived) -> bool:
    """By an ad that leads to WhatsApp, or a page's button: Meta puts `referral` into the message."""
    return isinstance(event.raw.get("referral"), dict)
