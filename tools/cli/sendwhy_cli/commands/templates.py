"""`sendwhy templates`: what Meta has approved, as we know it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Annotated, Any

import typer

from sendwhy_cli import terminal
from sendwhy_cli.commands.messages import Cursor, Limit
from sendwhy_cli.errors import HELP, CommandError, Exit
from sendwhy_cli.options import Json, Place, grouped
from sendwhy_cli.services import DISPATCHER


def install(app: typer.Typer) -> None:
    app.command(epilog=HELP)(grouped(templates))


def templates(
    place: Place,
    name: Annotated[str | None, typer.Argument(help="One template, with its texts.")] = None,
    status: Annotated[str | None, typer.Option("--status", help="As Meta says it: APPROVED, PAUSED …")] = None,
    category: Annotated[str | None, typer.Option("--category", help="MARKETING, UTILITY or AUTHENTICATION.")] = None,
    limit: Limit = 500,
    cursor: Cursor = None,
    as_json: Json = False,
) -> None:
    """List the templates with their state, or show one.

    $ sendwhy templates --status PAUSED

    $ sendwhy templates autumn_sale
    """
    from sendwhy_cli.client import Client

    with terminal.command_errors(as_json=as_json), Client.at(place) as client:
        params = {"status": status and status.upper(), "category": category and category.upper()}
        found = client.listed(DISPATCHER, "templates", params=params, limit=limit, cursor=cursor)
        if name is not None:
            found = _named(name, found)
        terminal.show(found, _show_one if name else _show_list, as_json=as_json)
        if not as_json:
            terminal.say(f"page: {client.page('templates')}")
            shown = name or "NAME"
            terminal.say(f"next: {place.command('messages --status failed --template', shown)}")


def _named(name: str, found: dict[str, Any]) -> dict[str, Any]:
    items = [item for item in found["items"] if item.get("name") == name]
    if not items:
        from rapidfuzz import process

        names = sorted({str(item.get("name")) for item in found["items"]})
        like = [hit for hit, _, _ in process.extract(name, names, score_cutoff=60, limit=3)]
        hint = f"; did you mean {', '.join(like)}?" if like else "; is its sender synced? sendwhy senders sync ID"
        raise CommandError(Exit.NOT_FOUND, f"no template {name} is known here{hint}")
    return {"items": items, "next_cursor": None}


def _show_list(found: Mapping[str, Any]) -> None:
    if not found["items"]:
        terminal.say("no template fits; they come by: sendwhy senders sync ID")
    for account, items in groupby(found["items"], lambda item: item["waba_id"]):
        terminal.put(f"account {account}")
        columns = ("TEMPLATE", "LANGUAGE", "STATE", "CATEGORY", "QUALITY", "CHANGED (UTC)")
        terminal.table(columns, [(item["name"], item["language"], item["status"], *_rest(item)) for item in items])


def _rest(item: Mapping[str, Any]) -> tuple[Any, ...]:
    # A sync that finds nothing new leaves a template as it stands: when Meta was read last is told by its sender.
    return item["category"], item["quality"], terminal.moment(item["said_at"] or item["synced_at"], terminal.MINUTES)


def _show_one(found: Mapping[str, Any]) -> None:
    """Where it stands in each language and account, then its texts, once where they are the same."""
    columns = ("LANGUAGE", "ACCOUNT", "STATE", "CATEGORY", "QUALITY", "CHANGED (UTC)")
    items = found["items"]
    terminal.table(columns, [(item["language"], item["waba_id"], item["status"], *_rest(item)) for item in items])
    told = set()
    for item in items:
        texts = {part["type"].lower(): _text_of(part) for part in item["components"]}
        rejected = item["rejected_reason"] and f"{item['rejected_reason']} (account {item['waba_id']})"
        if (key := (item["language"], rejected, *texts.items())) not in told:
            told.add(key)
            print()
            terminal.facts({"language": item["language"], item["status"].lower(): rejected, **texts})


def _text_of(part: Mapping[str, Any]) -> str:
    if part.get("text"):
        return str(part["text"])
    buttons = part.get("buttons") or []
    return ", ".join(str(button.get("text")) for button in buttons) or str(part.get("format", ""))
