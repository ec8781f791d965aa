"""Until when a replica may believe that its locks are its own. Pure: seconds of a clock that never goes back.

A frozen process (SIGSTOP, a paused machine) keeps its connections open, and PostgreSQL would keep its locks for ever:
the server ends a session that is silent for `FROZEN_AFTER_SECONDS`. Whoever wakes can't know whether it has; but nobody
can have taken over before so many seconds have gone since the last statement that was answered was *sent*.
"""

from dataclasses import dataclass

FROZEN_AFTER_SECONDS = 5.0
# asyncpg prepares a statement by messages that no Sync follows at once. For the server, who freezes then is not idle
# (in a transaction or not), and no statement's time runs out while it reads: only a transaction's own time ends that
# (PostgreSQL 17 and later). Nothing of ours takes so long but `app.park_what_may_be_sent`.
TRANSACTION_SECONDS = 15.0
# What a replica that may freeze asks of the server, on every connection that holds locks.
SILENCE_ENDS_TRANSACTIONS = {
    "idle_in_transaction_session_timeout": f"{FROZEN_AFTER_SECONDS:.0f}s",
    "transaction_timeout": f"{TRANSACTION_SECONDS:.0f}s",
}
SILENCE_ENDS_SESSIONS = {
    **SILENCE_ENDS_TRANSACTIONS,
    "transaction_timeout": f"{FROZEN_AFTER_SECONDS:.0f}s",
    "idle_session_timeout": f"{FROZEN_AFTER_SECONDS:.0f}s",
}


@dataclass(slots=True)
class Lease:
    """Over from the start: no lock is held yet."""

    _until: float = float("-inf")

    def renew(self, asked_at: float) -> None:
        """The server has answered, over the connection that holds the locks, what was asked at this moment."""
        self._until = max(self._until, asked_at + FROZEN_AFTER_SECONDS)

    def end(self) -> None:
        self._until = float("-inf")

    def holds(self, now: float) -> bool:
        return now < self._until
