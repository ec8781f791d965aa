"""How far a campaign is, when it ends, and its bars."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from message_log import words
from message_log.campaign_pages import throttle_in
from message_log.campaign_story import (
    BARS_MAX,
    CHART_HEIGHT,
    STACK,
    Bar,
    Progress,
    Rates,
    Throttle,
    bars_of,
    progress_of,
    rates_of,
    stacked,
    width_of,
)

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({}, Rates(None, None, None)),
        ({"sending": 5, "waiting": 5}, Rates(None, None, None)),
        ({"sent": 1, "delivered": 1, "read": 1, "failed": 1}, Rates(0.5, 0.5, 0.25)),
        ({"failed": 3}, Rates(0.0, None, 1.0)),
        ({"read": 2, "waiting": 98}, Rates(1.0, 1.0, 0.0)),
    ],
)
def test_rates_are_shares_of_what_has_ended(counts: dict[str, int], expected: Rates) -> None:
    assert rates_of(counts) == expected


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (progress_of(100, 100, 50, NOW - HOUR, NOW), Progress(100, 100)),
        (progress_of(10, 100, 0, NOW - HOUR, NOW), Progress(10, 100)),
        # 50 in five minutes: 10 a minute, 90 to go.
        (progress_of(10, 100, 50, NOW - HOUR, NOW), Progress(10, 100, 10.0, NOW + timedelta(minutes=9))),
        # Began a minute ago: the pace is that of this minute.
        (
            progress_of(10, 100, 10, NOW - timedelta(minutes=1), NOW),
            Progress(10, 100, 10.0, NOW + timedelta(minutes=9)),
        ),
        # A throttle set since then is what counts.
        (
            progress_of(10, 100, 50, NOW - HOUR, NOW, Throttle(per_minute=5)),
            Progress(10, 100, 5.0, NOW + timedelta(minutes=18)),
        ),
        # 5 of today's 20 are left, so 85 more need five more days.
        (
            progress_of(10, 100, 50, NOW - HOUR, NOW, Throttle(per_day=20, slots_today=15)),
            Progress(10, 100, 10.0, NOW + timedelta(days=5)),
        ),
    ],
)
def test_the_expected_end_follows_the_pace_and_the_throttle(progress: Progress, expected: Progress) -> None:
    assert progress == expected


def test_a_clock_that_is_behind_the_first_request_breaks_nothing() -> None:
    assert progress_of(1, 2, 1, NOW + HOUR, NOW).ends_at is not None


@given(st.timedeltas(min_value=timedelta(), max_value=timedelta(days=1000)))
def test_a_span_is_few_bars_of_a_width_that_people_count_in(span: timedelta) -> None:
    assert span / width_of(span) < BARS_MAX


def test_bars_have_no_gaps() -> None:
    bars = bars_of({NOW: {"read": 1}, NOW + 3 * HOUR: {"failed": 2}}, HOUR)
    assert [(bar.since, bar.total) for bar in bars] == [(NOW + n * HOUR, [1, 0, 0, 2][n]) for n in range(4)]
    assert bars_of({}, HOUR) == ()


@given(st.lists(st.dictionaries(st.sampled_from(STACK), st.integers(0, 10**6)), max_size=5))
def test_the_highest_bar_fills_the_chart_and_none_is_higher(counts: list[dict[str, int]]) -> None:
    rects = stacked([Bar(NOW, NOW + HOUR, each) for each in counts])
    assert all(rect.y + 0.05 >= 0 and rect.y + rect.height <= CHART_HEIGHT + 0.05 for rect in rects)
    if any(any(each.values()) for each in counts):
        assert min(rect.y for rect in rects) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize(
    ("form", "wanted", "refused"),
    [
        ({}, {"per_minute": None, "per_day": None}, False),
        ({"per_minute": "600", "per_day": "20,000"}, {"per_minute": 600, "per_day": 20000}, False),
        ({"per_minute": "0"}, {}, True),
        ({"per_minute": "60001"}, {}, True),
        ({"per_minute": "-5"}, {}, True),
        ({"per_day": "1e9"}, {}, True),
        ({"per_day": "٣"}, {}, True),
        ({"per_day": "9" * 400}, {}, True),
    ],
)
def test_a_throttle_is_whole_numbers_or_none(
    form: dict[str, str], wanted: dict[str, int | None], refused: bool
) -> None:
    found, problem = throttle_in(form)
    assert (found, problem is not None) == (wanted, refused)


@pytest.mark.parametrize(
    ("share", "text"),
    [(None, "–"), (0.0, "0%"), (1.0, "100%"), (0.941, "94.1%"), (0.99999, ">99.9%"), (0.00001, "<0.1%"), (0.1, "10%")],
)
def test_almost_all_is_not_called_all(share: float | None, text: str) -> None:
    assert words.percent(share) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(86_399, "23 h 59 min"), (3600, "1 h 0 min"), (3599, "59 min"), (59, "less than a minute")]
)
def test_a_window_is_never_called_longer_than_it_is(seconds: int, text: str) -> None:
    assert words.remaining(seconds) == text
