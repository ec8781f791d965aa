from hypothesis import given
from hypothesis import strategies as st
from meta_simulator.limits import PAIR_BURST, PAIR_SECONDS, PairRate, Throughput, UniqueRecipients


def test_a_burst_to_one_person_is_paid_back_with_silence() -> None:
    pairs = PairRate()
    assert all(pairs.take("n", "p", 0) for _ in range(20))
    assert not pairs.take("n", "p", 119)
    assert pairs.take("n", "p", 120)


def test_the_46th_message_of_a_burst_is_refused_and_others_are_not_touched() -> None:
    pairs = PairRate()
    assert [pairs.take("n", "p", 1) for _ in range(46)] == [True] * 45 + [False]
    assert pairs.take("n", "another", 1)
    assert pairs.take("another", "p", 1)


@given(st.lists(st.floats(0, 30), max_size=300))
def test_nobody_gets_more_than_the_burst_and_one_message_per_6_s(gaps: list[float]) -> None:
    pairs, now, taken = PairRate(), 0.0, 0
    for gap in gaps:
        now += gap
        taken += pairs.take("n", "p", now)
    assert taken <= PAIR_BURST + now / PAIR_SECONDS + 1


@given(st.lists(st.floats(0, 2), max_size=300), st.integers(1, 100))
def test_throughput_never_exceeds_its_rate_by_more_than_a_second(gaps: list[float], rate: int) -> None:
    throughput, now, taken = Throughput(rate), 0.0, 0
    for gap in gaps:
        now += gap
        taken += throughput.take(now)
    assert taken <= rate * (now + 1) + 1


def test_the_messaging_limit_counts_people_within_24_hours() -> None:
    reached = UniqueRecipients()
    assert [reached.take(who, 2, at) for who, at in (("a", 0), ("b", 1), ("a", 2), ("c", 3))] == [
        True,
        True,
        True,
        False,
    ]
    assert not reached.take("c", 2, 86_400)
    assert reached.take("c", 2, 86_401)
    assert not reached.take("b", 2, 86_401.5)


def test_a_person_counts_for_24_h_from_the_last_message() -> None:
    people = UniqueRecipients()
    assert people.take("1", 1, now=0.0)
    assert people.take("1", 1, now=80_000.0)
    assert not people.take("2", 1, now=86_400.0)
    assert people.take("2", 1, now=80_000.0 + 86_400.0)
