import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

# pytest's importlib mode puts no folder on the path; docs/generate.py has modules beside it.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))

from composed import MODEL, ROOT, secret_file


@pytest.fixture(scope="module")
def made_databases(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The addresses of the databases that deploy/postgres/databases.sh has made, by service."""
    from local_stack.postgres import binary

    names = sorted(name.removeprefix("database_url_") for name in MODEL["secrets"] if name.startswith("database_url_"))
    place = urlsplit(postgres_url)
    script = tmp_path_factory.mktemp("made") / "databases.sh"
    original = (ROOT / "deploy" / "postgres" / "databases.sh").read_text()
    script.write_text(original.replace("/run/secrets/", f"{ROOT / 'deploy' / 'dev-secrets'}/"))
    environment = {
        "PATH": f"{binary('psql').parent}:{os.environ['PATH']}",
        "PGHOST": place.hostname or "",
        "PGPORT": str(place.port),
        "PGPASSWORD": place.password or "",
    }
    asyncio.run(drop(postgres_url, names))
    done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    yield {
        name: urlsplit(secret_file(f"database_url_{name}").read_text().strip())
        ._replace(netloc=f"{name}:development-only-{name}@{place.hostname}:{place.port}")
        .geturl()
        for name in names
    }
    asyncio.run(drop(postgres_url, names))


async def drop(superuser: str, names: list[str]) -> None:
    connection = await asyncpg.connect(superuser)
    for name in names:
        await connection.execute(f"drop database if exists {name} with (force)")
        await connection.execute(f"drop role if exists {name}, {name}_api")
    await connection.close()
