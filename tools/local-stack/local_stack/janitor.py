"""Sees to it that nothing outlives its starter, not even after a kill -9.

The janitor is a child in a session of its own that reads a pipe. Its starter tells it on the pipe which process
groups there are; when the pipe closes, however the starter ended, it stops them all. It runs this file alone, with
nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

GRACE_SECONDS = 4.0


class Janitor:
    """The starter's side. `lock` is a descriptor that the janitor keeps open until all is stopped."""

    def __init__(self, lock: int | None = None) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            start_new_session=True,
            pass_fds=[] if lock is None else [lock],
        )

    @property
    def pid(self) -> int:
        return self._child.pid

    def watch(self, group: int, stop_signal: signal.Signals) -> None:
        self._tell(f"+ {group} {int(stop_signal)}\n")

    def forget(self, group: int) -> None:
        self._tell(f"- {group}\n")

    def close(self) -> None:
        """Stops what is still watched, and ends."""
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.close()
        self._child.wait()

    def _tell(self, line: str) -> None:
        assert self._child.stdin is not None
        # A janitor that was killed is no reason to stop working; PR_SET_PDEATHSIG is the second net.
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(line.encode())
            self._child.stdin.flush()


def main() -> None:
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    groups: dict[int, int] = {}
    for line in sys.stdin:
        match line.split():
            case ["+", group, number]:
                groups[int(group)] = int(number)
            case ["-", group]:
                groups.pop(int(group), None)
    stop(groups)


def stop(groups: dict[int, int]) -> None:
    deadline = time.monotonic() + GRACE_SECONDS
    living = {group for group, number in groups.items() if _signal(group, number)}
    while living and time.monotonic() < deadline:
        time.sleep(0.05)
        living = {group for group in living if _signal(group, 0)}
    for group in living:
        _signal(group, signal.SIGKILL)


def _signal(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    main()
