"""`sendwhy credits`: balance, top-ups, the ledger, statements."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from sendwhy_cli import terminal
from sendwhy_cli.commands.completing import LEDGER_KINDS, among
from sendwhy_cli.commands.messages import Cursor, Limit
from sendwhy_cli.errors import HELP
from sendwhy_cli.options import Json, Place, grouped
from sendwhy_cli.services import BILLING

GROUPS = ("day", "campaign", "category", "country")
FIGURES = ("messages", "reserved", "released", "refunded", "recaptured", "top_ups", "adjustments", "net")
NARROW_FIGURES = ("messages", "reserved", "top_ups", "adjustments", "net")
WIDE = 110


def install(app: typer.Typer) -> None:
    credits = typer.Typer(
        help="Credits: the balance, top-ups, the ledger, statements.", no_args_is_help=True, epilog=HELP
    )
    credits.command(epilog=HELP)(grouped(balance))
    credits.command("top-up", epilog=HELP)(grouped(top_up))
    credits.command(epilog=HELP)(grouped(ledger))
    credits.command(epilog=HELP)(grouped(statement))
    app.add_typer(credits, name="credits")


def balance(place: Place, as_json: Json = False) -> None:
    """Show how many credits there are.

    $ sendwhy credits balance
    """
    from sendwhy_cli.client import Client

    with terminal.command_errors(as_json=as_json), Client.at(place) as client:
        account = client.get(BILLING, "account")
        terminal.show(account, _show_account, as_json=as_json)
        if not as_json:
            terminal.say(f"page: {client.page('credits')}\nnext: {place.command('credits ledger')}")


def top_up(
    credits: Annotated[int, typer.Argument(min=1, help="How many credits to add.")],
    reference: Annotated[str, typer.Option("--reference", help="What they were paid by: an invoice, say.")],
    place: Place,
    key: Annotated[
        str | None, typer.Option("--key", help="The Idempotency-Key; made from the reference unless it is given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Add credits. The same reference again adds nothing, so a command that was cut off can be repeated.

    $ sendwhy credits top-up 1000 --reference "invoice 7"

    $ sendwhy credits top-up 1000 --reference "invoice 7" --key second-half
    """
    from sendwhy_cli.client import Client

    with terminal.command_errors(as_json=as_json), Client.at(place) as client:
        body = {"credits": credits, "reference": reference}
        headers = {"idempotency-key": key or key_of(reference)}
        booked = client.ask("POST", BILLING, "top-ups", json=body, headers=headers)
        terminal.show(booked, _show_booked, as_json=as_json)
        if not as_json:
            terminal.say(f"next: {place.command('credits ledger')}")


def key_of(reference: str) -> str:
    """A key of the characters that one may have, the same for the same reference."""
    from hashlib import sha256

    return f"top-up-{sha256(reference.encode(errors='surrogatepass')).hexdigest()[:40]}"


def ledger(
    place: Place,
    message: Annotated[str | None, typer.Option("--message", help="Only the entries of this message.")] = None,
    kind: Annotated[
        str | None,
        typer.Option("--kind", help=f"One of {', '.join(LEDGER_KINDS)}.", autocompletion=among(*LEDGER_KINDS)),
    ] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
    as_json: Json = False,
) -> None:
    """List what was booked, newest first.

    $ sendwhy credits ledger --kind top_up

    $ sendwhy credits ledger --message bf-2026-000017
    """
    from sendwhy_cli.client import Client

    with terminal.command_errors(as_json=as_json), Client.at(place) as client:
        params = {"message_id": message, "kind": kind}
        found = client.listed(BILLING, "ledger", params=params, limit=limit, cursor=cursor)
        terminal.show(found, _show_ledger, as_json=as_json)
        if not as_json:
            terminal.say(f"page: {client.page('credits')}\nnext: {place.command('credits statement')}")
            if found["next_cursor"]:
                terminal.say(f"more: {place.command('credits ledger --cursor', found['next_cursor'])}")


def statement(
    place: Place,
    first: Annotated[
        str | None, typer.Option("--from", help="The first day, as 2026-11-01; the month's first unless it is given.")
    ] = None,
    last: Annotated[
        str | None, typer.Option("--to", help="The day after the last one; tomorrow unless it is given.")
    ] = None,
    by: Annotated[
        str, typer.Option("--by", help=f"A row for each of {', '.join(GROUPS)}.", autocompletion=among(*GROUPS))
    ] = "day",
    zone: Annotated[str, typer.Option("--zone", help="Whose days, as Europe/Madrid.")] = "UTC",
    csv: Annotated[Path | None, typer.Option("--csv", help="As CSV into this file; - for stdout.")] = None,
    as_json: Json = False,
) -> None:
    """Sum up what was spent, for accounting.

    $ sendwhy credits statement --from 2026-11-01 --to 2026-12-01 --by campaign --csv november.csv
    """
    from sendwhy_cli.client import Client
    from sendwhy_cli.files import written

    with terminal.command_errors(as_json=as_json), Client.at(place) as client:
        today = datetime.now(UTC).date()
        params: dict[str, str | int | None] = {
            "from": first or f"{today.replace(day=1)}",
            "to": last or f"{today + timedelta(days=1)}",
            "by": by,
            "zone": zone,
        }
        if csv is not None:
            with written(csv) as out:
                client.download(out.write, BILLING, "statements.csv", params=params)
            return
        found = client.get(BILLING, "statements", params=params)
        terminal.show(found, _show_statement, as_json=as_json)
        if not as_json:
            terminal.say(f"page: {client.page('credits', 'statement')}")


def _show_account(account: Mapping[str, Any]) -> None:
    terminal.facts(
        {
            "balance": f"{account['balance']:,} credits",
            "reserved": f"{account['reserved']:,}, for messages without a receipt yet",
            "last top-up": None if account["last_top_up"] is None else f"{account['last_top_up']:,} credits",
            "since then": None if account["last_top_up"] is None else _lowest(account["low_balance_percent"]),
        }
    )


def _lowest(percent: int | None) -> str:
    """The lowest of billing's thresholds (20, 10 and 0 %) that was reached; it stays until the next top-up."""
    if percent is None:
        return "more than 20 % of it was always left"
    return f"{percent} % of it or less was left" if percent else "there was a moment with nothing left"


def _show_booked(booked: Mapping[str, Any]) -> None:
    entry = booked["entry"]
    terminal.put(
        f"{entry['amount']:+,} credits ({entry['cause']}), balance {entry['balance_after']:,},"
        f" booked {terminal.utc(entry['at'])}"
    )


def _show_ledger(found: Mapping[str, Any]) -> None:
    is_wide = terminal.width() >= WIDE
    columns = ("AT (UTC)", "KIND", "CREDITS", "BALANCE", "MESSAGE", "BECAUSE")
    rows = [
        (
            terminal.moment(entry["at"], "%Y-%m-%d %H:%M:%S" if is_wide else "%m-%d %H:%M:%S"),
            entry["kind"],
            f"{entry['amount']:+,}" if entry["amount"] else "0",
            entry["balance_after"],
            entry["message_id"],
            _because(entry),
        )
        for entry in found["items"]
    ]
    if rows:
        terminal.table(columns, rows, right=("CREDITS", "BALANCE"))
    else:
        terminal.say("nothing is booked that fits")


def _because(entry: Mapping[str, Any]) -> str:
    """A reference that people gave, or the event that booked it with its reason."""
    if entry["cause_kind"] in ("top_up", "adjustment", None):
        return str(entry["cause"])
    return str(entry["cause_reason"] or entry["cause_kind"])


def _show_statement(found: Mapping[str, Any]) -> None:
    days = f"{found['from_day']} until before {found['to_day']} ({found['zone']})"
    if found["opening_balance"] is not None:
        days += f": balance {found['opening_balance']:,} → {found['closing_balance']:,} credits"
    terminal.put(days)
    groups = [str(group) for group in found["by"]]
    known = FIGURES if terminal.width() >= WIDE else NARROW_FIGURES
    shown = [name for name in known if found["totals"][name] or name in ("messages", "net")]
    rows = [[_group(row, group) for group in groups] + [row[name] for name in shown] for row in found["rows"]]
    rows.append(["total", *[""] * (len(groups) - 1), *(found["totals"][name] for name in shown)])
    headings = [name.replace("_", " ").upper() for name in (*groups, *shown)]
    terminal.table(headings, rows, right=headings[len(groups) :])


def _group(row: Mapping[str, Any], group: str) -> str | None:
    """A campaign is named with its kind: what else asks for messages stands in the same column."""
    named = (row["origin_kind"], row["origin_id"]) if group == "campaign" else (row[group],)
    return " ".join(filter(None, named)) or None
