"""Setting and lifting holds in the caller's transaction, by the rules in holds.py; returns what is to be told of it."""

from collections.abc import Collection, Iterable
from dataclasses import replace
from datetime import datetime

import structlog
from sendwhy.postgres import Connection

from dispatcher import announce, hold_store, holds, queue_store, store
from dispatcher.answers import HoldScope
from dispatcher.decide import Waiting
from dispatcher.holds import WEBHOOK, Hold, Refusal
from dispatcher.store import Key, SenderRow

log = structlog.get_logger("sendwhy")


def scope_id(row: SenderRow, scope: HoldScope) -> tuple[HoldScope, str]:
    """What of this sender is held; the sender alone where nobody knows with whom it shares its token."""
    if scope.held is HoldScope.ACCOUNT:
        return scope, row.sender.waba_id
    if scope is HoldScope.PORTFOLIO:
        return scope, row.sender.portfolio_id
    if scope is HoldScope.TOKEN and row.token_tag is not None:
        return scope, row.token_tag
    return HoldScope.SENDER, row.sender.sender_id


async def hold_sender(
    connection: Connection, sender_id: str, scope: HoldScope, told: Refusal, now: datetime, *, token_tag: str | None
) -> list[announce.Announcement]:
    """Hold what this sender's refusal is about. `token_tag`: of the token that was refused, if that is known; of one
    that the sender doesn't use any more nothing follows."""
    known = (await store.senders(connection, [sender_id])).get(sender_id)
    if known is None:
        return []
    await store.lock_workspace(connection, known.sender.workspace_id)
    row = (await store.senders(connection, [sender_id]))[sender_id]
    if scope is HoldScope.TOKEN and token_tag is not None and token_tag != row.token_tag:
        return []
    name = (row.sender.workspace_id, *scope_id(row, scope))
    if scope is HoldScope.ACCOUNT:
        if await _is_over(connection, row.sender.waba_id, told):
            return []
        of_account = await hold_store.of_account(connection, row.sender.waba_id)
        if holds.is_told_by_event([one for one in of_account if one.workspace_id == name[0]], told):
            return []
    return await _hold(connection, name, told, now)


async def hold_account(
    connection: Connection, waba_id: str, workspaces: Iterable[str], scope: HoldScope, told: Refusal, now: datetime
) -> list[announce.Announcement]:
    """Hold the account by Meta's event; `scope`: its restriction or its ban."""
    announcements: list[announce.Announcement] = []
    if await _is_over(connection, waba_id, told):
        return announcements
    for workspace_id in sorted(workspaces):
        await store.lock_workspace(connection, workspace_id)
        announcements += await _hold(connection, (workspace_id, scope, waba_id), told, now)
    return announcements


async def _is_over(connection: Connection, waba_id: str, told: Refusal) -> bool:
    """Whether Meta said later that the account may send again, though that came first."""
    lifted_at = await hold_store.account_lifted_at(connection, waba_id)
    return lifted_at is not None and told.is_ended_by(lifted_at)


async def _hold(
    connection: Connection, name: tuple[str, HoldScope, str], told: Refusal, now: datetime
) -> list[announce.Announcement]:
    known = await hold_store.read(connection, *name)
    hold = holds.after(known, name, told, now)
    if hold is None:
        return []
    await hold_store.save(connection, hold)
    changed = await store.reflect_holds(connection, hold.workspace_id)
    concerned = [
        row
        for row in await store.senders_of(connection, "workspace_id", hold.workspace_id)
        if scope_id(row, hold.scope) == (hold.scope, hold.scope_id)
    ]
    news = holds.is_news(known, hold)
    if news:
        log.warning(
            "held, its messages wait",
            held=hold.scope.held,
            sender=concerned[0].sender.sender_id if concerned else None,
            senders=len(concerned),
            cause=hold.cause.code,
            said_by=hold.said_by,
            until=hold.until.isoformat() if hold.until else None,
        )
    told_once = announce.senders_held(hold, concerned, now) if news else []
    return [*announce.senders_updated(changed, now), *told_once]


async def lift(connection: Connection, row: SenderRow, scopes: Collection[HoldScope], now: datetime) -> list[SenderRow]:
    """End what holds this sender. Returns all senders that changed."""
    await store.lock_workspace(connection, row.sender.workspace_id)
    over = await hold_store.of_sender(connection, row.sender.sender_id, scopes)
    return await _lift(connection, row.sender.workspace_id, over, now)


async def tried(
    connection: Connection, row: SenderRow, scopes: Collection[HoldScope], now: datetime
) -> list[SenderRow]:
    """Meta took, or answered, a message of this sender that was to try what holds it. Returns all that changed."""
    await store.lock_workspace(connection, row.sender.workspace_id)
    over = []
    for one in await hold_store.of_sender(connection, row.sender.sender_id, scopes):
        if one.probe_at is None or one.probe_at > now:
            continue
        rest = holds.after_taken_try(one, now)
        if rest is None:
            over.append(one)
        else:
            await hold_store.save(connection, rest)
    return await _lift(connection, row.sender.workspace_id, over, now)


async def tried_by(connection: Connection, messages: Collection[Key], now: datetime) -> list[Hold]:
    """What webhooks told and one of these messages was to try."""
    found: list[Hold] = []
    for workspace_id in sorted({workspace_id for workspace_id, _ in messages}):
        own = [message_id for workspace, message_id in messages if workspace == workspace_id]
        standing = await hold_store.with_calls(connection, workspace_id, own, said_by=WEBHOOK)
        found += [one for one, called_at in standing if holds.is_tried_by(one, called_at, now)]
    return found


async def went_through(connection: Connection, messages: Collection[Key], now: datetime) -> list[SenderRow]:
    """End what these messages were to try, as receipts of them came; the caller has locked their workspaces. Returns
    all senders that changed."""
    changed: list[SenderRow] = []
    for one in await tried_by(connection, messages, now):
        changed += await _lift(connection, one.workspace_id, [one], now)
    return changed


async def lift_account(connection: Connection, waba_id: str, at: datetime) -> list[SenderRow]:
    """Meta's event says that the account may send again, which ends whatever it told before, also what comes later."""
    await hold_store.note_lift(connection, waba_id, at)
    changed: list[SenderRow] = []
    for one in await hold_store.of_account(connection, waba_id):
        if one.is_ended_by(at):
            await store.lock_workspace(connection, one.workspace_id)
            changed += await _lift(connection, one.workspace_id, [one], at)
    return changed


async def _lift(connection: Connection, workspace_id: str, over: Iterable[Hold], at: datetime) -> list[SenderRow]:
    for one in over:
        await hold_store.save(connection, replace(one, lifted_at=at))
    changed = await store.reflect_holds(connection, workspace_id)
    for row in changed:
        if row.sender.hold is None:
            log.info("no hold any more, its messages go on", sender=row.sender.sender_id)
            await queue_store.wake_waiting(connection, [Waiting.HOLD], sender_id=row.sender.sender_id)
    return changed
