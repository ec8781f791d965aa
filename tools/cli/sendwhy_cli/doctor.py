"""`sendwhy doctor`: message-log's checks of the running stack; and what can be seen without it: processes, ports,
Kafka, PostgreSQL, each service's /livez."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import httpx
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.text import Text

from sendwhy_cli.errors import Exit

Result = Literal["ok", "warning", "failed", "unasked"]
MARKS: Mapping[str, tuple[str, str]] = {
    "ok": ("✓", "green"),
    "warning": ("!", "yellow"),
    "failed": ("✗", "red"),
    "unasked": ("?", "yellow"),
}
# Longer than all of message-log's own bounds together.
DIAGNOSTICS_SECONDS = 15.0
PROBE_SECONDS = 3.0


class Stack(BaseModel):
    """DIR/stack.json, as far as it is looked at."""

    kafka: str
    postgres: str = ""
    services: dict[str, str]
    admin_token: str
    pids: dict[str, list[int]] = {}


@dataclass(frozen=True)
class Found:
    """One check. `area` "local" is what was looked at from here; the others are message-log's own words."""

    id: str
    area: str
    title: str
    result: Result
    seen: str
    about: str | None = None
    remedy: str | None = None
    command: str | None = None


def examine(state_dir: Path, workspace: str) -> tuple[list[Found], Exit]:
    """All checks, and how the command ends: 5 where there is no stack to look at, 1 where one failed."""
    found, stack = _look_at_directory(state_dir)
    if stack is None:
        return found, Exit.UNREACHABLE
    found += asyncio.run(_look_at_processes(stack, state_dir))
    found += _ask_message_log(stack, workspace)
    if any(one.id == "message-log" and one.result == "failed" for one in found):
        return found, Exit.UNREACHABLE
    return found, Exit.BAD_ANSWER if any(one.result in ("failed", "unasked") for one in found) else Exit.DONE


def _local(name: str, title: str, seen: str, **told: Any) -> Found:
    return Found(name, "local", title, seen=seen, **({"result": "ok"} | told))


def _look_at_directory(state_dir: Path) -> tuple[list[Found], Stack | None]:
    start = f"sendwhy up --state-dir {state_dir}"
    title, path = "A stack runs here", state_dir / "stack.json"
    try:
        stack = Stack.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        seen = f"{path} is not there" if state_dir.is_dir() else f"{state_dir} is not there"
        remedy = "Start one, or name its directory with --state-dir; the file is there while a stack runs."
        return [_local("state-dir", title, seen, result="failed", remedy=remedy, command=start)], None
    except (OSError, ValidationError) as error:
        seen = f"{path} can’t be read: {str(error).splitlines()[0]}"
        remedy = "Start the stack again; it writes the file anew."
        return [_local("state-dir", title, seen, result="failed", remedy=remedy, command=start)], None
    return [_local("state-dir", title, str(path))], stack


async def _look_at_processes(stack: Stack, state_dir: Path) -> list[Found]:
    # One client, made before anything is timed: to make one reads all certificates.
    async with httpx.AsyncClient(timeout=PROBE_SECONDS, trust_env=False) as client:
        return [
            *(_process(name, pids, state_dir) for name, pids in stack.pids.items()),
            *await asyncio.gather(
                _port("kafka", stack.kafka),
                *([_port("postgres", _address_of(stack.postgres))] if stack.postgres else []),
                _kafka(stack.kafka),
                *(_lives(client, name, url, state_dir) for name, url in stack.services.items()),
            ),
        ]


def _process(name: str, pids: Sequence[int], state_dir: Path) -> Found:
    dead = [pid for pid in pids if not _is_alive(pid)]
    title = "Process runs"
    if not dead:
        return _local(f"process:{name}", title, f"pid {', '.join(map(str, pids))}", about=name)
    seen = f"pid {', '.join(map(str, dead))} is gone"
    remedy = "`sendwhy up` starts it again after 1 s, if it runs itself; the log says why it ended."
    command = f"tail {state_dir / 'logs' / name}.log"
    return _local(f"process:{name}", title, seen, about=name, result="failed", remedy=remedy, command=command)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _address_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname or '127.0.0.1'}:{parts.port or 5432}"


async def _port(name: str, address: str) -> Found:
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            _, writer = await asyncio.open_connection(host, int(port), family=socket.AF_UNSPEC)
        writer.close()
    except (OSError, TimeoutError, ValueError) as error:
        remedy = f"{name} doesn’t listen there: end `sendwhy up` and start it again; the data stay."
        seen = f"{address}: {type(error).__name__}"
        return _local(f"port:{name}", "Port is open", seen, about=name, result="failed", remedy=remedy)
    return _local(f"port:{name}", "Port is open", address, about=name)


async def _kafka(bootstrap: str) -> Found:
    # What it can't reach is told by the check.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=int(PROBE_SECONDS * 1000))
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            await admin.start()
            topics = await admin.list_topics()
    except (KafkaError, OSError, TimeoutError) as error:
        remedy = "Kafka’s log in the state directory says why; `sendwhy up` starts it again."
        return _local("kafka", "Kafka answers", type(error).__name__, result="failed", remedy=remedy)
    finally:
        await admin.close()
    return _local("kafka", "Kafka answers", f"{len(topics)} topics at {bootstrap}")


async def _lives(client: httpx.AsyncClient, name: str, url: str, state_dir: Path) -> Found:
    title = "Service is alive"
    told = {"about": name, "result": "failed", "command": f"tail {state_dir / 'logs' / name}.log"}
    try:
        answer = await client.get(f"{url}/livez")
    except httpx.HTTPError as error:
        remedy = "Read the last lines of its log; `sendwhy up` starts what ends again."
        return _local(f"livez:{name}", title, f"{url}: {type(error).__name__}", remedy=remedy, **told)
    if not answer.is_success:
        remedy = "It ends itself and is started again; if that repeats, its log says what it can’t get past."
        return _local(f"livez:{name}", title, f"/livez answered {answer.status_code}", remedy=remedy, **told)
    return _local(f"livez:{name}", title, url, about=name)


def _ask_message_log(stack: Stack, workspace: str) -> list[Found]:
    base = stack.services.get("message-log", "")
    title = "message-log tells its checks"
    headers = {"Authorization": f"Bearer {stack.admin_token}"}
    path = f"/v1/workspaces/{quote(workspace, safe='')}/diagnostics"
    try:
        answer = httpx.get(base + path, headers=headers, timeout=DIAGNOSTICS_SECONDS, trust_env=False)
        checks = answer.json()["checks"] if answer.is_success else None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError) as error:
        remedy = "Mend what is said above; without it, numbers, lag and clocks can’t be checked from here."
        return [_local("message-log", title, f"{base}: {type(error).__name__}", result="failed", remedy=remedy)]
    if checks is None:
        remedy = f"Is {workspace} a workspace, and the stack of this version?"
        seen = f"it answered {answer.status_code}"
        return [_local("message-log", title, seen, result="failed", remedy=remedy)]
    names = ("id", "area", "title", "result", "seen", "about", "remedy", "command")
    return [Found(**{name: check.get(name) for name in names}) for check in checks]


AREAS = {
    "local": "This machine",
    "installation": "Sendwhy",
    "numbers": "Numbers",
    "messages": "Messages",
}


def show(console: Console, found: Sequence[Found]) -> None:
    for area in dict.fromkeys(one.area for one in found):
        console.print(Text(AREAS.get(area, area), style="bold"))
        for one in (one for one in found if one.area == area):
            mark, style = MARKS.get(one.result, ("?", ""))
            subject = f"{one.title}: {one.about}" if one.about else one.title
            console.print(Text.assemble("  ", (mark, style), f" {subject}  ", (one.seen, "dim")))
            if one.result != "ok" and one.remedy:
                console.print(Text(f"      → {one.remedy}"))
            if one.result != "ok" and one.command:
                # To be copied: never broken over lines.
                console.print(Text(f"        $ {one.command}"), soft_wrap=True)
    bad = sum(one.result in ("failed", "unasked") for one in found)
    odd = sum(one.result == "warning" for one in found)
    count = f"{len(found)} check" if len(found) == 1 else f"{len(found)} checks"
    console.print(f"{count}: {len(found) - bad - odd} fine, {odd} to look at, {bad} failed or not answered")


def as_json(found: Sequence[Found], workspace: str) -> dict[str, Any]:
    return {"workspace": workspace, "checks": [asdict(one) for one in found]}
