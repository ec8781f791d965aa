"""Meta's `pricing` beside our own charge: what it says, and where the two differ. Values in, values out.

Facts: Meta sends no amount, only category, type and billable; `pricing` comes with `sent` and with one of delivered or
read, never with failed; only delivered messages cost. `billable` will go: type counts where it is told.
"""

from collections.abc import Mapping
from enum import StrEnum

from pydantic import JsonValue
from sendwhy.values import value_class

NO_RECEIPT, SENT, DELIVERED = 0, 1, 2
WORD_MAX = 64
# Meta's finer categories, and what they are in a price list.
_CATEGORIES = {
    "authentication_international": "authentication",
    "marketing_lite": "marketing",
    "group_marketing": "marketing",
    "group_utility": "utility",
    "group_service": "service",
}
# Says that a message was free, not of which category its template is.
_NO_CATEGORY = frozenset({"referral_conversion"})


@value_class
class MetaPricing:
    """What Meta told, in its own words, and at which receipt. Unknown words are kept as they are."""

    category: str | None
    type: str | None
    model: str | None
    billable: bool | None
    receipt: int

    @property
    def is_free(self) -> bool | None:
        """None: Meta didn't say."""
        kind = (self.type or "").lower()
        if kind == "regular" or kind.startswith("free_"):
            return kind != "regular"
        return None if self.billable is None else not self.billable


def meta_pricing(told: Mapping[str, JsonValue] | None, receipt: int) -> MetaPricing | None:
    """Read a status' `pricing`; whatever is not as Meta documents it counts as not told."""
    if not told:
        return None
    billable = told.get("billable")
    return MetaPricing(
        _word(told.get("category")),
        _word(told.get("type")),
        _word(told.get("pricing_model")),
        billable if isinstance(billable, bool) else None,
        receipt,
    )


def _word(value: JsonValue) -> str | None:
    # What goes into the database must not be able to make it refuse a receipt.
    return value[:WORD_MAX] if isinstance(value, str) and value.isprintable() and value.isascii() else None


class Difference(StrEnum):
    """How Meta's view and ours differ."""

    CATEGORY = "category"
    CHARGED_BUT_FREE = "charged_but_free"
    BILLED_BUT_NOT_CHARGED = "billed_but_not_charged"


def differences(meta: MetaPricing | None, *, category: str, credits: int, is_charged: bool) -> frozenset[Difference]:
    """Where Meta's pricing differs from a charge of `credits` in `category` that stands or was given back.

    That Meta billed is only believed of a delivered message: `sent` tells the terms before anybody knows whether it
    arrives, and a message that failed costs nothing at Meta either.
    """
    if meta is None:
        return frozenset()
    found = set()
    named = _listed(meta.category)
    if named is not None and named not in _NO_CATEGORY and named != category:
        found.add(Difference.CATEGORY)
    if credits > 0 and is_charged and meta.is_free:
        found.add(Difference.CHARGED_BUT_FREE)
    if credits > 0 and not is_charged and meta.is_free is False and meta.receipt == DELIVERED:
        found.add(Difference.BILLED_BUT_NOT_CHARGED)
    return frozenset(found)


def _listed(category: str | None) -> str | None:
    if category is None:
        return None
    name = category.lower().replace("-", "_")
    return _CATEGORIES.get(name, name)
