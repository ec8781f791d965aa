"""`sendwhy replay`: stored webhooks, read again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sendwhy_cli import terminal
from sendwhy_cli.commands.filters import time_of
from sendwhy_cli.errors import HELP, CommandError, Exit
from sendwhy_cli.options import Json, Place, grouped
from sendwhy_cli.services import INGEST

if TYPE_CHECKING:
    from sendwhy_cli.client import Client

# It answers within 40 s, and then says where to go on.
ANSWER_SECONDS = 60.0
SHOWN = 50
_DELIVERY = re.compile("[0-9a-f]{64}")


def install(app: typer.Typer) -> None:
    app.command(epilog=HELP)(grouped(replay))


def replay(
    place: Place,
    delivery: Annotated[
        str | None, typer.Argument(help="One delivery: the SHA-256 of its body, 64 hexadecimal digits.")
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", "--from", help="Deliveries from then on: 2h, or a time.")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", "--to", help="Before then; an hour after --since unless it is given.")
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Do it. Without this, only what would change is told.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Read stored webhooks again: what would change, and --apply.

    $ sendwhy replay --since 2026-11-22T10:00:00Z

    $ sendwhy replay --since 2026-11-22T10:00:00Z --apply

    What is read better now than it was comes out as new events; what stands already says nothing. Without --apply
    nothing changes: it lists the messages that would stand differently.
    """
    from sendwhy_cli.client import Client

    with terminal.command_errors(as_json=as_json), Client.at(place) as client:
        body = body_of(delivery, since, until, datetime.now(UTC))
        answer = _all(client, body, dry_run=not apply)
        terminal.show(answer, _show, as_json=as_json)
        if as_json:
            return
        terminal.say(f"page: {client.page('webhook-replay')}")
        if not apply and answer["emitted"]:
            span = [f"--since {body['from']} --until {body['to']}"] if "from" in body else []
            words = " ".join(["replay", *filter(None, [delivery]), *span, "--apply"])
            terminal.say(f"next: {place.command(words)}")


def body_of(delivery: str | None, since: str | None, until: str | None, now: datetime) -> dict[str, str]:
    """What the API is asked. Raises CommandError."""
    if delivery is not None and not _DELIVERY.fullmatch(delivery):
        raise CommandError(Exit.USAGE, "a delivery is named by the SHA-256 of its body: 64 hexadecimal digits, 0-9a-f")
    body = {} if delivery is None else {"delivery_id": delivery}
    start = time_of("--since", since, now)
    if start is None:
        if delivery is None or until is not None:
            raise CommandError(Exit.USAGE, "say --since, as in --since 2026-11-22T10:00:00Z, or name one delivery")
        return body
    hour_later = min(datetime.fromisoformat(start) + timedelta(hours=1), now).isoformat()
    return body | {"from": start, "to": time_of("--until", until, now) or hour_later}


def _all(client: Client, body: Mapping[str, str], *, dry_run: bool) -> dict[str, Any]:
    """The whole span, in as many requests as it takes, as one answer."""
    whole: dict[str, Any] = {}
    asked = dict(body)
    while True:
        answer = client.ask(
            "POST",
            INGEST,
            "webhooks",
            "replay",
            json=asked,
            params={"dry_run": str(dry_run).lower()},
            timeout=ANSWER_SECONDS,
        )
        try:
            whole = _joined(whole, answer)
            start = answer["next_from"]
        except (KeyError, TypeError, AttributeError) as error:
            raise terminal.unknown_shape(error) from error
        if answer["complete"] or start is None or start == asked.get("from"):
            return whole
        terminal.say(f"{whole['deliveries']:,} deliveries so far, goes on at {terminal.utc(start)}")
        asked |= {"from": start, "to": asked.get("to") or datetime.now(UTC).isoformat()}


def _joined(whole: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    if not whole:
        return answer
    emitted = dict(whole["emitted"])
    for topic, count in answer["emitted"].items():
        emitted[topic] = emitted.get(topic, 0) + count
    return answer | {
        "deliveries": whole["deliveries"] + answer["deliveries"],
        "emitted": emitted,
        "changes_count": whole["changes_count"] + answer["changes_count"],
        "changes": whole["changes"] + answer["changes"],
    }


def _show(answer: Mapping[str, Any]) -> None:
    would = "would be" if answer["dry_run"] else "were"
    events = ", ".join(f"{count:,} {topic}" for topic, count in answer["emitted"].items()) or "no events"
    terminal.put(f"{answer['deliveries']:,} deliveries read again; {events} {would} published")
    if answer["changes"]:
        rows = [
            (one["message_id"] or one["provider_message_id"], _state(one["from"]), _state(one["to"]))
            for one in answer["changes"][:SHOWN]
        ]
        terminal.table(("MESSAGE", "STANDS AS" if answer["dry_run"] else "STOOD AS", "THEN"), rows)
    if answer["changes_count"] > SHOWN:
        terminal.put(f"and {answer['changes_count'] - SHOWN:,} more")
    if not answer["changes_count"]:
        terminal.put("no message stands differently by it")
    if not answer["complete"]:
        terminal.put(f"not all was read: go on with --since {answer['next_from']}")


def _state(shown: Mapping[str, Any]) -> str:
    return " ".join(filter(None, (shown["status"], shown["reason"]))) or "not known to be ours"
