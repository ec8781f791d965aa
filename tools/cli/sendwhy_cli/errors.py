"""The command's exit codes, and the error that carries one."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any


class Exit(IntEnum):
    DONE = 0
    BAD_ANSWER = 1
    USAGE = 2
    NOT_FOUND = 3
    NOT_ALLOWED = 4
    UNREACHABLE = 5
    INTERRUPTED = 130
    # As a shell tells a death by SIGPIPE: whoever read the output has gone.
    PIPE_CLOSED = 141


HELP = (
    "Exit codes: 0 done; 1 it ran and the answer is bad; 2 usage or setting wrong; 3 not found; 4 not allowed;"
    " 5 can't reach a service; 130 interrupted."
)


class CommandError(Exception):
    """Ends the command with one sentence on stderr and this exit code. `problem`: the service's own problem details,
    which --json puts out."""

    def __init__(self, code: Exit, message: str, problem: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.problem = problem or {
            "type": "about:blank",
            "title": code.name.replace("_", " ").lower(),
            "detail": message,
        }
