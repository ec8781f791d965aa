"""Forks dispatchers out of a process that has imported everything: a start takes tenths of a second, not two.

One JSON line on stdin orders one: `{"environment": {…}, "log": "…"}`; its pid is the answer. Ends at the end of stdin,
and its children with it.
"""

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import dispatcher
from dispatcher.app import make_app
from dispatcher.settings import Settings
from sendwhy.reasons import Service
from sendwhy.service import main

PR_SET_PDEATHSIG = 1


def serve(order: dict[str, Any]) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.environ.update(order["environment"])
    sys.argv = ["dispatcher", "serve"]
    main(Service.DISPATCHER, Settings, make_app, Path(dispatcher.__file__).parent / "migrations")


def run() -> None:
    # The kernel buries the children: nobody asks how they ended.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while line := sys.stdin.readline():
        pid = os.fork()
        if pid == 0:
            serve(json.loads(line))
            os._exit(0)
        print(pid, flush=True)


if __name__ == "__main__":
    run()
