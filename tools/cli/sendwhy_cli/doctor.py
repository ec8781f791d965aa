"""`sendwhy doctor`: message-log's checks; and what can be seen without it from here: each service's /livez and, of a
stack on this machine, processes, ports and Kafka."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from rich.text import Text

from sendwhy_cli import terminal
from sendwhy_cli.client import Client
from sendwhy_cli.errors import CommandError, Exit
from sendwhy_cli.options import STATE_DIR, Place
from sendwhy_cli.services import MESSAGE_LOG
from sendwhy_cli.stack import find

MARKS: Mapping[str, tuple[str, str]] = {
    "ok": ("✓", "green"),
    "warning": ("!", "yellow"),
    "failed": ("✗", "red"),
    "unasked": ("?", "yellow"),
}
AREAS = {"local": "Seen from here", "installation": "Sendwhy", "numbers": "Numbers", "messages": "Messages"}
# Longer than all of message-log's own bounds together.
DIAGNOSTICS_SECONDS = 15.0
PROBE_SECONDS = 3.0

# As message-log has it; of `area` "local" is what was looked at from here.
Check = dict[str, Any]


def examine(place: Place) -> tuple[dict[str, Any], Exit]:
    """All checks, and how the command ends: 1 where one failed or was not answered; where there is nothing to ask, as
    the asking ended. Raises CommandError where it isn't said what is to be looked at."""
    told: dict[str, Any] = {"workspace": place.workspace, "checks": []}
    try:
        stack = find(place)
    except CommandError as error:
        if error.code is not Exit.UNREACHABLE:
            raise
        state_dir = shlex.quote(str(place.state_dir or STATE_DIR))
        remedy = "Start one, or name its directory with --state-dir; stack.json is there while a stack runs."
        command = f"sendwhy up --state-dir {state_dir}"
        told["checks"] = [_failed("state-dir", "A stack runs here", str(error), remedy, command=command)]
        return told, error.code
    with Client(stack, place) as client:
        client.remedy = ""
        found = asyncio.run(_look(client))
        fault = None
        try:
            found += _diagnostics(client)
        except CommandError as error:
            fault = error.code
            remedy = "Mend this first: without it, numbers, lag and clocks can’t be checked from here."
            found.append(_failed("message-log", "message-log tells its checks", str(error), remedy))
    told["checks"] = found
    is_bad = any(one["result"] in ("failed", "unasked") for one in found)
    return told, fault or (Exit.BAD_ANSWER if is_bad else Exit.DONE)


def _check(name: str, title: str, seen: str, about: str | None = None, **more: Any) -> Check:
    made = {"id": name, "area": "local", "title": title, "about": about, "result": "ok", "seen": seen}
    return made | {"remedy": None, "command": None} | more


def _failed(name: str, title: str, seen: str, remedy: str, **more: Any) -> Check:
    return _check(name, title, seen, result="failed", remedy=remedy, **more)


def _diagnostics(client: Client) -> list[Check]:
    """Raises CommandError."""
    answer = client.ask("GET", MESSAGE_LOG, "diagnostics", timeout=DIAGNOSTICS_SECONDS)
    try:
        checks: list[Check] = answer["checks"]
        for one in checks:
            # All that `show` wants is there; what more there is goes through as it came.
            _lines(one)
            AREAS.get(one["area"])
    except (KeyError, TypeError, AttributeError) as error:
        raise terminal.unknown_shape(error) from error
    return checks


async def _look(client: Client) -> list[Check]:
    stack, state_dir = client.stack, client.place.state_dir or STATE_DIR
    logs = state_dir / "logs" if stack.kafka else None
    probes = [asyncio.to_thread(_lives, client, name, url, logs) for name, url in stack.services.items()]
    if logs is None:
        return list(await asyncio.gather(*probes))
    ports = [_port("kafka", stack.kafka)]
    if stack.postgres:
        ports.append(_port("postgres", _address_of(stack.postgres)))
    return [
        _check("state-dir", "A stack runs here", str(state_dir / "stack.json")),
        *(_process(name, pids, logs) for name, pids in stack.pids.items()),
        *await asyncio.gather(*ports, _kafka(stack.kafka), *probes),
    ]


def _tail(logs: Path, name: str) -> str:
    return f"tail {shlex.quote(str(logs / f'{name}.log'))}"


def _process(name: str, pids: Sequence[int], logs: Path) -> Check:
    dead = [pid for pid in pids if not _is_alive(pid)]
    if not dead:
        return _check(f"process:{name}", "Process runs", f"pid {', '.join(map(str, pids))}", name)
    seen = f"pid {', '.join(map(str, dead))} is gone"
    remedy = "`sendwhy up` starts it again after 1 s, if it runs itself; the log says why it ended."
    return _failed(f"process:{name}", "Process runs", seen, remedy, about=name, command=_tail(logs, name))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _address_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname or '127.0.0.1'}:{parts.port or 5432}"


async def _port(name: str, address: str) -> Check:
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            _, writer = await asyncio.open_connection(host, int(port), family=socket.AF_UNSPEC)
        writer.close()
    except (OSError, TimeoutError, ValueError) as error:
        remedy = f"{name} doesn’t listen there: end `sendwhy up` and start it again; the data stay."
        seen = f"{address}: {type(error).__name__}"
        return _failed(f"port:{name}", "Port is open", seen, remedy, about=name)
    return _check(f"port:{name}", "Port is open", address, name)


async def _kafka(bootstrap: str) -> Check:
    # What it can't reach is told by the check.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=int(PROBE_SECONDS * 1000))
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            await admin.start()
            topics = await admin.list_topics()
    except (KafkaError, OSError, TimeoutError) as error:
        remedy = "Kafka’s log in the state directory says why; `sendwhy up` starts it again."
        return _failed("kafka", "Kafka answers", type(error).__name__, remedy)
    finally:
        await admin.close()
    return _check("kafka", "Kafka answers", f"{len(topics)} topics at {bootstrap}")


def _lives(client: Client, name: str, url: str, logs: Path | None) -> Check:
    check, title = f"livez:{name}", "Service is alive"
    more = {"about": name, "command": _tail(logs, name) if logs else None}
    try:
        answer = client.http.get(f"{url}/livez", timeout=PROBE_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        remedy = (
            "Read the last lines of its log; `sendwhy up` starts what ends again."
            if logs
            else "Where it runs: does it run, and is this address reached from here?"
        )
        return _failed(check, title, f"{url}: {type(error).__name__}", remedy, **more)
    if not answer.is_success:
        remedy = "It ends itself and is started again; if that repeats, its log says what it can’t get past."
        return _failed(check, title, f"{url}/livez answered {answer.status_code}", remedy, **more)
    return _check(check, title, url, name)


def show(told: Mapping[str, Any]) -> None:
    console, found = terminal.console(), told["checks"]
    for area in dict.fromkeys(one["area"] for one in found):
        console.print(Text(AREAS.get(area, area), style="bold"))
        for one in (one for one in found if one["area"] == area):
            # To be copied and searched: never broken over lines.
            console.print(_lines(one), soft_wrap=True)
    bad = sum(one["result"] in ("failed", "unasked") for one in found)
    odd = sum(one["result"] == "warning" for one in found)
    count = f"{len(found)} check" if len(found) == 1 else f"{len(found)} checks"
    terminal.put(f"{count}: {len(found) - bad - odd} fine, {odd} to look at, {bad} failed or not answered")


def _lines(one: Mapping[str, Any]) -> Text:
    subject = f"{one['title']}: {one['about']}" if one.get("about") else one["title"]
    made = Text.assemble("  ", MARKS.get(one["result"], ("?", "")), f" {subject}  ", (one["seen"], "dim"))
    if one["result"] != "ok":
        if one.get("remedy"):
            made.append(f"\n      → {one['remedy']}")
        if one.get("command"):
            made.append(f"\n        $ {one['command']}")
    return made
