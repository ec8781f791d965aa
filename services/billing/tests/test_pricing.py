"""Meta's pricing beside our charge."""

from typing import Any

import pytest
from billing.pricing import DELIVERED, SENT, Difference, MetaPricing, differences, meta_pricing

CATEGORY, FREE, BILLED = Difference.CATEGORY, Difference.CHARGED_BUT_FREE, Difference.BILLED_BUT_NOT_CHARGED
REGULAR: dict[str, Any] = {"billable": True, "pricing_model": "PMP", "type": "regular", "category": "marketing"}


def test_pricing_is_kept_in_metas_own_words() -> None:
    assert meta_pricing(REGULAR, SENT) == MetaPricing("marketing", "regular", "PMP", billable=True, receipt=SENT)


@pytest.mark.parametrize("told", [None, {}])
def test_no_pricing_is_none(told: Any) -> None:
    assert meta_pricing(told, SENT) is None


@pytest.mark.parametrize("value", [None, 1, True, [], {}, "a\x00b", "a\nb", "\ud800", "ü"])
def test_what_is_no_word_counts_as_not_told(value: Any) -> None:
    told = {"billable": "yes", "pricing_model": value, "type": value, "category": value}
    assert meta_pricing(told, DELIVERED) == MetaPricing(None, None, None, billable=None, receipt=DELIVERED)


def test_a_long_word_is_cut() -> None:
    kept = meta_pricing({"category": "x" * 10_000}, SENT)
    assert kept is not None
    assert kept.category == "x" * 64


@pytest.mark.parametrize(
    ("told", "is_free"),
    [
        (REGULAR, False),
        ({"type": "regular"}, False),
        ({"type": "free_entry_point"}, True),
        ({"type": "free_customer_service", "billable": True}, True),
        ({"billable": False}, True),
        ({"billable": False, "type": "regular"}, False),
        ({"billable": False, "type": "a new one"}, True),
        ({"billable": True}, False),
        ({"category": "utility"}, None),
        ({"type": "something_new"}, None),
    ],
)
def test_what_is_free(told: Any, is_free: bool | None) -> None:
    kept = meta_pricing(told, SENT)
    assert kept is not None
    assert kept.is_free is is_free


@pytest.mark.parametrize(
    ("told", "receipt", "category", "credits", "is_charged", "found"),
    [
        (REGULAR, SENT, "marketing", 3, True, set()),
        (REGULAR, DELIVERED, "marketing", 3, True, set()),
        (REGULAR, SENT, "utility", 3, True, {CATEGORY}),
        (REGULAR | {"category": "marketing_lite"}, SENT, "marketing", 3, True, set()),
        (REGULAR | {"category": "MARKETING"}, SENT, "marketing", 3, True, set()),
        (REGULAR | {"category": "authentication-international"}, SENT, "authentication", 3, True, set()),
        (REGULAR | {"category": "authentication_international"}, SENT, "authentication", 3, True, set()),
        (REGULAR | {"category": "general_purpose_ai"}, SENT, "service", 3, True, {CATEGORY}),
        (REGULAR | {"type": "free_entry_point"}, SENT, "marketing", 3, True, {FREE}),
        (REGULAR | {"type": "free_entry_point"}, SENT, "marketing", 3, False, set()),
        (REGULAR | {"type": "free_entry_point"}, SENT, "marketing", 0, True, set()),
        ({"billable": False, "category": "referral_conversion"}, SENT, "marketing", 3, True, {FREE}),
        ({"billable": False, "category": "utility"}, DELIVERED, "marketing", 3, True, {FREE, CATEGORY}),
        # `sent` tells the terms of a message that may still fail, and then costs nothing at Meta either.
        (REGULAR, SENT, "marketing", 3, False, set()),
        (REGULAR, DELIVERED, "marketing", 3, False, {BILLED}),
        (REGULAR, DELIVERED, "marketing", 0, False, set()),
        ({"category": "marketing"}, DELIVERED, "marketing", 3, False, set()),
        (None, DELIVERED, "marketing", 3, False, set()),
    ],
)
def test_where_the_two_differ(
    told: Any, receipt: int, category: str, credits: int, is_charged: bool, found: set[Difference]
) -> None:
    meta = meta_pricing(told, receipt)
    assert differences(meta, category=category, credits=credits, is_charged=is_charged) == found
