import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

# pytest's importlib mode puts no folder on the path, and the user is shared by several test files.
sys.path.insert(0, str(Path(__file__).parent))

from former import is_in_history
from outside import Outside, outside

collect_ignore = [] if is_in_history() else ["test_upgrade.py"]


@pytest.fixture
async def user(stack_file: Path) -> AsyncIterator[Outside]:
    async with outside(stack_file) as someone:
        yield someone
