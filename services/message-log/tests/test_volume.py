"""The bars above the list: as many as one can look at, none missing, and together all messages."""

from datetime import timedelta

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from message_log import store, volume
from message_log.decide import tells
from message_log.queries import Filters
from message_log_builders import T0, rejected, requested
from sendwhy.events import Wire
from sendwhy.reasons import ReasonCode


@given(st.timedeltas(timedelta(seconds=1), timedelta(days=1500)))
def test_any_span_has_few_bars(span: timedelta) -> None:
    assert span / volume.width_of(span) <= volume.BARS_MAX


@given(st.floats(-1e9, 1e9), st.sampled_from([15, 60, 3600, 86400, 604800]))
def test_every_moment_lies_in_its_bar(offset: float, seconds: int) -> None:
    width = timedelta(seconds=seconds)
    moment = T0 + timedelta(seconds=offset)
    begin = volume.floor(moment, width)
    assert begin <= moment < begin + width


async def tell(connection: asyncpg.Connection, minutes: float, event: Wire, name: str) -> None:
    state = tells(event, T0 + timedelta(minutes=minutes))
    assert state is not None
    await store.fold_messages(connection, {("acme", name): state})


@pytest.mark.postgres
async def test_bars_have_no_gaps_and_hold_every_message(connection: asyncpg.Connection) -> None:
    for number, minutes in enumerate((0, 1, 30, 31, 59)):
        await tell(connection, minutes, requested(message_id=f"m-{number}"), f"m-{number}")
    await tell(connection, 0, rejected(ReasonCode.CANCELLED, message_id="m-0"), "m-0")
    now = T0 + timedelta(hours=1)
    last_hour = Filters(since=T0, until=None)
    measured = await volume.measure(connection, "acme", last_hour, now)
    assert measured.width == timedelta(minutes=1)
    assert [bar.since for bar in measured.bars] == [T0 + timedelta(minutes=n) for n in range(60)]
    assert measured.by_status == {"sending": 4, "waiting": 0, "sent": 0, "delivered": 0, "read": 0, "failed": 1}
    assert [n for n, bar in enumerate(measured.bars) if bar.total] == [0, 1, 30, 31, 59]
    everything = await volume.measure(connection, "acme", Filters(), now)
    assert sum(bar.total for bar in everything.bars) == 5
    assert (await volume.measure(connection, "nobody", Filters(), now)).bars == ()
