import sys
from collections.abc import AsyncIterator
from pathlib import Path

import consent
import pytest
from sendwhy.postgres import connect_pool

# pytest's importlib mode puts no folder on the path, and the desk is shared by several test files.
sys.path.insert(0, str(Path(__file__).parent))

from consent_desk import Desk

MIGRATIONS = Path(consent.__file__).parent / "migrations"


@pytest.fixture
def migrations() -> Path:
    return MIGRATIONS


@pytest.fixture
async def desk(migrated_database: str) -> AsyncIterator[Desk]:
    pool = await connect_pool(migrated_database, service="consent-test", size=4)
    yield Desk(pool)
    await pool.close()
