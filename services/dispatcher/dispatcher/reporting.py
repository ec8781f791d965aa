"""What Meta's webhooks on templates, numbers and accounts change, in the order of Meta's time and not of their arrival.

A webhook's time is in whole seconds of Meta's clock, a sync's of ours. One that is older than the last sync changes
nothing; where the two are so close that clocks might disagree, the account is read once more, which settles it.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from sendwhy.events import SenderReported, TemplateReported
from sendwhy.postgres import Connection

from dispatcher import announce, drift, holding, store, sync_store
from dispatcher.announce import Announcement
from dispatcher.holds import Refusal
from dispatcher.reports import AccountChange, account_change, report_of, template_after
from dispatcher.store import NumberState, SenderRow
from dispatcher.sync_store import Report

# Within this, the order of a webhook and a sync is not believed, but asked for.
CLOSE = timedelta(minutes=1)
Told = tuple[list[Announcement], set[str]]


def is_older(event_at: datetime, known_at: datetime | None) -> bool:
    """Whether a webhook tells of a time before what is known; in the same second it is believed."""
    return known_at is not None and event_at < known_at.replace(microsecond=0)


async def template_report(connection: Connection, event: TemplateReported, now: datetime) -> Told:
    """The announcements and the senders whose drivers look again."""
    # A sync of this account that is being stored comes wholly before or wholly after.
    await store.lock_account(connection, event.waba_id)
    senders = await store.senders_of(connection, "waba_id", event.waba_id)
    if not senders:
        return [], set()
    name, language = event.name or "", event.language or ""
    known = (await store.templates_named(connection, event.waba_id, [name])).get((name, language))
    after = known and template_after(known, event.field, event.raw, event.occurred_at)
    if known is None or after is None:
        # Edited, new, or told in words that we don't know: only Meta can say what it is now.
        await store.want_account_sync(connection, event.waba_id, now)
        if event.field != "message_template_components_update" and known is not None:
            report = report_of(event.field, event.raw, event.occurred_at)
            await sync_store.save_reports(connection, [(row.sender.sender_id, report) for row in senders])
        return [], {row.sender.sender_id for row in senders}
    if after == known:
        return [], set()
    synced = max((row.sender.templates_synced_at for row in senders if row.sender.templates_synced_at), default=None)
    if is_older(event.occurred_at, known.template.said_at) or is_older(event.occurred_at, synced):
        await _settle(connection, event.waba_id, event.occurred_at, synced, now)
        return [], set()
    saved = await store.save_templates(connection, event.waba_id, [replace(after, reported_at=now)])
    await drift.note(connection, [known], saved, now)
    return announce.templates_updated(saved, now), {row.sender.sender_id for row in senders}


async def _settle(
    connection: Connection, waba_id: str, event_at: datetime, synced: datetime | None, now: datetime
) -> None:
    if synced is not None and synced - event_at <= CLOSE:
        await store.want_account_sync(connection, waba_id, now)


async def sender_reports(connection: Connection, events: Sequence[SenderReported], now: datetime) -> Told:
    told: list[Announcement] = []
    woken: set[str] = set()
    lines: list[tuple[str, Report]] = []
    for event in events:
        of_account = await store.senders_of(connection, "waba_id", event.waba_id)
        if not of_account:
            continue
        named = _named(of_account, event)
        report = report_of(event.field, event.raw, event.occurred_at, event.reason)
        lines += [(row.sender.sender_id, report) for row in named or of_account]
        change = account_change(event.field, event.raw)
        changed = await _apply_number(connection, event, change, of_account, named, now)
        held, lifted = await _apply_hold(connection, event, change, of_account, now)
        latest = changed | {row.sender.sender_id: row for row in lifted}
        told += [*announce.senders_updated(latest.values(), now), *held]
        # A hold is told by its announcements; whoever may send again, or otherwise, is woken.
        woken |= {row.sender.sender_id for row in of_account} | latest.keys()
    if lines:
        await sync_store.save_reports(connection, lines)
    return told, woken


def _named(of_account: Sequence[SenderRow], event: SenderReported) -> list[SenderRow]:
    """The numbers that an event is about; none where it is about the account."""
    if event.sender_id:
        return [row for row in of_account if row.sender.sender_id == event.sender_id]
    digits = "".join(filter(str.isdigit, event.display_phone_number or ""))
    return [row for row in of_account if digits and row.display_phone_number == digits]


async def _apply_number(
    connection: Connection,
    event: SenderReported,
    change: AccountChange,
    of_account: Sequence[SenderRow],
    named: Sequence[SenderRow],
    now: datetime,
) -> dict[str, SenderRow]:
    changed: dict[str, SenderRow] = {}
    if change.portfolio is not None:
        # It speaks for those whose account it is, and for whoever shares a portfolio with them.
        keys = sorted({row.sender.tier_key for row in of_account if row.sender.templates_synced_at is not None})
        rows = [row for key in keys for row in await store.senders_of(connection, "tier_key", key)]
        changed |= await _numbers(connection, event, change.portfolio, rows, now)
    if change.number is not None:
        changed |= await _numbers(connection, event, change.number, named, now)
    return changed


async def _apply_hold(
    connection: Connection, event: SenderReported, change: AccountChange, of_account: Sequence[SenderRow], now: datetime
) -> tuple[list[Announcement], list[SenderRow]]:
    """What is told of a hold of the account, and the senders that may send again."""
    if change.hold is not None:
        refusal = Refusal(
            change.hold,
            f"Meta's {event.field}",
            event.occurred_at,
            change.hold_until,
            is_account_event=True,
            stops=change.hold_stops,
            replies_from=change.hold_replies_from,
        )
        workspaces = {row.sender.workspace_id for row in of_account}
        held = await holding.hold_account(connection, event.waba_id, workspaces, change.hold_scope, refusal, now)
        return held, []
    if change.lifted:
        return [], await holding.lift_account(connection, event.waba_id, event.occurred_at)
    return [], []


async def _numbers(
    connection: Connection, event: SenderReported, told: NumberState, rows: Sequence[SenderRow], now: datetime
) -> dict[str, SenderRow]:
    changed: dict[str, SenderRow] = {}
    for row in rows:
        sender_id = row.sender.sender_id
        saved = await store.save_number(connection, sender_id, told, said_at=event.occurred_at, reported_at=now)
        synced = row.sender.templates_synced_at
        if not saved and synced is not None and synced - event.occurred_at <= CLOSE:
            await store.want_number(connection, sender_id)
        changed |= {one.sender.sender_id: one for one in saved}
    return changed
