"""Reading a sender's number and templates from Meta: at start, hourly, on demand, and when a template isn't found."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from asyncpg import Pool
from sendwhy.events import event_id_of
from sendwhy.postgres import add_to_outbox
from sendwhy.topics import Topic, template_key, tombstone

from dispatcher import announce, queue_store, store
from dispatcher.decide import Template, Waiting
from dispatcher.meta import Meta, Number
from dispatcher.store import NumberState, TemplateRow
from dispatcher.tokens import Access


async def sync_sender(pool: Pool, meta: Meta, row: store.SenderRow, access: Access, now: datetime) -> int:
    """Bring the sender's number and its account's templates up to date; returns how many templates Meta has.

    Raises MetaRefused, MetaUnreachable.
    """
    number = await meta.number(row.sender.sender_id, access)
    told = [entry async for entry in meta.templates(row.sender.waba_id, access)]
    templates = [one for one in (read_template(row.sender.waba_id, entry, now) for entry in told) if one]
    async with pool.acquire(timeout=30) as connection, connection.transaction():
        await store.lock_account(connection, row.sender.waba_id)
        changed = await store.save_number(connection, row.sender.sender_id, _state(number))
        changed += await store.mark_synced(connection, row.sender.waba_id, now)
        announcements = await _save_templates(connection, row.sender.waba_id, templates, now)
        latest = {one.sender.sender_id: one for one in changed}
        announcements += announce.senders_updated(latest.values(), now)
        await add_to_outbox(connection, announcements)
        for sender_id in latest:
            await queue_store.wake_waiting(connection, [Waiting.SYNC], sender_id=sender_id)
    return len(templates)


def _state(number: Number) -> NumberState:
    return NumberState(
        display_phone_number=number.display_phone_number,
        quality=number.quality,
        messages_per_second=number.messages_per_second,
        messaging_limit=number.messaging_limit,
        unlimited=number.messaging_limit is None,
    )


async def _save_templates(
    connection: Any, waba_id: str, templates: list[TemplateRow], now: datetime
) -> list[announce.Announcement]:
    known = await store.templates_of(connection, waba_id)
    told = {(one.template.name, one.template.language): one for one in templates}
    # What a webhook told since this list was asked for is newer than the list.
    newer = {key for key, one in known.items() if one.template.said_at and one.template.said_at > now}
    changed = [one for key, one in told.items() if key not in newer and (key not in known or _differs(known[key], one))]
    gone = [key for key in known if key not in told and key not in newer]
    saved = await store.save_templates(connection, waba_id, changed)
    await store.delete_templates(connection, waba_id, gone)
    announcements = announce.templates_updated(saved, now)
    for name, language in gone:
        key = template_key(waba_id, name, language)
        announcements.append((event_id_of(f"{key}/{now.isoformat()}", "gone"), tombstone(Topic.TEMPLATE_UPDATED, key)))
    return announcements


def _differs(known: TemplateRow, told: TemplateRow) -> bool:
    def facts(row: TemplateRow) -> tuple[Any, ...]:
        one = row.template
        return one.status, one.category, list(one.components), one.rejected_reason, row.quality, row.parameter_format

    return facts(known) != facts(told)


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
        ),
        parameter_format=str(entry.get("parameter_format") or "POSITIONAL").upper(),
        quality=str(score.get("score")) if isinstance(score, dict) and score.get("score") else None,
        synced_at=now,
        version=1,
    )
