"""When a number, and the templates of its account, are to be read from Meta. Pure.

Meta allows 200 such calls an hour for an app and account (meta-cloud-api.md, 5, "Management calls"), which all numbers
of an account share. So one of them reads the templates for all, and the more there are, the less often each is read
itself: what its webhooks tell of it stands meanwhile.
"""

import zlib
from datetime import datetime, timedelta

from sendwhy.values import value_class

ACCOUNT_EVERY = timedelta(hours=1)
# So much earlier at most, each number at a moment of its own: whoever comes first has read for the others.
ACCOUNT_AHEAD = timedelta(minutes=5)
NUMBER_EVERY = timedelta(hours=1)
# At most so long apart, and at least half of it, so that numbers that were read together are not so again: 80 an hour
# in the mean, and 120 after all were read at once. What is left of the 200 is for templates and for people who ask.
APART_FOR_EACH = timedelta(minutes=1)
AGAIN = timedelta(seconds=5)
AGAIN_MAX = timedelta(minutes=5)


@value_class
class Read:
    """What was last read: the account's templates, by whichever of its numbers, and this number (None: never, or it is
    wanted anew). `wanted_at`: when somebody last asked for the templates; `numbers`: how many share the account."""

    sender_id: str
    account_at: datetime | None
    wanted_at: datetime | None
    number_at: datetime | None
    numbers: int = 1


def is_account_due(read: Read, now: datetime) -> bool:
    at = read.account_at
    if at is None or (read.wanted_at is not None and read.wanted_at > at):
        return True
    age = now - at
    return age >= ACCOUNT_EVERY - ACCOUNT_AHEAD and age >= ACCOUNT_EVERY - _part(read, at) * ACCOUNT_AHEAD


def is_number_due(read: Read, now: datetime) -> bool:
    at = read.number_at
    if at is None:
        return True
    age, longest = now - at, max(NUMBER_EVERY, read.numbers * APART_FOR_EACH)
    return age >= longest / 2 and age >= longest * (1 - _part(read, at) / 2)


def is_due(read: Read, now: datetime) -> bool:
    return is_account_due(read, now) or is_number_due(read, now)


def again_after(failures: int) -> timedelta:
    """Until the next try; Meta counts those that fail too."""
    return min(AGAIN_MAX, AGAIN * (1 << min(failures, 10)))


def _part(read: Read, at: datetime) -> float:
    """From 0 to 1, another for each number and each time."""
    return zlib.crc32(f"{read.sender_id}/{at.timestamp()}".encode()) / 2**32
