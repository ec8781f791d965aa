"""What a state directory remembers between runs: ports, secrets, and who is using it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from local_stack.errors import StackError, WrongUseError

# Linux hands out ports from 32768 for outgoing connections; below, nothing takes ours while we restart.
PORTS = range(20_000, 32_000)
HANDOVER_SECONDS = 20.0

# The ports that state directories of this process have claimed (`_claim`), until it ends.
_claims: dict[int, Path] = {}


def port_is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Without this, connections in TIME_WAIT make our own port of a second ago look taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class StateDir:
    """A directory of one local stack: `ports.json`, `secrets.json` (mode 600), `logs/`, the data.

    It is made where it is missing. Raises WrongUseError if it can't be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        try:
            # Search only for others: as root, PostgreSQL runs as another user and must reach its data.
            self.path.mkdir(parents=True, exist_ok=True, mode=0o711)
            self.logs.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            why = "it is no directory" if isinstance(error, FileExistsError) else error.strerror
            raise WrongUseError(f"--state-dir {path} can't be used: {why}") from error
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise WrongUseError(f"--state-dir {path} can't be used: {os.strerror(errno.EACCES)}")

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def read_json(self, name: str) -> dict[str, Any]:
        try:
            value = json.loads((self.path / name).read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise StackError(f"{self.path / name} can't be read ({error}); restore it or remove it") from error
        if not isinstance(value, dict):
            raise StackError(f"{self.path / name} holds no JSON object; restore it or remove it")
        return value

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Replaces the file at once or not at all; only its owner may read it."""
        temporary = self.path / f".{name}.{os.getpid()}"
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(value, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path / name)

    def ports(self, *names: str) -> dict[str, int]:
        """The ports of these listeners: those of the last run where still free, else new ones.

        No other stack of this machine chooses a new one while this process lives, started or not. One that stands in
        the directory is used also if another process holds it: that may have chosen it for this one.
        """
        with self._one_writer():
            remembered = self.read_json("ports.json")
            taken = {port for name, port in remembered.items() if name not in names}
            chosen: dict[str, int] = {}
            for name in names:
                port = remembered.get(name)
                if not isinstance(port, int) or port in taken or not self._can_keep(port):
                    port = self._free_port(taken)
                chosen[name] = port
                taken.add(port)
            self.write_json("ports.json", remembered | chosen)
        return chosen

    def _free_port(self, taken: set[int]) -> int:
        """A port that is free and, from now on, claimed for this directory."""
        for _ in range(200):
            port = random.choice(PORTS)
            if port not in taken and port not in _claims and port_is_free(port) and _claim(port):
                _claims[port] = self.path
                return port
        raise StackError(f"found no free port between {PORTS.start} and {PORTS.stop} on 127.0.0.1")

    def _can_keep(self, port: int) -> bool:
        return port_is_free(port) and _claims.get(port, self.path) == self.path

    def secret(self, name: str, make: Callable[[], str] = lambda: secrets.token_urlsafe(24)) -> str:
        with self._one_writer():
            known = self.read_json("secrets.json")
            if not isinstance(known.get(name), str):
                known[name] = make()
                self.write_json("secrets.json", known)
        return str(known[name])

    @contextmanager
    def _one_writer(self) -> Iterator[None]:
        """Kafka and PostgreSQL start at once, each with threads: what one has read must not be written over."""
        with (self.path / "writing").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def lock(self) -> int:
        """Takes the directory for this process and returns the lock's file descriptor.

        The lock stays until every process that holds the descriptor has closed it: the janitor gets a copy, so
        a run after a kill -9 waits here until the janitor is through instead of meeting a half-dead Kafka.
        Raises WrongUseError if a live process holds it.
        """
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + HANDOVER_SECONDS
        while not _try_lock(descriptor):
            holder = os.pread(descriptor, 20, 0).decode().strip()
            if (holder.isdigit() and _is_alive(int(holder))) or time.monotonic() > deadline:
                os.close(descriptor)
                raise WrongUseError(
                    f"{self.path} is in use by process {holder or 'unknown'}; stop it or use another --state-dir"
                )
            time.sleep(0.05)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        return descriptor


def _claim(port: int) -> bool:
    """Holds the port for a server that isn't there yet; False if somebody else does. By its number in UDP, which no
    server of ours listens to: one holder on the whole machine, and none once the holding process has ended."""
    claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        claim.bind(("127.0.0.1", port))
    except OSError:
        claim.close()
        return False
    claim.detach()
    return True


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
