"""Paces hold in every stretch of time, whatever the moments at which somebody asks."""

from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from dispatcher.limits import (
    OUTAGE_MAX,
    PAIR_BURST,
    SILENT_MAX,
    Budget,
    Circuit,
    Pace,
    PairPace,
    Throttle,
    outage_pause,
    throttle_room,
    throttle_take,
    throttle_within,
)
from dispatcher.settings import Settings
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime(2026, 11, 22, tzinfo=UTC)


@given(
    st.sampled_from([1, 5, 20, 80, 1000]),
    st.lists(st.floats(min_value=0, max_value=0.5), min_size=1, max_size=300),
)
def test_never_more_than_the_limit_in_any_one_second(per_second: int, gaps: list[float]) -> None:
    pace = Pace.start(per_second, 0.0)
    now = 0.0
    sent: list[float] = []
    for gap in gaps:
        now += gap
        count = pace.available(now)
        pace.take(count, now)
        sent += [now] * count
    for start in sent:
        assert sum(start <= moment < start + 1 for moment in sent) <= per_second


def test_a_driver_that_wakes_adds_no_burst() -> None:
    pace = Pace.start(1000, 0.0)
    assert pace.available(0.0) == 0
    assert pace.available(3600.0) <= 20


@given(st.sampled_from([1, 10, 80, 1000]))
def test_waiting_as_told_is_enough(per_second: int) -> None:
    pace = Pace.start(per_second, 10.0)
    pace.take(pace.available(10.0), 10.0)
    assert pace.available(10.0 + pace.wait_seconds(10.0)) >= 1


def test_a_rest_is_kept_and_adds_no_burst() -> None:
    pace = Pace.start(80, 0.0)
    pace.rest(1.0, 10.0)
    assert pace.available(10.9) == 0
    assert pace.available(11.0) == 1


def test_twenty_at_once_are_two_minutes_of_silence() -> None:
    pairs = PairPace()
    for _ in range(20):
        assert pairs.wait_seconds("ines", 0.0) == 0
        pairs.take("ines", 0.0)
    assert pairs.wait_seconds("ines", 6.0) == 114
    assert pairs.wait_seconds("ines", 120.0) == 0
    assert pairs.wait_seconds("paul", 6.0) == 0


def test_a_burst_ends_at_forty_five() -> None:
    pairs = PairPace()
    for _ in range(PAIR_BURST):
        pairs.take("ines", 0.0)
    assert pairs.wait_seconds("ines", 1.0) > 0


def test_what_was_not_taken_is_given_back() -> None:
    pairs = PairPace()
    for second in (0.0, 1.0, 3.0, 7.0):
        assert pairs.wait_seconds("ines", second) == 0
        pairs.take("ines", second)
        pairs.give_back("ines")
    pairs.give_back("nobody")


@given(
    st.sampled_from([1, 2, 59, 60, 61, 119, 600, 60_000]),
    st.lists(st.tuples(st.integers(0, 30_000_000), st.integers(0, 2_000)), min_size=1, max_size=60),
)
def test_never_more_than_per_minute_in_any_sixty_seconds(per_minute: int, asks: list[tuple[int, int]]) -> None:
    """At any moments, by drivers that take as much as they may or less."""
    throttle, now = Throttle(per_minute, None), NOW
    sent: list[tuple[datetime, int]] = []
    for gap, wanted in asks:
        now += timedelta(microseconds=gap)
        count = min(wanted, throttle_room(throttle, now))
        for _ in range(count):
            throttle = throttle_take(throttle, now)
        sent.append((now, count))
    for start, _ in sent:
        assert sum(n for at, n in sent if start <= at < start + timedelta(minutes=1)) <= per_minute


@pytest.mark.parametrize("per_minute", [1, 7, 60, 61, 600, 1000, 60_000])
def test_a_campaign_goes_at_its_pace(per_minute: int) -> None:
    """Asked every twentieth of a second, it makes at least 97 % of what it may."""
    throttle, sent = Throttle(per_minute, None), 0
    for twentieth in range(1_200):
        now = NOW + timedelta(milliseconds=50 * twentieth)
        for _ in range(throttle_room(throttle, now)):
            throttle, sent = throttle_take(throttle, now), sent + 1
    assert 0.97 * per_minute <= sent <= per_minute


def test_a_day_that_is_used_up_leaves_no_room() -> None:
    throttle = Throttle(600, 3, day_used=1)
    assert throttle_room(throttle, NOW) == 2
    assert throttle_room(throttle_take(throttle_take(throttle, NOW), NOW), NOW) == 0


def test_who_goes_within_ten_seconds_is_known() -> None:
    assert throttle_within(Throttle(60, None), 10, NOW) == 11
    assert throttle_within(Throttle(60, 5), 10, NOW) == 5
    assert throttle_within(Throttle(60, None, NOW + timedelta(seconds=8)), 10, NOW) == 3
    assert throttle_within(Throttle(1, None, NOW + timedelta(seconds=30)), 10, NOW) == 0


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.05, 0.3, 1.0, 5.9, 6.0, 7.0, 40.0, 300.0]), st.booleans()), max_size=200
    ),
    st.sampled_from([0.0, 0.2]),
    st.randoms(use_true_random=False),
)
def test_meta_never_sees_a_person_too_often(gaps: list[tuple[float, bool]], slack: float, dice: Random) -> None:
    """Meta's rule: a burst of up to 45 within 6 s, then 6 s of silence for each of it, whenever calls start within the
    slack, and whether we ask every second or only at the moment that we were told."""
    pairs = PairPace(slack)
    now, starts = 0.0, [-1e9]
    for gap, waits in gaps:
        now += gap
        if waits:
            now += pairs.wait_seconds("ines", now)
        if pairs.wait_seconds("ines", now) <= 0:
            pairs.take("ines", now)
            starts.append(max(starts[-1], now + dice.uniform(0, slack)))
    burst_at, count = -1e9, 0
    for at in starts[1:]:
        if at < burst_at + 6:
            count += 1
        else:
            assert at >= burst_at + 6 * count - 1e-6
            burst_at, count = at, 1
        assert count <= PAIR_BURST


@given(st.integers(1, 2000), st.lists(st.integers(1, 2000), min_size=1, max_size=60))
def test_no_sender_takes_the_calls_of_the_others(most: int, wants: list[int]) -> None:
    """However much each sender wants and never gives back, the last to come still gets its share."""
    budget = Budget(most)
    for sender in map(str, range(len(wants) + 1)):
        budget.join(sender)
    for _ in range(3):
        for number, want in enumerate(wants):
            budget.take(str(number), min(want, budget.room(str(number))))
    assert budget.used <= most
    share = most // 2 // (len(wants) + 1)
    assert budget.room(str(len(wants))) >= share


def test_a_sender_alone_can_have_all_and_gives_it_back() -> None:
    budget = Budget(Settings.model_fields["calls_in_flight_max"].default)
    budget.join("a")
    # Meta's fastest number, at 300 ms, twice over.
    assert budget.room("a") >= 1000 * 0.3 * 2
    budget.take("a", budget.room("a"))
    assert budget.room("a") == 0
    budget.leave("a")
    budget.join("b")
    assert budget.room("b") == 0
    budget.give_back("a", budget.used)
    assert budget.room("b") == budget.most


@given(st.lists(st.booleans(), max_size=60))
def test_a_circuit_opens_after_so_many_silent_tries_in_a_row_and_closes_at_any_answer(answers: list[bool]) -> None:
    circuit = Circuit()
    for count, answered in enumerate(answers, start=1):
        circuit.note(answered=answered)
        assert circuit.is_open == (count >= SILENT_MAX and not any(answers[count - SILENT_MAX : count]))


def test_who_comes_out_of_an_outage_is_held_again_at_the_first_silent_try() -> None:
    circuit = Circuit()
    for _ in range(SILENT_MAX):
        circuit.note(answered=False)
    assert circuit.is_open
    circuit.close()
    circuit.note(answered=False)
    assert circuit.is_open
    successor = Circuit()
    successor.suspect()
    successor.note(answered=True)
    successor.note(answered=False)
    states = [successor.is_open]
    successor.suspect()
    successor.note(answered=False)
    assert [*states, successor.is_open] == [False, True]


def test_an_outage_of_ten_minutes_costs_some_fifteen_tries() -> None:
    now, tries = timedelta(), 0
    while now < timedelta(minutes=10):
        now += outage_pause(tries)
        tries += 1
    assert tries < 16
    assert outage_pause(100) == OUTAGE_MAX
