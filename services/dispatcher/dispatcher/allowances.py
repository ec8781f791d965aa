"""What one round of a driver may use up of the limits that messages share: its room in the pace, pairs, throttles and
the messaging limit. Asked message by message, stored once."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from sendwhy.postgres import Connection
from sendwhy.reasons import ReasonCode

from dispatcher import claims, tier_store
from dispatcher.claims import Due
from dispatcher.decide import Facts, Lane, Send, Sender, Tier, Verdict, Wait, Waiting, decide
from dispatcher.limits import PairPace, Throttle, throttle_room, throttle_take
from dispatcher.store import Key


@dataclass(slots=True)
class Allowance:
    """`room`: how many may still go; `throttles`: of the campaigns whose lines are open, by id, locked;
    `clock`: seconds, of the pairs' time; `reached`: who of these people counts for the messaging limit already."""

    room: int
    pairs: PairPace
    throttles: dict[str, Throttle]
    clock: Callable[[], float]
    tier: Tier = field(default_factory=Tier)
    reached: set[str] = field(default_factory=set)
    _calls: Counter[str] = field(default_factory=Counter)
    _paired: list[str] = field(default_factory=list)

    def undo(self) -> None:
        """The round came to nothing: nobody whom it let go is called, and what isn't in the database is given back."""
        for phone in self._paired:
            self.pairs.give_back(phone)
        self._paired.clear()

    async def load_tier(self, connection: Connection, sender: Sender, due: Sequence[Due], now: datetime) -> None:
        if sender.messaging_limit is None or not any(one.message.template for one in due):
            return
        self.tier = await tier_store.lock_tier(connection, sender.tier_key, sender.messaging_limit, now)
        addresses = {one.message.address for one in due}
        at = self.tier.at or now
        self.reached = await tier_store.reached_people(connection, sender.tier_key, addresses, at)

    def judge(self, one: Due, known: Facts, now: datetime) -> Verdict | None:
        """None for what may go and finds no more room: it stays as it is."""
        message = one.message
        is_reached = message.address in self.reached
        pair_wait = self.pairs.wait_seconds(message.address, self.clock())
        facts = known
        # As they come, facts know of no wait and no limit; so nothing is copied for most.
        if pair_wait or self.tier.limit is not None:
            facts = replace(
                known,
                pair_wait=timedelta(seconds=pair_wait),
                tier=replace(self.tier, already_reached=True) if is_reached else self.tier,
            )
        verdict = decide(message, facts, now)
        if not isinstance(verdict, Send):
            return verdict
        if self.room <= 0:
            return None
        if one.throttled and not self._throttle_lets(one.campaign_id or "", now):
            return Wait(Waiting.THROTTLE, ReasonCode.RATE_LIMIT_EXCEEDED, None)
        self.room -= 1
        self.pairs.take(message.address, self.clock())
        self._paired.append(message.address)
        if verdict.counts_for_tier and message.address not in self.reached:
            self.reached.add(message.address)
            self.tier = replace(self.tier, used=self.tier.used + 1)
        return verdict

    def _throttle_lets(self, campaign_id: str, now: datetime) -> bool:
        """A message that doesn't stand in its campaign's own line goes there first."""
        throttle = self.throttles.get(campaign_id)
        if throttle is None or not throttle_room(throttle, now):
            return False
        self.throttles[campaign_id] = throttle_take(throttle, now)
        self._calls[campaign_id] += 1
        return True

    async def save(
        self, connection: Connection, sender: Sender, due: Sequence[Due], verdicts: dict[Key, Verdict], now: datetime
    ) -> dict[Key, datetime]:
        """Store what was used. Who waits for a place gets in `verdicts` the moment at which it should become free;
        returns by which moment each call counts for the messaging limit."""
        for campaign_id, calls in sorted(self._calls.items()):
            throttle = self.throttles[campaign_id]
            await claims.save_throttle(connection, sender.workspace_id, campaign_id, throttle, calls, now)
        if self.tier.at is None:
            return {}
        await self._promise_places(connection, sender, due, verdicts)
        calling = [
            one.message
            for one in due
            if isinstance(verdict := verdicts.get(one.message.key), Send) and verdict.counts_for_tier
        ]
        if not calling:
            return {}
        addresses = [message.address for message in calling]
        moments = await tier_store.add_reached(connection, sender.tier_key, addresses, self.tier.at)
        return {message.key: moment for message, moment in zip(calling, moments, strict=True)}

    async def _promise_places(
        self, connection: Connection, sender: Sender, due: Sequence[Due], verdicts: dict[Key, Verdict]
    ) -> None:
        waits: dict[Lane, list[tuple[Key, Wait]]] = {}
        for one in due:
            verdict = verdicts.get(one.message.key)
            if isinstance(verdict, Wait) and verdict.waiting_for is Waiting.TIER:
                waits.setdefault(one.message.lane, []).append((one.message.key, verdict))
        if not waits:
            return
        wanted: Mapping[Lane, int] = {lane: len(several) for lane, several in waits.items()}
        places = await tier_store.promise(connection, sender.tier_key, self.tier, wanted)
        for lane, several in waits.items():
            for (key, wait), moment in zip(several, places[lane], strict=True):
                verdicts[key] = replace(wait, until=moment)
