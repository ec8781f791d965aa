"""When calls start: one by one as the pace allows, however many were claimed at once and however long a commit took.

A driver claims ahead of its pace, since a claim costs nearly the same for one message as for a hundred. What is claimed
is marked in flight, so it stays little: a killed process leaves the outcome of all of it unknown.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from sendwhy.values import value_class

from dispatcher.limits import Budget, Pace
from dispatcher.results import Go
from dispatcher.tokens import Access

AHEAD_SECONDS = 0.2
AHEAD_AT_MOST = 100
WORTH_A_CLAIM = 10
CALL_STARTS_WITHIN_SECONDS = 5.0
# Who starts a thousand calls a second need not wake a thousand times; the pace lets more than this be caught up.
WAKE_AT_LEAST_SECONDS = 0.005


@value_class
class Marked:
    """A message that was marked in flight, and when (seconds of a clock that never goes back)."""

    go: Go
    access: Access | None
    marked_at: float

    def may_start(self, now: float) -> bool:
        return now - self.marked_at <= CALL_STARTS_WITHIN_SECONDS


class Starts:
    """One sender's calls, those that wait for their moment and those that are out. `call` makes one and sees to how it
    ended; `not_started` gets what was claimed and is not called."""

    def __init__(
        self,
        sender_id: str,
        budget: Budget,
        clock: Callable[[], float],
        call: Callable[[Marked], Coroutine[Any, Any, None]],
        not_started: Callable[[Marked], None],
    ) -> None:
        self._sender_id = sender_id
        self._budget, self._clock, self._call, self._not_started = budget, clock, call, not_started
        self._pace: Pace | None = None
        self._waiting: deque[Marked] = deque()
        self._out: set[asyncio.Task[None]] = set()
        self._claiming = 0
        self._timer: asyncio.TimerHandle | None = None

    def set_limit(self, per_second: int) -> None:
        if self._pace is None:
            self._pace = Pace.start(per_second, self._clock())
        elif self._pace.per_second != per_second:
            self._pace = self._pace.change(per_second, self._clock())

    def ahead(self) -> int:
        """How many may be claimed and wait for their moment."""
        share = AHEAD_SECONDS / self._pace.interval if self._pace else 1
        return max(1, min(AHEAD_AT_MOST, int(share)))

    @property
    def is_busy(self) -> bool:
        return bool(self._waiting or self._out)

    def reserve(self) -> int:
        """Room for one claim, held until `claimed`; 0 while enough waits, or too many calls are out."""
        wanted = self.ahead() - len(self._waiting)
        room = min(wanted, self._budget.room(self._sender_id))
        # A claim for one or two messages is a waste while calls are out that will make room for more.
        is_worth_it = wanted * 2 >= self.ahead() and (room >= min(wanted, WORTH_A_CLAIM) or not self._out)
        self._claiming = room if is_worth_it else 0
        self._budget.take(self._sender_id, self._claiming)
        return self._claiming

    def claimed(self, marked: list[Marked]) -> None:
        """The claim that room was reserved for has ended, and these are to be called."""
        self._budget.give_back(self._sender_id, self._claiming - len(marked))
        self._claiming = 0
        self._waiting.extend(marked)
        self._start_due()

    def worth_a_claim_in(self) -> float:
        """Seconds until about half of what may be claimed ahead has started."""
        if self._pace is None:
            return 0.0
        surplus = len(self._waiting) - self.ahead() // 2
        rest = self._pace.wait_seconds(self._clock()) if self._waiting else 0.0
        return max(WAKE_AT_LEAST_SECONDS, rest + (surplus - 1) * self._pace.interval)

    def rest(self, seconds: float) -> None:
        if self._pace is not None:
            self._pace.rest(seconds, self._clock())

    def drop(self) -> None:
        """Call none of those that wait."""
        waiting, self._waiting = list(self._waiting), deque()
        self._budget.give_back(self._sender_id, len(waiting))
        for marked in waiting:
            self._not_started(marked)

    async def ended(self, within_seconds: float) -> None:
        """Wait until nothing waits and nothing is out; what is left after so many seconds goes on by itself."""
        end = self._clock() + within_seconds
        while (self._waiting or self._out) and self._clock() < end:
            if self._out:
                await asyncio.wait(self._out, timeout=min(0.05, end - self._clock()))
            else:
                await asyncio.sleep(0.01)

    def _start_due(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pace is None:
            return
        now = self._clock()
        self._drop_late(now)
        count = min(self._pace.available(now), len(self._waiting))
        self._pace.take(count, now)
        for _ in range(count):
            task = asyncio.create_task(self._call(self._waiting.popleft()))
            self._out.add(task)
            task.add_done_callback(self._is_back)
        if self._waiting:
            pause = max(WAKE_AT_LEAST_SECONDS, self._pace.wait_seconds(now))
            self._timer = asyncio.get_running_loop().call_later(pause, self._start_due)

    def _drop_late(self, now: float) -> None:
        while self._waiting and not self._waiting[0].may_start(now):
            self._budget.give_back(self._sender_id, 1)
            self._not_started(self._waiting.popleft())

    def _is_back(self, task: "asyncio.Task[None]") -> None:
        self._out.discard(task)
        self._budget.give_back(self._sender_id, 1)
