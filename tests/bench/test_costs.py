"""A message costs no more of our own code than the committed baseline has it (counted, not timed: see costs.py)."""

import asyncio
import json
import sys
from pathlib import Path

import pytest

COSTS = Path(__file__).parent / "costs.py"


@pytest.mark.postgres
async def test_a_message_costs_no_more_than_it_did(postgres_url: str) -> None:
    """In a process of its own: whoever traces or measures coverage here would count as our code."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(COSTS),
        "--json",
        "--postgres",
        postgres_url,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    told = json.loads(out)
    if told["dearer"] is None:
        pytest.skip(f"no baseline for this Python: {sys.executable} {COSTS} --renew makes it")
    assert not told["dearer"], f"if this is worth it: {sys.executable} {COSTS} --renew, and say why in the commit"
