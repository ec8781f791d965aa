from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def state_dir() -> Iterator[Path]:
    # Not tmp_path: as root, PostgreSQL's user must reach it, and another pytest would shut it out again.
    folder = Path(tempfile.mkdtemp(prefix="sendwhy-test-"))
    yield folder
    shutil.rmtree(folder)
