"""`sendwhy campaigns`: how campaigns go, and stopping them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

import typer

from sendwhy_cli import terminal
from sendwhy_cli.commands.completing import STATUSES
from sendwhy_cli.commands.messages import Cursor, Limit
from sendwhy_cli.errors import HELP, CommandError, Exit
from sendwhy_cli.options import Json, Place, grouped
from sendwhy_cli.services import DISPATCHER, MESSAGE_LOG

CampaignId = Annotated[str, typer.Argument(metavar="ID", help="The campaign's id: origin.id of its messages.")]


def install(app: typer.Typer) -> None:
    campaigns = typer.Typer(
        help="Campaigns: list, show, pause, resume, cancel, throttle.", no_args_is_help=True, epilog=HELP
    )
    campaigns.command("list", epilog=HELP)(grouped(list_campaigns))
    for command in (show, pause, resume, cancel, throttle):
        campaigns.command(epilog=HELP)(grouped(command))
    app.add_typer(campaigns, name="campaigns")


def list_campaigns(
    place: Place,
    q: Annotated[str | None, typer.Option("--search", "-q", help="A part of the id or name.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
    as_json: Json = False,
) -> None:
    """List campaigns with what became of their messages, the latest first.

    $ sendwhy campaigns list
    """
    from sendwhy_cli.client import Client

    with terminal.command_errors(as_json=as_json), Client.at(place) as client:
        found = client.listed(MESSAGE_LOG, "campaigns", params={"q": q}, limit=limit, cursor=cursor)
        terminal.show(found, _show_list, as_json=as_json)
        if not as_json:
            terminal.say(f"page: {client.page('campaigns')}\nnext: {place.command('campaigns show ID')}")
            if found["next_cursor"]:
                terminal.say(f"more: {place.command('campaigns list --cursor', found['next_cursor'])}")


def show(campaign: CampaignId, place: Place, as_json: Json = False) -> None:
    """Show how a campaign goes: progress, what it waits for, and why messages failed.

    $ sendwhy campaigns show black-friday
    """
    from sendwhy_cli.client import Client

    with terminal.command_errors(as_json=as_json), Client.at(place) as client:
        found = client.get(MESSAGE_LOG, "campaigns", campaign)
        terminal.show(found, _show_one, as_json=as_json)
        if not as_json:
            terminal.say(f"page: {client.page('campaigns', campaign)}")
            terminal.say(f"next: {_messages_of(campaign, place)}")


def pause(campaign: CampaignId, place: Place) -> None:
    """Hold a campaign's messages back. They wait, unless they expire, until `resume`.

    $ sendwhy campaigns pause black-friday
    """
    _act(campaign, "pause", place)
    terminal.put(f"campaign {campaign} is paused")
    terminal.say(f"next: {place.command('campaigns resume', campaign)}")


def resume(campaign: CampaignId, place: Place) -> None:
    """Let a paused campaign go on.

    $ sendwhy campaigns resume black-friday
    """
    _act(campaign, "resume", place)
    terminal.put(f"campaign {campaign} goes on")
    terminal.say(f"next: {place.command('campaigns show', campaign)}")


def cancel(
    campaign: CampaignId,
    place: Place,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    as_json: Json = False,
) -> None:
    """Take what has not been sent out of a campaign, for good. Asks for the campaign's id first.

    $ sendwhy campaigns cancel black-friday --yes
    """
    with terminal.command_errors(as_json=as_json):
        if not yes:
            terminal.confirm(f"What has not been sent of {campaign} is never sent. To go on, type", campaign)
    done = _act(campaign, "cancel", place, as_json=as_json)
    with terminal.command_errors(as_json=as_json):
        terminal.show(done, _show_cancelled, as_json=as_json)
    if not as_json:
        terminal.say(f"next: {place.command('campaigns show', campaign)}")


def throttle(
    campaign: CampaignId,
    place: Place,
    per_minute: Annotated[int | None, typer.Option("--per-minute", min=1, help="Calls in any 60 s.")] = None,
    per_day: Annotated[int | None, typer.Option("--per-day", min=1, help="Calls in any 24 h.")] = None,
    off: Annotated[bool, typer.Option("--off", help="Without a throttle.")] = False,
    as_json: Json = False,
) -> None:
    """Slow a campaign down. What isn't named has no limit.

    $ sendwhy campaigns throttle black-friday --per-minute 600 --per-day 20000
    """
    from sendwhy_cli.client import Client

    with terminal.command_errors(as_json=as_json), Client.at(place) as client:
        if off == (per_minute is not None or per_day is not None):
            raise CommandError(Exit.USAGE, "say --per-minute, --per-day or both, or else --off")
        body = {"per_minute": per_minute, "per_day": per_day}
        done = client.ask("PUT", DISPATCHER, "throttles", campaign, json=body)
        terminal.show(done, _show_throttle, as_json=as_json)
        if not as_json:
            terminal.say(f"next: {place.command('campaigns show', campaign)}")


def _act(campaign: str, what: str, place: Place, *, as_json: bool = False) -> Any:
    from sendwhy_cli.client import Client

    with terminal.command_errors(as_json=as_json), Client.at(place) as client:
        return client.ask("POST", DISPATCHER, "campaigns", campaign, what)


def _messages_of(campaign: str, place: Place) -> str:
    return place.command("messages --status failed --campaign", campaign)


def _show_list(found: Mapping[str, Any]) -> None:
    if not found["items"]:
        terminal.say("no campaign fits: one is there as soon as a message names it as its origin")
        return
    statuses = [name for name in STATUSES if any(item["by_status"].get(name) for item in found["items"])]
    columns = ["CAMPAIGN", "MESSAGES", *map(str.upper, statuses), "LAST REQUEST (UTC)"]
    rows = [
        [
            item["id"],
            item["total"],
            *(item["by_status"].get(name, 0) for name in statuses),
            terminal.moment(item["last_at"], terminal.MINUTES),
        ]
        for item in found["items"]
    ]
    terminal.table(columns, rows, right=columns[1:-1])


def _show_one(found: Mapping[str, Any]) -> None:
    progress = found["progress"]
    pace = "" if progress["per_minute"] is None else f", {progress['per_minute']:,.0f} a minute"
    counts = [f"{count:,} {name}" for name, count in found["by_status"].items() if count]
    terminal.facts(
        {
            "campaign": f"{found['id']} ({found['name']})" if found["name"] else found["id"],
            "messages": f"{found['total']:,}: {', '.join(counts)}",
            "progress": f"{progress['done']:,} of {progress['total']:,} have left{pace}{_end(found)}",
            "requested": f"{terminal.moment(found['first_at'])} to {terminal.utc(found['last_at'])}",
        }
    )
    if found["waiting"]:
        print()
        rows = [
            (
                terminal.waits_for(one).removeprefix("waits for "),
                one["count"],
                terminal.moment(one["until"]) or terminal.open_end(one),
            )
            for one in found["waiting"]
        ]
        terminal.table(("WAITS FOR", "MESSAGES", "UNTIL (UTC)"), rows, right=("MESSAGES",))
    if found["by_reason"]:
        print()
        reasons = [(one["reason"], one["count"], one["what_to_do"]) for one in found["by_reason"]]
        terminal.table(("FAILED BECAUSE", "MESSAGES", "WHAT TO DO"), reasons, right=("MESSAGES",))


def _end(found: Mapping[str, Any]) -> str:
    """When the last one goes. The pace is that of what has left: what waits goes at its own time, or after a repair."""
    if (by_pace := found["progress"]["ends_at"]) is None:
        return ""
    if not all(one["until"] for one in found["waiting"]):
        return "; some wait, so nobody can say when the rest goes"
    last = max((one["until"] for one in found["waiting"]), key=datetime.fromisoformat, default=by_pace)
    if datetime.fromisoformat(last) > datetime.fromisoformat(by_pace):
        return f", the last from {terminal.utc(last)} on"
    return f", done at {terminal.utc(by_pace)}"


def _show_cancelled(done: Mapping[str, Any]) -> None:
    terminal.put(
        f"{done['cancelled']:,} taken out, {done['cancelling']:,} being taken out,"
        f" {done['in_flight']:,} were called already and can't be called back"
    )


def _show_throttle(done: Mapping[str, Any]) -> None:
    limits = [f"{done[name]:,} {name.replace('_', ' ')}" for name in ("per_minute", "per_day") if done[name]]
    terminal.put(f"campaign {done['campaign_id']}: {', '.join(limits) or 'no throttle'}")
