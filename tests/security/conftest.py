import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

# pytest's importlib mode puts no folder on the path; docs/generate.py has modules beside it.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))

from houses import House, open_house
from sendwhy.reasons import Service


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=list(Service))
async def house(request: pytest.FixtureRequest, postgres_url: str) -> AsyncIterator[House]:
    """Each of the services in turn, for tests that leave nothing behind that others stumble over."""
    async with open_house(postgres_url, request.param) as opened:
        yield opened
