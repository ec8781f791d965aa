from collections.abc import AsyncIterator

import pytest
from meta_simulator.testing import Meta, running_meta


@pytest.fixture
async def meta() -> AsyncIterator[Meta]:
    async with running_meta() as running:
        yield running
