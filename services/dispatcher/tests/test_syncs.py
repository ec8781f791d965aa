"""When numbers and accounts are read from Meta: often enough, and never more than Meta allows."""

import random
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from dispatcher.syncs import (
    ACCOUNT_AHEAD,
    ACCOUNT_EVERY,
    AGAIN,
    AGAIN_MAX,
    NUMBER_EVERY,
    Read,
    again_after,
    is_account_due,
    is_number_due,
)
from dispatcher_cases import NOW
from hypothesis import given
from hypothesis import strategies as st

ALLOWED_AN_HOUR = 200
HOUR, MINUTE, SECOND = timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1)
FRESH = Read("100000000000001", NOW, NOW - SECOND, NOW)


def of(number: int, **changes: object) -> Read:
    return replace(FRESH, sender_id=f"1000000000{number:05}", **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("account_at", "wanted_at", "age", "is_due"),
    [
        (None, None, timedelta(), True),
        (NOW, None, timedelta(), False),
        (NOW, NOW, timedelta(), False),
        (NOW, NOW + SECOND, timedelta(), True),
        (NOW, NOW - SECOND, ACCOUNT_EVERY - ACCOUNT_AHEAD - SECOND, False),
        (NOW, NOW - SECOND, ACCOUNT_EVERY, True),
    ],
)
def test_when_an_account_is_read(
    account_at: datetime | None, wanted_at: datetime | None, age: timedelta, *, is_due: bool
) -> None:
    assert is_account_due(replace(FRESH, account_at=account_at, wanted_at=wanted_at), NOW + age) is is_due


@pytest.mark.parametrize(
    ("number_at", "numbers", "age", "is_due"),
    [
        (None, 1, timedelta(), True),
        (NOW, 1, timedelta(), False),
        (NOW, 1, NUMBER_EVERY / 2 - SECOND, False),
        (NOW, 1, NUMBER_EVERY, True),
        (NOW, 60, NUMBER_EVERY, True),
        (NOW, 1000, 8 * HOUR, False),
        (NOW, 1000, 17 * HOUR, True),
    ],
)
def test_when_a_number_is_read(number_at: datetime | None, numbers: int, age: timedelta, *, is_due: bool) -> None:
    assert is_number_due(replace(FRESH, number_at=number_at, numbers=numbers), NOW + age) is is_due


@given(st.integers(0, 10**9), st.integers(1, 5000), st.integers(0, 10**6), st.integers(0, 10**6))
def test_what_is_due_stays_due(second: int, numbers: int, age: int, later: int) -> None:
    at = NOW - second * SECOND
    read = replace(FRESH, account_at=at, number_at=at, numbers=numbers)
    for is_due in (is_account_due, is_number_due):
        assert not is_due(read, at + age * SECOND) or is_due(read, at + (age + later) * SECOND)


@pytest.mark.parametrize("numbers", [1, 60, 200, 1000])
def test_numbers_that_were_read_together_never_call_more_than_meta_allows(numbers: int) -> None:
    """Also where an account grows a little each hour, and whatever else reads a number in between."""
    chance = random.Random(numbers)
    read, count, now = [of(number, numbers=numbers) for number in range(numbers)], numbers, NOW
    by_minute = []
    for minute in range(40 * 60):
        now += MINUTE
        count += minute % 60 == 0
        due = {number for number, one in enumerate(read) if is_number_due(replace(one, numbers=count), now)}
        by_minute.append(len(due))
        known = due | {chance.randrange(numbers)}
        read = [replace(one, number_at=now) if number in known else one for number, one in enumerate(read)]
    hours = [sum(by_minute[start : start + 60]) for start in range(len(by_minute) - 60)]
    assert max(hours) <= ALLOWED_AN_HOUR * 0.8
    assert all(now - (one.number_at or NOW) <= max(NUMBER_EVERY, count * MINUTE) for one in read)


def test_one_of_many_numbers_comes_first_and_reads_the_account_for_all() -> None:
    account_at, reads, now = NOW, 0, NOW
    of_account = [of(number, numbers=1000) for number in range(1000)]
    first_of_hour = []
    while now < NOW + 3 * HOUR:
        now += 10 * SECOND
        due = [one for one in of_account if is_account_due(replace(one, account_at=account_at), now)]
        if due:
            first_of_hour.append(len(due))
            account_at, reads = now, reads + 1
    assert reads == 3
    assert max(first_of_hour) < 100


@given(st.integers(0, 10**6))
def test_who_fails_is_tried_again_later_each_time_up_to_a_bound(failures: int) -> None:
    assert AGAIN <= again_after(failures) <= again_after(failures + 1) <= AGAIN_MAX
