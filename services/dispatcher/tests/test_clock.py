"""A machine's clock that jumps moves nothing that the dispatcher decides on."""

from datetime import UTC, datetime, timedelta

import pytest
from dispatcher.clock import APART_AT_MOST, SteadyClock

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Machine:
    wall, seconds = NOON, 500.0

    def clock(self) -> SteadyClock:
        return SteadyClock(lambda: self.wall, lambda: self.seconds)


@pytest.mark.parametrize("jump", [2 * HOUR, -2 * HOUR, 720 * HOUR])
def test_a_jump_of_the_machines_clock_moves_nothing(jump: timedelta) -> None:
    machine = Machine()
    now = machine.clock()
    machine.wall, machine.seconds = NOON + jump, 507.5
    assert now() == NOON + timedelta(seconds=7.5)


@pytest.mark.parametrize("apart", [2 * HOUR, -2 * HOUR, timedelta(seconds=3)])
def test_a_clock_that_was_wrong_from_the_start_follows_the_databases(apart: timedelta) -> None:
    machine = Machine()
    now = machine.clock()
    machine.seconds += 10
    now.heard(NOON + apart)
    machine.seconds += 1
    assert now() == NOON + apart + timedelta(seconds=1)


def test_what_a_question_takes_moves_nothing() -> None:
    machine = Machine()
    now = machine.clock()
    now.heard(NOON - APART_AT_MOST)
    assert now() == NOON
