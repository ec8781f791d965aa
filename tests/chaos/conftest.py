import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

# pytest's importlib mode puts no folder on the path.
sys.path.insert(0, str(Path(__file__).parent))

from rig import Rig, rig


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chaos() -> AsyncIterator[Rig]:
    async with rig() as one:
        yield one
