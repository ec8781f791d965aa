"""Rotation of TOKEN_ENCRYPTION_KEY: what an older key sealed is sealed anew with the newest, a few rows at a time."""

from dataclasses import replace

import structlog
from sendwhy.metrics import Metric
from sendwhy.service import Runtime

from dispatcher import store
from dispatcher.store import SealedToken
from dispatcher.tokens import TokenUnreadable, TokenVault, token_tag

STEP = 100
EVERY_SECONDS = 600.0

log = structlog.get_logger("sendwhy")


class Resealer:
    def __init__(self, runtime: Runtime, vault: TokenVault) -> None:
        self._runtime, self._vault = runtime, vault

    def register(self) -> None:
        self._runtime.every(EVERY_SECONDS, "token seals", self.run)

    async def run(self) -> None:
        """Afterwards the gauge says how many tokens still need an older key; at 0, it can be removed."""
        total = old = done = unreadable = 0
        after = ""
        while True:
            async with self._runtime.pool.acquire(timeout=30) as connection:
                rows = await store.sealed_tokens(connection, after, STEP)
                if not rows:
                    break
                anew = [row for row in rows if row.tag is None or not self._vault.is_newest(row.token)]
                sealed = [(row, one) for row in anew if (one := self._sealed_anew(row)) is not None]
                done += await store.replace_tokens(connection, sealed)
            after = rows[-1].sender_id
            total, old, unreadable = total + len(rows), old + len(anew), unreadable + len(anew) - len(sealed)
        left = old - done - unreadable
        counts = (("older_key", left), ("unreadable", unreadable))
        self._runtime.metrics.replace(
            Metric.TOKENS_TO_SEAL, [({"state": state}, float(count)) for state, count in counts]
        )
        say = log.warning if unreadable else log.info if old else log.debug
        say("tokens are sealed with the newest key", tokens=total, anew=done, left=left, unreadable=unreadable)

    def _sealed_anew(self, row: SealedToken) -> SealedToken | None:
        try:
            token = self._vault.open(row.workspace_id, row.sender_id, row.token)
        except TokenUnreadable:
            return None
        return replace(row, token=self._vault.seal(row.workspace_id, row.sender_id, token), tag=token_tag(token))
