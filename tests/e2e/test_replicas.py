"""Two of every service share the work, and a rollout under load loses nothing, doubles nothing and resets nobody."""

import re
from pathlib import Path

import pytest
from rollout import SERVICES, Rollout


@pytest.mark.timeout(600)
async def test_a_rollout_under_load_is_seen_by_nobody(doubled_stack_file: Path) -> None:
    verdict = await Rollout(doubled_stack_file, rounds=1, per_second=20, say=print).run()
    print(dict(verdict.outcomes), f"webhooks: {dict(verdict.posts)}, requests: {dict(verdict.asked)}")
    assert verdict.violations == []
    # Some hundred, where the machine has the time.
    assert verdict.outcomes["read"] > 20
    ends = re.findall(r"(\S+) ended with code (-?\d+)", (doubled_stack_file.parents[1] / "up.log").read_text())
    # By the signal, in good order; once each.
    assert sorted(ends) == sorted((name, "-15") for one in SERVICES for name in (one, f"{one}-2"))
