"""What a message cost, asked of billing with the rights of the person who asks; and what can't be told is told as
missing, so that a page or a file for support never waits for billing or looks complete without it."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

from sendwhy.problems import Problem

from message_log.language import gettext as _
from message_log.language import told
from message_log.services import Answer
from message_log.view import masked

CHARGE_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Charge:
    """billing's answer (`…/messages/{id}/charge`), or why there is none."""

    told: dict[str, Any] | None
    missing: str | None

    def as_json(self) -> dict[str, Any]:
        return self.told if self.told is not None else {"missing": self.missing}


async def charge_of(asked: Awaitable[Answer], *, sees_phones: bool) -> Charge:
    try:
        answer = await asyncio.wait_for(asked, CHARGE_SECONDS)
    except TimeoutError:
        return Charge(None, _("billing did not answer in time; reload this in a moment."))
    except Problem as problem:
        return Charge(None, told(str(problem.detail)))
    if answer.status == 404:
        return Charge(None, _("billing never saw this message: nothing was reserved and nothing charged."))
    if not answer.is_good or not isinstance(answer.body, dict):
        return Charge(None, _("billing answered %(status)s: %(refusal)s", status=answer.status, refusal=answer.refusal))
    return Charge(answer.body if sees_phones else masked(answer.body), None)
