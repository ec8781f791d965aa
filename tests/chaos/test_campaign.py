"""A small one of the campaigns that `tests/chaos/run.py` runs at any size."""

import random

import pytest
from campaign import Campaign
from rig import Rig

pytestmark = pytest.mark.asyncio(loop_scope="module")
MESSAGES = 700


@pytest.mark.timeout(400)
async def test_a_campaign_with_every_answer_at_random(chaos: Rig) -> None:
    verdict = await Campaign(chaos, MESSAGES, 12, random.SystemRandom().randrange(2**32), print).run()
    print(dict(verdict.table), f"{verdict.calls} calls")
    assert verdict.violations == []
    assert sum(verdict.table.values()) == MESSAGES
    assert verdict.table["accepted"] > MESSAGES / 2
