"""Reading a sender's number and templates from Meta: at start, hourly, on demand, and when a template isn't found."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from asyncpg import Pool
from pydantic import JsonValue
from pydantic_core import to_json
from sendwhy.events import LATEST, event_id_of
from sendwhy.postgres import Connection, add_to_outbox
from sendwhy.topics import Topic, template_key, tombstone

from dispatcher import announce, drift, queue_store, store, sync_store, tier_store
from dispatcher.clock import utc_now
from dispatcher.decide import SYNC_INTERVAL, Sender, Template, Waiting
from dispatcher.meta import Listing, Meta, MetaRefused, MetaUnreachable, Number
from dispatcher.store import NumberState, TemplateRow
from dispatcher.sync_store import Change
from dispatcher.syncs import is_account_due, is_number_due
from dispatcher.tokens import TokenUnreadable, TokenVault

# Longer than reading an account takes: whoever reads it may have died.
TURN_LASTS = timedelta(minutes=1)
TEMPLATE_BYTES_MAX = 1024 * 1024
TTL_SECONDS_LEAST, TTL_SECONDS_MOST = 30, 2_592_000


async def sync_sender(pool: Pool, meta: Meta, vault: TokenVault, row: store.SenderRow, now: datetime) -> int:
    """Bring the sender's number and its account's templates up to date; returns how many templates Meta has. All or
    nothing: what fails, also in the middle of the pages, changes nothing but what is known of the failure.

    Raises MetaRefused, MetaUnreachable, TokenUnreadable.
    """
    told = await _sync(pool, meta, vault, row, now, account=True, number=True)
    assert told.account is not None
    return len(told.account.listing.entries)


async def sync_due(
    pool: Pool, meta: Meta, vault: TokenVault, sender_id: str, now: datetime, *, is_template_missing: bool
) -> "Ended":
    """Read what is due of a sender: its number, and the account's templates unless another of its numbers reads them.

    Raises as `sync_sender`.
    """
    async with pool.acquire(timeout=30) as connection, connection.transaction():
        row = (await store.senders(connection, [sender_id])).get(sender_id)
        if row is None:
            return Ended()
        taken_until = await _take_turn(connection, row, now, is_template_missing=is_template_missing)
        # As it is now that nobody else reads it: whoever did may just have ended.
        row = (await store.senders(connection, [sender_id]))[sender_id]
    mine = taken_until is None and _is_wanted(row, now, is_template_missing=is_template_missing)
    number = is_number_due(row.read, now)
    if not (mine or number):
        return Ended(again_at=taken_until)
    account, failed = (row.sender.workspace_id, row.sender.waba_id), True
    try:
        told = await _sync(pool, meta, vault, row, now, account=mine, number=number)
        failed = False
    finally:
        if mine:
            async with pool.acquire(timeout=30) as connection, connection.transaction():
                await sync_store.end_turn(connection, account, utc_now(), failed=failed)
    return Ended(None if told.account is None else len(told.account.listing.entries), taken_until)


@dataclass(frozen=True, slots=True)
class Ended:
    """`templates`: how many Meta has, where they were read; `again_at`: when another number's turn to read them ends,
    where it is another's."""

    templates: int | None = None
    again_at: datetime | None = None


def _is_wanted(row: store.SenderRow, now: datetime, *, is_template_missing: bool) -> bool:
    """A template that isn't found triggers a sync, but not just after one."""
    synced = row.sender.templates_synced_at
    is_fresh = synced is not None and now - synced < SYNC_INTERVAL
    return is_account_due(row.read, now) or (is_template_missing and not is_fresh)


async def _take_turn(
    connection: Connection, row: store.SenderRow, now: datetime, *, is_template_missing: bool
) -> datetime | None:
    if not _is_wanted(row, now, is_template_missing=is_template_missing):
        return None
    account = (row.sender.workspace_id, row.sender.waba_id)
    return await sync_store.take_turn(connection, account, now, now + TURN_LASTS)


async def _sync(
    pool: Pool, meta: Meta, vault: TokenVault, row: store.SenderRow, now: datetime, *, account: bool, number: bool
) -> "Told":
    sender = row.sender
    try:
        access = vault.access(vault.open(sender.workspace_id, sender.sender_id, row.token), row.app_id)
        state = _state(await meta.number(sender.sender_id, access)) if number else None
        of_account = None
        if account:
            listing = await meta.templates(sender.waba_id, access)
            of_account = AccountTold(listing, await meta.portfolio(sender.waba_id, access))
    except (MetaRefused, MetaUnreachable, TokenUnreadable) as error:
        async with pool.acquire(timeout=30) as connection:
            code = error.error.code if isinstance(error, MetaRefused) else None
            await sync_store.note_failure(connection, sender.sender_id, now, failure_words(error), code)
        raise
    told = Told(state, of_account)
    async with pool.acquire(timeout=30) as connection, connection.transaction():
        if account:
            await store.lock_account(connection, sender.waba_id)
        await _save(connection, row, told, now)
    return told


def failure_words(error: MetaRefused | MetaUnreachable | TokenUnreadable) -> str:
    if isinstance(error, MetaRefused):
        return f"Meta refused: {error.error.details or error.error.title or 'no title'} (code {error.error.code})"
    if isinstance(error, MetaUnreachable):
        return f"Meta could not be reached: {error}"
    return "The stored token can't be decrypted with our keys; PUT the sender again"


@dataclass(frozen=True, slots=True)
class AccountTold:
    """`portfolio_id`: who owns the account, None where that wasn't told."""

    listing: Listing
    portfolio_id: str | None


@dataclass(frozen=True, slots=True)
class Told:
    """What Meta told of a number and its account, each None where it wasn't asked."""

    number: NumberState | None
    account: AccountTold | None


async def _save(connection: Connection, row: store.SenderRow, told: Told, now: datetime) -> None:
    sender = row.sender
    standing = await store.senders_of(connection, "waba_id", sender.waba_id)
    changed: list[store.SenderRow] = []
    changes: list[Change] = []
    announcements: list[announce.Announcement] = []
    if told.number is not None:
        before = next((one for one in standing if one.sender.sender_id == sender.sender_id), row)
        changed = await store.save_number(connection, sender.sender_id, told.number, said_at=now)
        if not changed:
            # An event told of the number while it was read; Meta is asked once more.
            await store.want_number(connection, sender.sender_id)
        changes = [change for after in changed for change in number_changes(before, after)]
    # Of two syncs of one account at once, the one that began later knows better.
    is_outdated = any(one.sender.templates_synced_at and one.sender.templates_synced_at > now for one in standing)
    if told.account is not None and not is_outdated:
        synced, announcements = await _save_account(connection, sender, standing, told.account, now, changes)
        changed = [*changed, *synced]
    elif changes and not is_outdated:
        await sync_store.note_changes(connection, sender.waba_id, now, changes)
    await sync_store.forget_failure(connection, sender.sender_id)
    latest = {one.sender.sender_id: one for one in changed}
    await add_to_outbox(connection, [*announcements, *announce.senders_updated(latest.values(), now)])
    for sender_id in latest:
        await queue_store.wake_waiting(connection, [Waiting.SYNC], sender_id=sender_id)


async def _save_account(
    connection: Connection,
    sender: Sender,
    standing: Sequence[store.SenderRow],
    told: AccountTold,
    now: datetime,
    changes: Sequence[Change],
) -> tuple[list[store.SenderRow], list[announce.Announcement]]:
    """`changes`: what was found of the number itself."""
    listing = told.listing
    synced = await store.mark_synced(connection, sender.workspace_id, sender.waba_id, now, told.portfolio_id)
    former = {one.sender.sender_id: one.sender.tier_key for one in standing}
    moved = {(former[one.sender.sender_id], one.sender.tier_key) for one in synced}
    for old, new in sorted(moved):
        if old != new:
            await tier_store.count_under(connection, old, new)
    found, announcements = await _save_templates(connection, sender.waba_id, listing, now)
    await sync_store.save_synced(
        connection,
        sender.waba_id,
        sender.sender_id,
        now,
        templates=len(listing.entries),
        incomplete=incomplete(sender.waba_id, listing),
        changes=[*changes, *found],
    )
    return synced, announcements


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
        unlimited=number.unlimited,
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
    """One entry of Meta's message_templates; None where it has no name, language or status, or is larger than any of
    Meta's could be: told on it would be a record that Kafka refuses."""
    name, language, status = (entry.get(field) for field in ("name", "language", "status"))
    if not (isinstance(name, str) and isinstance(language, str) and isinstance(status, str)):
        return None
    components = entry.get("components")
    if len(to_json(components)) > TEMPLATE_BYTES_MAX:
        return None
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
