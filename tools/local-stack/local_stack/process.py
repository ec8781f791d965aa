"""One child process: its own process group, its log, its end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from local_stack.errors import StackError
from local_stack.janitor import Janitor

LOG_BYTES_MAX = 20 * 2**20
OLD_LOGS = 2
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class ProcessEndedError(StackError):
    """A process ended that should go on."""


@dataclass(frozen=True)
class Command:
    """What to start. `user` is the user and group id to run as, which only root may name.

    `stop_signal` asks for an end in good order; `crash_signal` is sent after our own violent death.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] | None = None
    user: tuple[int, int] | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    crash_signal: signal.Signals = signal.SIGTERM


class Process:
    """Starts a command at once, its output appended to `logs/<name>.log`.

    Make it in a thread that lives as long as the process should: Linux sends the signal of PR_SET_PDEATHSIG when
    the starting thread ends, not the starting process.
    """

    def __init__(self, command: Command, logs: Path, janitor: Janitor) -> None:
        self.name = command.name
        self.log = logs / f"{command.name}.log"
        self._janitor = janitor
        self._stop_signal = command.stop_signal
        self._buried = False
        user, group = command.user or (None, None)
        rotate(self.log)
        with self.log.open("ab") as output:
            self._child = subprocess.Popen(
                command.argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=command.env,
                cwd="/",
                start_new_session=True,
                preexec_fn=_die_with_parent(command.crash_signal),
                user=user,
                group=group,
                extra_groups=None if user is None else [],
            )
        janitor.watch(self.pid, command.crash_signal)

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def exit_code(self) -> int | None:
        code = self._child.poll()
        if code is not None and not self._buried:
            self._bury()
        return code

    async def wait(self) -> int:
        while True:
            if (code := self.exit_code) is not None:
                return code
            await asyncio.sleep(0.05)

    async def stop(self, grace_seconds: float) -> None:
        """Asks it to stop, and kills it when the grace is over."""
        self.signal(self._stop_signal)
        try:
            await asyncio.wait_for(self.wait(), grace_seconds)
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await self.wait()

    def signal(self, number: signal.Signals) -> None:
        if self._child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def check_alive(self) -> None:
        """Raises ProcessEndedError with the end of the log if the process has ended."""
        if (code := self.exit_code) is not None:
            raise ProcessEndedError(f"{self.name} ended with code {code}; its log {self.log} ends:\n{tail(self.log)}")

    def bound_log(self) -> None:
        """Moves a log that has grown too long aside. The child appends, so it goes on at the new start."""
        if self.log.stat().st_size > LOG_BYTES_MAX:
            shutil.copyfile(self.log, self.log.with_suffix(".log.1"))
            os.truncate(self.log, 0)

    def _bury(self) -> None:
        # What the dead one started dies with it. Once only: the number may soon be somebody else's.
        self._buried = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._janitor.forget(self.pid)


def rotate(log: Path) -> None:
    for age in range(OLD_LOGS, 0, -1):
        older = log.with_suffix(f".log.{age}")
        newer = log if age == 1 else log.with_suffix(f".log.{age - 1}")
        with contextlib.suppress(FileNotFoundError):
            newer.rename(older)


def tail(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 8_192))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-15:])


def last_line(log: Path) -> str:
    """As a service says what is wrong with a setting, without the command's name that begins it."""
    return tail(log).rpartition("\n")[2].removeprefix("sendwhy: ")


def _die_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    if _libc is None:
        return None
    libc, parent = _libc, os.getpid()

    def ask_the_kernel() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(number))
        if os.getppid() != parent:  # it died before we could ask
            os._exit(1)

    return ask_the_kernel
