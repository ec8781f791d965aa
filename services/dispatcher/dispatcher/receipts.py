"""Receipts of other services, three for each message: by them the dispatcher learns that Meta took what it left open.

Read by msgspec, in a third of the time; what is told beside a plain receipt is read by the event's own model.
"""

from collections.abc import Iterable

from sendwhy import plain

from dispatcher.store import Key

ACCEPTED_KEPT = 20_000


def receipt_of(body: bytes) -> plain.Receipt | None:
    """A `StatusUpdated` with no more than a receipt has; None where it has a reason or something of its request, or is
    nothing that can be read."""
    receipt = plain.receipt_of(body)
    if receipt is None or bytes(receipt.metadata) != b"null":
        return None
    is_bare = receipt.to is None and receipt.origin is None and receipt.receipt_deadline is None
    return receipt if is_bare else None


class Accepted:
    """The last messages that were found accepted: that is an end, so what more receipts tell of them is no news."""

    def __init__(self, most: int = ACCEPTED_KEPT) -> None:
        self._keys: dict[Key, None] = {}
        self._most = most

    def __contains__(self, key: Key) -> bool:
        return key in self._keys

    def add(self, keys: Iterable[Key]) -> None:
        self._keys.update(dict.fromkeys(keys))
        while len(self._keys) > self._most:
            del self._keys[next(iter(self._keys))]
