"""Reading a sender's number and templates from Meta: at start, hourly, on demand, and when a template isn't found."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from asyncpg import Pool
from pydantic import JsonValue
from sendwhy.events import LATEST, event_id_of
from sendwhy.postgres import Connection, add_to_outbox
from sendwhy.topics import Topic, template_key, tombstone

from dispatcher import announce, drift, queue_store, store, sync_store, tier_store
from dispatcher.decide import Template, Waiting
from dispatcher.meta import Listing, Meta, MetaRefused, MetaUnreachable, Number
from dispatcher.store import NumberState, TemplateRow
from dispatcher.sync_store import Change
from dispatcher.tokens import TokenUnreadable, TokenVault

TTL_SECONDS_LEAST, TTL_SECONDS_MOST = 30, 2_592_000


async def sync_sender(pool: Pool, meta: Meta, vault: TokenVault, row: store.SenderRow, now: datetime) -> int:
    """Bring the sender's number and its account's templates up to date; returns how many templates Meta has. All or
    nothing: what fails, also in the middle of the pages, changes nothing but what is known of the failure.

    Raises MetaRefused, MetaUnreachable, TokenUnreadable.
    """
    sender = row.sender
    try:
        access = vault.access(vault.open(sender.workspace_id, sender.sender_id, row.token), row.app_id)
        number = await meta.number(sender.sender_id, access)
        listing = await meta.templates(sender.waba_id, access)
        portfolio_id = await meta.portfolio(sender.waba_id, access)
    except (MetaRefused, MetaUnreachable, TokenUnreadable) as error:
        async with pool.acquire(timeout=30) as connection:
            await sync_store.note_failure(connection, sender.sender_id, now, failure_words(error))
        raise
    async with pool.acquire(timeout=30) as connection, connection.transaction():
        await store.lock_account(connection, sender.waba_id)
        await _save(connection, row, Told(_state(number), listing, portfolio_id), now)
    return len(listing.entries)


def failure_words(error: MetaRefused | MetaUnreachable | TokenUnreadable) -> str:
    if isinstance(error, MetaRefused):
        return f"Meta refused: {error.error.details or error.error.title or 'no title'} (code {error.error.code})"
    if isinstance(error, MetaUnreachable):
        return f"Meta could not be reached: {error}"
    return "The stored token can't be decrypted with our keys; PUT the sender again"


@dataclass(frozen=True, slots=True)
class Told:
    """What Meta told of a number and its account; `portfolio_id`: who owns it, None where that wasn't told."""

    number: NumberState
    listing: Listing
    portfolio_id: str | None


async def _save(connection: Connection, row: store.SenderRow, told: Told, now: datetime) -> None:
    sender, listing = row.sender, told.listing
    standing = await store.senders_of(connection, "waba_id", sender.waba_id)
    before = next((one for one in standing if one.sender.sender_id == sender.sender_id), row)
    changed = await store.save_number(connection, sender.sender_id, told.number, said_at=now)
    if not changed:
        # An event told of the number while it was read; Meta is asked once more.
        await store.want_sync(connection, sender.sender_id, datetime.now(UTC))
    changes = [change for after in changed for change in number_changes(before, after)]
    announcements: list[announce.Announcement] = []
    # Of two syncs of one account at once, the one that began later knows better.
    if not any(one.sender.templates_synced_at and one.sender.templates_synced_at > now for one in standing):
        synced = await store.mark_synced(connection, sender.workspace_id, sender.waba_id, now, told.portfolio_id)
        changed += synced
        former = {one.sender.sender_id: one.sender.tier_key for one in standing}
        moved = {(former[one.sender.sender_id], one.sender.tier_key) for one in synced}
        for old, new in sorted(moved):
            if old != new:
                await tier_store.count_under(connection, old, new)
        found, announcements = await _save_templates(connection, sender.waba_id, listing, now)
        changes += found
        await sync_store.save_synced(
            connection,
            sender.waba_id,
            sender.sender_id,
            now,
            templates=len(listing.entries),
            incomplete=incomplete(sender.waba_id, listing),
            changes=changes,
        )
    latest = {one.sender.sender_id: one for one in changed}
    await add_to_outbox(connection, [*announcements, *announce.senders_updated(latest.values(), now)])
    for sender_id in latest:
        await queue_store.wake_waiting(connection, [Waiting.SYNC], sender_id=sender_id)


def incomplete(waba_id: str, listing: Listing) -> str | None:
    """Why there may be more templates than this list tells: a page that is missing, or an entry that can't be read, may
    be any of those that seem to be gone."""
    unread = sum(read_template(waba_id, entry, LATEST) is None for entry in listing.entries)
    return listing.incomplete or (f"{unread} of Meta's entries can't be read" if unread else None)


def number_changes(before: store.SenderRow, after: store.SenderRow) -> list[Change]:
    def told(row: store.SenderRow) -> dict[str, JsonValue]:
        return {
            "display_phone_number": row.display_phone_number,
            "quality": row.sender.quality,
            "messages_per_second": row.sender.messages_per_second,
            "messaging_limit": row.sender.messaging_limit,
        }

    old, new = told(before), told(after)
    name = after.sender.sender_id
    return [
        Change(of=name, what=field, before=old[field], after=new[field]) for field in new if old[field] != new[field]
    ]


def _state(number: Number) -> NumberState:
    return NumberState(
        display_phone_number=number.display_phone_number,
        quality=number.quality,
        messages_per_second=number.messages_per_second,
        messaging_limit=number.messaging_limit,
        unlimited=number.messaging_limit is None,
    )


async def _save_templates(
    connection: Connection, waba_id: str, listing: Listing, now: datetime
) -> tuple[list[Change], list[announce.Announcement]]:
    known = await store.templates_of(connection, waba_id)
    read = [read_template(waba_id, entry, now) for entry in listing.entries]
    told = {(one.template.name, one.template.language): one for one in read if one}
    # What a webhook told since this list was asked for may be newer than the list: Meta is asked once more.
    newer = {key for key, one in known.items() if one.reported_at and one.reported_at >= now}
    if newer:
        await store.want_account_sync(connection, waba_id, datetime.now(UTC))
    changed = [one for key, one in told.items() if key not in newer and (key not in known or _differs(known[key], one))]
    gone = (
        [key for key in known if key not in told and key not in newer] if incomplete(waba_id, listing) is None else []
    )
    saved = await store.save_templates(connection, waba_id, changed)
    await drift.note(connection, list(known.values()), saved, now)
    await store.delete_templates(connection, waba_id, gone)
    announcements = announce.templates_updated(saved, now)
    for name, language in gone:
        key = template_key(waba_id, name, language)
        announcements.append((event_id_of(f"{key}/{now.isoformat()}", "gone"), tombstone(Topic.TEMPLATE_UPDATED, key)))
    return template_changes(known, saved, gone), announcements


def template_changes(
    known: Mapping[tuple[str, str], TemplateRow], saved: Sequence[TemplateRow], gone: Sequence[tuple[str, str]]
) -> list[Change]:
    """What a sync changed, by template and field."""
    changes = []
    for row in saved:
        before = known.get((row.template.name, row.template.language))
        old, new = _told(before) if before else {}, _told(row)
        name = f"{row.template.name} ({row.template.language})"
        if before is None:
            changes.append(
                Change(of=name, what="added", before=None, after=f"{row.template.status} {row.template.category}")
            )
        elif before.template.components != row.template.components:
            changes.append(Change(of=name, what="components", before=None, after=None))
        changes += [
            Change(of=name, what=field, before=old[field], after=new[field])
            for field in old
            if old[field] != new[field]
        ]
    for name, language in gone:
        status = known[name, language].template.status
        changes.append(Change(of=f"{name} ({language})", what="removed", before=status, after=None))
    return changes


def _told(row: TemplateRow) -> dict[str, JsonValue]:
    return {
        "status": row.template.status,
        "category": row.template.category,
        "quality": row.quality,
        "rejected_reason": row.template.rejected_reason,
        "message_send_ttl_seconds": row.template.ttl_seconds,
        "parameter_format": row.parameter_format,
    }


def _differs(known: TemplateRow, told: TemplateRow) -> bool:
    return (_told(known), list(known.template.components)) != (_told(told), list(told.template.components))


def _ttl_seconds(told: Any) -> int | None:
    """30 s to 30 days, or -1 for the longest; None where it is neither."""
    text = str(told) if isinstance(told, str | int) and not isinstance(told, bool) else ""
    seconds = int(text) if re.fullmatch(r"-1|[0-9]{1,7}", text) else 0
    return seconds if seconds == -1 or TTL_SECONDS_LEAST <= seconds <= TTL_SECONDS_MOST else None


def read_template(waba_id: str, entry: Mapping[str, Any], now: datetime) -> TemplateRow | None:
    """One entry of Meta's message_templates; None where it has no name, language or status."""
    name, language, status = (entry.get(field) for field in ("name", "language", "status"))
    if not (isinstance(name, str) and isinstance(language, str) and isinstance(status, str)):
        return None
    components = entry.get("components")
    score = entry.get("quality_score")
    rejected = entry.get("rejected_reason")
    return TemplateRow(
        waba_id=waba_id,
        template=Template(
            name=name,
            language=language,
            status=status.upper(),
            category=str(entry.get("category") or "UNKNOWN").upper(),
            components=[part for part in components if isinstance(part, dict)] if isinstance(components, list) else [],
            rejected_reason=rejected if isinstance(rejected, str) and rejected not in ("", "NONE") else None,
            said_by="sync",
            said_at=now,
            ttl_seconds=_ttl_seconds(entry.get("message_send_ttl_seconds")),
        ),
        parameter_format=str(entry.get("parameter_format") or "POSITIONAL").upper(),
        quality=str(score.get("score")) if isinstance(score, dict) and score.get("score") else None,
        synced_at=now,
        version=1,
    )
