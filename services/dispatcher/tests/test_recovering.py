"""What the dispatcher takes from its own topics after a restored backup, and what it can't know."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from dispatcher import announce
from dispatcher.answers import Taken
from dispatcher.decide import Recall, erased_contact
from dispatcher.recovering import Fate, fates_told, may_be_handled
from dispatcher_cases import NOW, message
from sendwhy.events import reason
from sendwhy.reasons import ReasonCode
from sendwhy.recovery import Recovery
from sendwhy.stage import Record
from sendwhy.topics import Outgoing, Topic


class Told(Recovery):
    """Topics that hold these records."""

    def __init__(self, *records: Outgoing) -> None:
        object.__setattr__(self, "records", records)

    async def told(self, topic: Topic) -> AsyncIterator[Sequence[Record[None]]]:
        found: Any = object.__getattribute__(self, "records")
        yield [
            Record(None, one.topic, 0, offset, NOW, one.key, one.value, one.headers)
            for offset, one in enumerate(found)
            if one.topic is topic
        ]


async def test_that_meta_took_a_message_outdoes_all_else() -> None:
    one = message()
    _, unknown = announce.rejected(one, reason(ReasonCode.SEND_OUTCOME_UNKNOWN, "so"), NOW)
    _, accepted = announce.accepted(one, Taken("wamid.1"), at=NOW, now=NOW, category=None, deadline=NOW)
    assert await fates_told(Told(accepted, unknown)) == {one.key: Fate("accepted", "accepted", "wamid.1")}
    assert await fates_told(Told(unknown)) == {one.key: Fate("rejected", "SEND_OUTCOME_UNKNOWN")}


async def test_what_was_recalled_stays_so_and_what_cant_be_read_tells_nothing() -> None:
    one = message()
    _, recalled = announce.recalled(one, Recall(erased_contact("acme", "c-1", NOW)), NOW)
    broken = Outgoing(Topic.SEND_REJECTED, b"m", b"{", ())
    assert await fates_told(Told(recalled, broken)) == {one.key: Fate("recalled", "recalled")}


@pytest.mark.parametrize(
    ("committed", "end", "parked_before", "below"),
    [
        (100, 2000, None, 600),  # one batch beyond what was committed
        (100, 130, None, 130),
        (None, 2000, None, 500),  # it died in its first batch
        (600, 2000, 600, 600),  # a repeat
        (700, 2000, 600, 1200),  # a second backup, later
    ],
)
def test_what_may_have_been_called_without_a_word(
    committed: int | None, end: int, parked_before: int | None, below: int
) -> None:
    assert may_be_handled(committed, end, parked_before) == below
