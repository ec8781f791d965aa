"""What Meta's webhooks change; whatever they hold, reading them never fails."""

from datetime import UTC, datetime
from typing import Any

import pytest
from dispatcher.reports import account_change, told_at
from sendwhy.events import EARLIEST, LATEST

STOPPING = "RESTRICTED_BIZ_INITIATED_MESSAGING"


@pytest.mark.parametrize("expiration", [1_795_000_000, -(10**18), 10**30, 0, None, "soon", True])
def test_a_restriction_holds_until_a_moment_that_events_can_hold(expiration: Any) -> None:
    restriction = {"restriction_type": STOPPING, "expiration": expiration}
    change = account_change("account_update", {"event": "ACCOUNT_RESTRICTION", "restriction_info": [restriction]})
    assert change.hold is not None
    assert change.hold_until is None or EARLIEST <= change.hold_until <= LATEST


@pytest.mark.parametrize("limit", ["TIER_2K", 250, "²", None, [], {"a": "³"}, -1, "9" * 40])
def test_any_limit_can_be_read(limit: Any) -> None:
    value = {"max_daily_conversations_per_business": limit}
    change = account_change("business_capability_update", value)
    assert change.number is not None


def test_a_report_of_the_same_second_as_a_reading_may_be_newer_and_of_an_earlier_one_is_not() -> None:
    """Meta dates reports in whole seconds: a template paused right after a reading would stay unknown for an hour."""
    read = datetime(2026, 11, 22, 10, 0, 5, 400_000, UTC)
    assert told_at(datetime(2026, 11, 22, 10, 0, 5, tzinfo=UTC)) > read
    assert told_at(datetime(2026, 11, 22, 10, 0, 4, tzinfo=UTC)) < read
    assert told_at(read) == read
