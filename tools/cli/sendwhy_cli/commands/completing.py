"""What the shell offers after Tab. Nothing here asks a service: Tab must answer at once."""

from __future__ import annotations

from collections.abc import Callable

STATUSES = ("sending", "waiting", "sent", "delivered", "read", "failed")
ORIGINS = ("campaign", "automation", "inbox", "api", "test")
OUTCOMES = ("goes", "waits", "fails", "unknown", "broken", "repeated", "used")
LEDGER_KINDS = ("reserve", "capture", "release", "refund", "recapture", "waive", "top_up", "adjustment")

Complete = Callable[[str], list[str]]


def among(*words: str) -> Complete:
    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


def reasons(incomplete: str) -> list[tuple[str, str]]:
    from sendwhy.reasons import CATALOGUE

    return [(code, info.title) for code, info in CATALOGUE.items() if code.startswith(incomplete.upper())]
