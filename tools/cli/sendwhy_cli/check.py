"""`sendwhy check`: brings a file of send requests to the message log, and tells what would become of each."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import httpx

from sendwhy_cli import terminal
from sendwhy_cli.client import Client
from sendwhy_cli.commands.completing import OUTCOMES
from sendwhy_cli.errors import CommandError, Exit
from sendwhy_cli.files import written
from sendwhy_cli.progress import Tell
from sendwhy_cli.services import MESSAGE_LOG

PIECE_BYTES = 256 * 1024
POLL_SECONDS = 0.3
# A file of 100,000 lines is read before it is answered.
UPLOAD_SECONDS = 300.0


def saves_of(pairs: Sequence[str]) -> dict[str, Path]:
    """--save fails=FILE as a dictionary. Raises CommandError."""
    saves = {}
    for pair in pairs:
        group, equals, file = pair.partition("=")
        if not (group and equals and file):
            raise CommandError(Exit.USAGE, f"--save {pair}: write it as goes=FILE")
        if group.partition(".")[0] not in OUTCOMES:
            raise CommandError(Exit.USAGE, f"--save {pair}: the outcomes are {', '.join(OUTCOMES)}")
        saves[group] = Path(file)
    return saves


def take(client: Client, file: IO[bytes], name: str, tell: Tell) -> dict[str, Any]:
    """Upload the file and wait until it is judged; the check's last state. Raises CommandError."""
    pieces = iter(lambda: file.read(PIECE_BYTES), b"")
    timeout = httpx.Timeout(UPLOAD_SECONDS, connect=5)
    try:
        view = client.ask(
            "POST", MESSAGE_LOG, "audience-checks", content=pieces, params={"name": name}, timeout=timeout
        )
        while view["state"] == "running":
            tell("judged", view["judged"], view["lines"], f"{view['judged']:,} of {view['lines']:,} requests")
            time.sleep(POLL_SECONDS)
            view = client.get(MESSAGE_LOG, "audience-checks", view["id"])
        if view["state"] != "judged":
            why = view["told"] or "begin it again"
            raise CommandError(Exit.UNREACHABLE, f"the check is {view['state']}: {why}")
        if not isinstance(view["going"] + view["lines"], int):
            raise TypeError("how many would go is no number")
    except CommandError as error:
        if error.code is not Exit.UNREACHABLE:
            raise
        raise CommandError(error.code, f"{error}; nothing was sent or charged", error.problem) from error
    except (KeyError, TypeError) as error:
        raise terminal.unknown_shape(error) from error
    return dict(view)


def save(client: Client, view: Mapping[str, Any], group: str, path: Path) -> None:
    """A group's lines as they came, or those of all groups of an outcome; an empty file where there are none, so that
    what comes next needs no question. Raises CommandError."""
    try:
        known = {one["group"] for one in view["groups"]} | {one["outcome"] for one in view["groups"]}
    except (KeyError, TypeError) as error:
        raise terminal.unknown_shape(error) from error
    with written(path, f"--save {group}=") as out:
        if group in known:
            parts = ("audience-checks", view["id"], "lines.jsonl")
            client.download(out.write, MESSAGE_LOG, *parts, params={"group": group})


def all_would_go(view: Mapping[str, Any]) -> bool:
    return bool(view["going"] == view["lines"])


def show(view: Mapping[str, Any]) -> None:
    """For a person: the groups, the credits, the limits, and what could not be asked."""
    rows = [(one["count"], _named(one), one["what_to_do"] or "") for one in view["groups"]]
    terminal.table(("LINES", "WHAT BECOMES OF THEM", "WHAT TO DO"), rows, right=("LINES",))
    for line in _facts(view):
        terminal.put(line)


def _named(group: Mapping[str, Any]) -> str:
    # The check asks whether anything is in the way now; that a line wants to go later is nothing in its way.
    title = "Would go, at once or at its own send_at" if group["group"] == "goes" else group["title"]
    said = f" ({group['service']})" if group["service"] else ""
    until = f", until {terminal.utc(group['until_last'])}" if group["until_last"] else ""
    example = group["example"] or {}
    told = ": ".join(filter(None, (example.get("field"), example.get("detail"))))
    where = f"\n  line {example['line']:,}: {told}" if told else ""
    return f"{title}{said}{until}  [{group['group']}]{where}"


def _facts(view: Mapping[str, Any]) -> Iterator[str]:
    credits = view["credits"]
    if credits["balance"] is None:
        yield "credits: the balance is not known"
    else:
        short = f": {credits['short']:,} short" if credits["short"] else ""
        yield f"credits: {credits['needed']:,} needed, {credits['balance']:,} there{short}"
    for one in view["people"]:
        yield (
            f"messaging limit of {one['portfolio']}: {one['limit']:,} people a day, {one['used']:,} used,"
            f" {one['taken']:,} of these would take, {one['left']:,} left after it"
        )
    for service, why in view["faults"].items():
        yield f"{service} could not be asked, so nothing it would say is a pass: {why}"
    yield f"{view['going']:,} of {view['lines']:,} would go; nothing was sent or charged"
