"""After a restored backup (`rewind`): what billing has decided and booked since is taken from what it told of it.

Else a message that was funded might be refused, or charged at another price, when it is heard again (ADR 42).
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import structlog
from sendwhy.events import AccountUpdated, SendFunded, SendRejected
from sendwhy.postgres import Connection, Decision, MessageKey, add_decisions
from sendwhy.recovery import Recovery, events_of
from sendwhy.service import Runtime
from sendwhy.stage import Record
from sendwhy.topics import Outgoing, Topic

from billing import store
from billing.decide import Account, Ask, Cause, Charge, Entry, Kind, adjust, country_of, fund, top_up
from billing.stages import KEPT_AFTER_EXPIRY, STEP, store_fundings

BY_HAND = (Kind.TOP_UP, Kind.ADJUSTMENT)
COVER = "restored backup: covers what was reserved after it"
ACTOR = "rewind"
# A refusal doesn't say when its message would have expired; none may live longer.
KEPT_AFTER_REFUSAL = KEPT_AFTER_EXPIRY * 2
_ADD_ONCE = """
insert into idempotency_key (workspace_id, key, digest) values ($1, $2, '') on conflict do nothing returning key
"""

log = structlog.get_logger("sendwhy")


class Recovering:
    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def register(self) -> None:
        self._runtime.before_rewind(self.recover)

    async def recover(self, recovery: Recovery) -> None:
        by_hand: dict[str, dict[int, Mapping[str, Any]]] = {}
        async for batch in recovery.told(Topic.ACCOUNT_UPDATED):
            for _, account in events_of(batch, AccountUpdated):
                if account.last_entry is not None and account.last_entry.get("kind") in BY_HAND:
                    by_hand.setdefault(account.workspace_id, {})[account.version] = account.last_entry
        funded = refused = covered = 0
        async with self._runtime.pool.acquire(timeout=30) as connection:
            # All credits first: what was reserved since stood on them.
            async with connection.transaction():
                booked = await book_again(connection, by_hand)
            async for batch in recovery.told(Topic.SEND_FUNDED):
                async with connection.transaction():
                    new, cover = await adopt_funded(connection, events_of(batch, SendFunded))
                funded, covered = funded + new, covered + cover
            async for batch in recovery.told(Topic.SEND_REJECTED):
                async with connection.transaction():
                    refused += await adopt_refused(connection, events_of(batch, SendRejected))
        log.warning(
            "what was booked after the backup is booked again; compare the top-ups since with your invoices",
            top_ups_and_adjustments=booked,
            reservations=funded,
            refusals=refused,
            credits_lent=covered,
        )


async def book_again(connection: Connection, told: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> int:
    """Book the top-ups and adjustments (ledger entries by workspace and version) that the ledger hasn't; returns how
    many. A repeat books none: versions go on, so that each is remembered by the version it had."""
    accounts = await store.lock_or_open_accounts(connection, told)
    entries: list[Entry] = []
    for workspace, account in accounts.items():
        missing = {version: one for version, one in told[workspace].items() if version > account.version}
        # What takes credits comes last: what gave them may have come after it, and covers it all the same.
        for version, one in sorted(missing.items(), key=lambda item: (item[1]["amount"] < 0, item[0])):
            if await connection.fetchval(_ADD_ONCE, workspace, f"restored/{version}/{one['at']}") is None:
                continue
            booked = _again(account, one)
            if booked is None:
                log.error("an adjustment isn't covered any more: book it by hand", workspace=workspace, entry=dict(one))
                continue
            account, entry = booked
            entries.append(entry)
        accounts[workspace] = account
    if entries:
        await store.add_entries(connection, entries, at=datetime.now(UTC))
        await store.save_accounts(connection, list(accounts.values()))
    return len(entries)


def _again(account: Account, one: Mapping[str, Any]) -> tuple[Account, Entry] | None:
    cause, actor = str(one["cause"]), str(one["actor"])
    if one["kind"] == Kind.TOP_UP:
        return top_up(account, int(one["amount"]), reference=cause, actor=actor)
    booked = adjust(account, int(one["amount"]), why=cause, actor=actor)
    return booked if isinstance(booked, tuple) else None


async def adopt_funded(connection: Connection, told: Sequence[tuple[Record[None], SendFunded]]) -> tuple[int, int]:
    """Store these decisions and reserve their prices, where nothing is decided yet; returns how many, and the credits
    that had to be lent: what was given back in between is only heard later."""
    events = {(event.workspace_id, event.message_id): (record, event) for record, event in told}
    accounts = await store.lock_or_open_accounts(connection, (workspace for workspace, _ in events))
    decisions = [
        _decision(key, record, event.event_id, event.expires_at + KEPT_AFTER_EXPIRY)
        for key, (record, event) in events.items()
    ]
    added = await add_decisions(connection, decisions)
    asks: dict[str, list[Ask]] = {}
    for key in events:
        if key in added:
            asks.setdefault(key[0], []).append(_ask(events[key][1]))
    at = datetime.now(UTC)
    lent, covers = _cover(accounts, asks)
    if covers:
        await store.add_entries(connection, covers, at=at)
    # What they are asked for is covered: none is refused, and no refusal tells the tallies.
    fundings = {name: fund(accounts[name], group, {}) for name, group in asks.items()}
    await store_fundings(connection, fundings, decisions, at=at)
    return len(added), lent


def _cover(accounts: dict[str, Account], asks: Mapping[str, Sequence[Ask]]) -> tuple[int, list[Entry]]:
    """Adjustments where a balance doesn't cover what was funded; the accounts are changed with them."""
    lent, covers = 0, []
    for workspace, group in asks.items():
        short = sum(ask.charge.price.credits for ask in group) - accounts[workspace].balance
        if short <= 0:
            continue
        booked = adjust(accounts[workspace], short, why=COVER, actor=ACTOR)
        assert isinstance(booked, tuple)
        accounts[workspace], entry = booked
        covers.append(entry)
        lent += short
        log.warning(
            "credits were lent: book as much back once all that came after the backup is read again, or after the "
            "missing top-up",
            workspace=workspace,
            credits=short,
        )
    return lent, covers


def _ask(event: SendFunded) -> Ask:
    origin, price = event.request.origin, event.price
    country = country_of(event.resolved, price.calling_code)
    charge = Charge(event.message_id, price, origin.kind, origin.id, country=country)
    return Ask(charge, Cause(str(event.event_id), Topic.SEND_FUNDED))


async def adopt_refused(connection: Connection, told: Iterable[tuple[Record[None], SendRejected]]) -> int:
    decisions = {
        key: _decision(key, record, event.event_id, event.occurred_at + KEPT_AFTER_REFUSAL)
        for record, event in told
        if (key := (event.workspace_id, event.message_id))
    }
    return len(await add_decisions(connection, list(decisions.values())))


def _decision(key: MessageKey, record: Record[None], event_id: Any, prune_after: datetime) -> Decision:
    """What was told, byte for byte."""
    outgoing = Outgoing(record.topic, record.key, record.value, record.headers)
    return Decision(*key, STEP, event_id, outgoing, prune_after)
