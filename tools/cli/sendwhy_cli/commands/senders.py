"""`sendwhy senders`: the numbers that messages go out from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from sendwhy_cli import terminal
from sendwhy_cli.errors import HELP, Exit
from sendwhy_cli.options import Json, Place, grouped
from sendwhy_cli.services import DISPATCHER

# Below this many columns a table has only what says whether a number sends.
WIDE = 110

SenderId = Annotated[str, typer.Argument(metavar="ID", help="The number's id at Meta.")]


def install(app: typer.Typer) -> None:
    senders = typer.Typer(help="Sending numbers: list, show, pause, resume, sync.", no_args_is_help=True, epilog=HELP)
    senders.command("list", epilog=HELP)(grouped(list_senders))
    senders.command(epilog=HELP)(grouped(show))
    senders.command(epilog=HELP)(grouped(pause))
    senders.command(epilog=HELP)(grouped(resume))
    senders.command(epilog=HELP)(grouped(sync))
    app.add_typer(senders, name="senders")


def list_senders(place: Place, as_json: Json = False) -> None:
    """List the workspace's numbers.

    $ sendwhy senders list
    """
    from sendwhy_cli.client import Client

    with terminal.command_errors(as_json=as_json), Client.at(place) as client:
        found = client.get(DISPATCHER, "senders")
        terminal.show(found, _show_list, as_json=as_json)
        if not as_json:
            terminal.say(f"page: {client.page('senders')}\nnext: {place.command('senders show ID')}")


def show(sender_id: SenderId, place: Place, as_json: Json = False) -> None:
    """Show a number's health: whether it sends now, and what stops it. Exits 1 where something does.

    $ sendwhy senders show 100000000000001
    """
    from sendwhy_cli.client import Client

    with terminal.command_errors(as_json=as_json), Client.at(place) as client:
        health = client.get(DISPATCHER, "senders", sender_id, "health")
        terminal.show(health, _show_health, as_json=as_json)
        stops = health.get("stopped_by")
        if not as_json:
            terminal.say(f"page: {client.page('senders', sender_id)}")
            hint = "resume" if health.get("paused_at") else "sync"
            terminal.say(f"next: {place.command(f'senders {hint}', sender_id)}")
        raise typer.Exit(Exit.BAD_ANSWER if stops else Exit.DONE)


def pause(sender_id: SenderId, place: Place, as_json: Json = False) -> None:
    """Stop sending from a number. What waits for it goes out after `resume`, unless it expires.

    $ sendwhy senders pause 100000000000001
    """
    _act(sender_id, "pause", place, as_json=as_json)


def resume(sender_id: SenderId, place: Place, as_json: Json = False) -> None:
    """Let a number send again, also after a hold that was repaired.

    $ sendwhy senders resume 100000000000001
    """
    _act(sender_id, "resume", place, as_json=as_json)


def sync(sender_id: SenderId, place: Place, as_json: Json = False) -> None:
    """Read the number, its limits and its templates from Meta now.

    $ sendwhy senders sync 100000000000001
    """
    from sendwhy_cli.client import Client

    with terminal.command_errors(as_json=as_json), Client.at(place) as client:
        done = client.ask("POST", DISPATCHER, "senders", sender_id, "sync")
        terminal.show(done, _show_synced, as_json=as_json)
        if not as_json:
            terminal.say(f"next: {place.command('templates')}")


def _act(sender_id: str, what: str, place: Place, *, as_json: bool) -> None:
    from sendwhy_cli.client import Client

    with terminal.command_errors(as_json=as_json), Client.at(place) as client:
        sender = client.ask("POST", DISPATCHER, "senders", sender_id, what)
        terminal.show(sender, lambda seen: _show_list([seen]), as_json=as_json)
        if not as_json:
            other = "resume" if what == "pause" else "show"
            terminal.say(f"next: {place.command(f'senders {other}', sender_id)}")


def _show_list(senders: Sequence[Mapping[str, Any]]) -> None:
    if not senders:
        terminal.say("this workspace has no number yet: set one up by PUT /v1/workspaces/{w}/senders/{id}")
        return
    columns = ["SENDER", "NUMBER", "QUALITY", "STATE"]
    if terminal.width() >= WIDE:
        columns += ["A SECOND", "PEOPLE A DAY", "TEMPLATES READ (UTC)"]
    rows = [
        (
            one["sender_id"],
            one["display_phone_number"],
            one["quality_rating"],
            _state_of(one) + (" (default sender)" if one["default"] else ""),
            one["messages_per_second"],
            one["messaging_limit"] if one["messaging_limit"] is not None else "no limit",
            terminal.moment(one["synced_at"], terminal.MINUTES),
        )[: len(columns)]
        for one in senders
    ]
    terminal.table(columns, rows, right=("A SECOND", "PEOPLE A DAY"))


def _state_of(sender: Mapping[str, Any]) -> str:
    if sender["paused_at"]:
        return f"paused since {terminal.moment(sender['paused_at'], terminal.MINUTES)} UTC"
    if sender["hold"]:
        return _hold(sender["hold"]["title"], sender["hold_until"])
    return "sends"


def _hold(title: str, until: str | None) -> str:
    """A hold that is over stands until the next message shows whether its cause is gone."""
    if until is None:
        return f"held until it is repaired: {title}"
    if datetime.fromisoformat(until) <= datetime.now(UTC):
        return f"tries again with the next message: {title}"
    return f"held until {terminal.utc(until)}: {title}"


def _show_synced(done: Mapping[str, Any]) -> None:
    terminal.put(f"{done['templates']:,} templates read from Meta, {terminal.utc(done['synced_at'])}")


def _show_health(health: Mapping[str, Any]) -> None:
    tier, pace, hold = health["tier"], health["throughput"], health["hold"]
    limit = "without limit" if tier["limit"] is None else f"of {tier['limit']:,}, {tier['left']:,} left"
    sent = "not measured" if pace["sent_last_minute"] is None else f"{pace['sent_last_minute']:,} in the last minute"
    terminal.facts(
        {
            "sender": health["sender_id"],
            "state": "messages go out" if not health["stopped_by"] else "stopped, see below",
            "quality": f"{health['quality']['rating']} (policy: {health['quality']['policy']})",
            "people in 24 h": f"{tier['used']:,} {limit} (all numbers of portfolio {tier['portfolio_id']})",
            "throughput": f"{sent}, {pace['allowed_per_second']:,} a second are allowed",
            "paused": terminal.utc(health["paused_at"]),
            "hold": hold and _hold(hold["cause"]["title"], hold["until"]),
            "because": hold and hold["cause"]["detail"],
            "templates read": terminal.utc(health["sync"]["synced_at"]),
        }
    )
    for stop in health["stopped_by"]:
        until = f", until {terminal.utc(stop['until'])}" if stop.get("until") else ""
        terminal.put(f"❌ {stop['detail']} (stops {stop['stops']}{until})")
