"""A lease ends before anybody else can have the lock, whatever happened to the process in between."""

from dispatcher.lease import FROZEN_AFTER_SECONDS, SILENCE_ENDS_SESSIONS, SILENCE_ENDS_TRANSACTIONS, Lease
from dispatcher.starts import CALL_STARTS_WITHIN_SECONDS
from hypothesis import given
from hypothesis import strategies as st

MOMENTS = st.floats(min_value=0, max_value=100)


@given(st.lists(st.tuples(MOMENTS, MOMENTS), min_size=1), MOMENTS)
def test_nobody_can_have_the_lock_while_the_lease_lasts(asked: list[tuple[float, float]], later: float) -> None:
    lease = Lease()
    now = 0.0
    answered_at = 0.0
    for pause, answer_takes in asked:
        now += pause
        lease.renew(now)
        # The server counts the silence from its answer, which is later than the question.
        answered_at = now + answer_takes
        now = answered_at
    lost_at = answered_at + FROZEN_AFTER_SECONDS
    assert not lease.holds(max(now, lost_at) + later)


def test_a_lease_begins_with_the_first_answer_and_can_be_ended() -> None:
    lease = Lease()
    assert not lease.holds(0)
    lease.renew(10)
    assert lease.holds(10 + FROZEN_AFTER_SECONDS - 0.001)
    lease.renew(9)
    assert lease.holds(10 + FROZEN_AFTER_SECONDS - 0.001)
    lease.end()
    assert not lease.holds(10)


def test_the_server_is_told_of_the_same_silence() -> None:
    told = {float(value.removesuffix("s")) for value in SILENCE_ENDS_SESSIONS.values()}
    assert told == {FROZEN_AFTER_SECONDS}
    assert set(SILENCE_ENDS_TRANSACTIONS) < set(SILENCE_ENDS_SESSIONS)
    assert CALL_STARTS_WITHIN_SECONDS <= FROZEN_AFTER_SECONDS
