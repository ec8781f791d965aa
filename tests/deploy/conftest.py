import os
import shutil
from pathlib import Path

import pytest


def _tool(name: str) -> Path:
    found = shutil.which(name)
    if found is not None:
        return Path(found)
    message = f"{name} is not installed: apt-get install prometheus"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def prometheus() -> Path:
    return _tool("prometheus")


@pytest.fixture(scope="session")
def promtool() -> Path:
    return _tool("promtool")
