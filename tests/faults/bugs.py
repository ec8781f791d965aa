"""Bugs to plant: a fault run with one of them must turn red, or the harness proves nothing.

A bug is a list of replacements in today's source, made in a copy. Whoever has that copy first on PYTHONPATH runs the
bug: what is installed editable comes after it. `python tests/faults/bugs.py` lists them,
`python tests/faults/bugs.py NAME FOLDER` plants one.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMON = "libs/common/sendwhy"
CONSENT = "services/consent/consent"
BILLING = "services/billing/billing"
DISPATCHER = "services/dispatcher/dispatcher"
INGEST = "services/webhook-ingest/webhook_ingest"
LOG = "services/message-log/message_log"


@dataclass(frozen=True, slots=True)
class Change:
    """In `file` of `package` (a folder), the text `old`, which stands there once, becomes `new`."""

    package: str
    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Bug:
    """`scenarios` provoke it: any of them, by the nemesis' names ("" for the workload alone). `invariants`: what the
    judge finds broken then, at least one of them. `pace`: messages a second that each number may, where a bug shows
    only once a number has all that it can do; `calm`: seconds after each fault, where it breaks what is promised in
    calm."""

    name: str
    what: str
    scenarios: tuple[str, ...]
    invariants: tuple[str, ...]
    changes: tuple[Change, ...]
    pace: int = 80
    calm: float = 0


BUGS = (
    Bug(
        "ack-before-work",
        "offsets are committed as soon as a batch was read",
        ("dies-before-commit",),
        ("I1", "I3", "I4", "I8", "I14"),
        (
            Change(
                COMMON,
                "stage.py",
                "        good, bad = self._parse_all(records)\n",
                "        await self._commit(consumer, _next_offsets(records))\n"
                "        good, bad = self._parse_all(records)\n",
            ),
        ),
    ),
    Bug(
        "commit-before-publish",
        "offsets are committed once the database has the batch, before Kafka has what came of it",
        ("dies-before-publish",),
        ("I1", "I4"),
        (
            Change(
                COMMON,
                "stage.py",
                "        await self._producer.publish([*self._dead_letters(bad), *aside, *publish])\n"
                "        await self._commit(consumer, _next_offsets(records))\n",
                "        await self._commit(consumer, _next_offsets(records))\n"
                "        await self._producer.publish([*self._dead_letters(bad), *aside, *publish])\n",
            ),
        ),
    ),
    Bug(
        "offset-committed-on-failure",
        "a batch that failed is left behind instead of being read again",
        ("pg-crash", "pg-terminated"),
        ("I1", "I4", "I5", "I14"),
        (
            Change(
                COMMON,
                "stage.py",
                "                consumer.seek(place, offset)\n",
                "                records = [record_of(self.topic, one) for one in batch]\n"
                "                await self._commit(consumer, _next_offsets(records))\n",
            ),
        ),
    ),
    Bug(
        "no-on-conflict",
        "a message that is in the dispatcher's queue already is inserted again",
        ("replica-killed", "rebalance-storm", "offsets-lost"),
        ("I5",),
        (
            Change(
                DISPATCHER,
                "queue_store.py",
                "on conflict do nothing\nreturning workspace_id, message_id\n",
                "returning workspace_id, message_id\n",
            ),
        ),
    ),
    Bug(
        "mark-after-call",
        "a message is marked in flight once its call has ended",
        ("",),
        ("I2",),
        (
            Change(
                DISPATCHER,
                "driver.py",
                "queue_store.mark_in_flight(connection, [go.due.message.key for go in going], self._fence)",
                "asyncio.sleep(0)",
            ),
            Change(
                DISPATCHER,
                "driver.py",
                "            metrics.inc(Metric.META_CALLS_IN_FLIGHT, -1)\n",
                "            metrics.inc(Metric.META_CALLS_IN_FLIGHT, -1)\n"
                "            async with self._runtime.pool.acquire() as connection:\n"
                "                keys = [marked.go.due.message.key]\n"
                "                await queue_store.mark_in_flight(connection, keys, self._fence)\n",
            ),
        ),
    ),
    Bug(
        "in-flight-goes-again",
        # While webhooks come, they mostly tell that Meta has a message before another driver looks at it.
        "what a dead driver left in flight waits again, and is called a second time",
        ("dies-after-request", "service-gone"),
        ("I2",),
        (
            Change(
                DISPATCHER,
                "queue_store.py",
                "update message set state = 'unknown', in_flight_at = coalesce(in_flight_at, clock_timestamp())\n"
                "where sender_id = $1",
                "update message set state = 'waiting' where sender_id = $1",
            ),
        ),
    ),
    Bug(
        "retry-on-ambiguous",
        "any error of the connection counts as never sent, as with httpx's ConnectTimeout",
        ("meta-cuts",),
        ("I2",),
        (
            Change(
                DISPATCHER,
                "meta.py",
                "            return MaybeTaken(type(error).__name__)\n",
                "            return unreachable(attempt=attempt, jitter=jitter, cause=type(error).__name__)\n",
            ),
        ),
    ),
    Bug(
        "retry-on-a-proxys-502",
        "a 5xx without Meta's error object counts as refused",
        ("meta-502-html", ""),
        ("I2",),
        (
            Change(
                DISPATCHER,
                "answers.py",
                '        return MaybeTaken("unreadable answer", status)\n',
                '        return unreachable(attempt=attempt, jitter=jitter, cause="unreadable answer")\n',
            ),
        ),
    ),
    Bug(
        "answer-before-kafka",
        "a webhook is answered 200 before Kafka has it",
        ("kafka-down-at-ingest",),
        ("I4",),
        (
            Change(
                INGEST,
                "door.py",
                "        self._told.append(told)\n",
                "        told(None)\n",
            ),
        ),
    ),
    Bug(
        "random-event-id",
        "an event's id is drawn, not derived from its cause",
        ("replica-killed", "offsets-lost", ""),
        ("I7",),
        (
            Change(
                COMMON, "events.py", "import NAMESPACE_URL, UUID, uuid5\n", "import NAMESPACE_URL, UUID, uuid4, uuid5\n"
            ),
            Change(
                COMMON,
                "events.py",
                "    digest[8] = digest[8] & 0x3F | 0x80\n",
                "    digest[:6] = uuid4().bytes[:6]\n",
            ),
        ),
    ),
    Bug(
        "no-sweep",
        "what was committed and not published is forgotten after three seconds",
        ("replica-killed", "service-gone", "broker-crash-loop", "partitioned"),
        ("I1", "I3", "I10"),
        (
            Change(
                COMMON,
                "postgres.py",
                "order by created_at limit $2\n",
                "  and created_at > clock_timestamp() - interval '3 s' order by created_at limit $2\n",
            ),
        ),
    ),
    Bug(
        "key-within-a-period",
        "a message's key is unique only within a period (20 s here), as in a table partitioned by day",
        ("", "offsets-lost"),
        ("I7", "I5", "I3"),
        (
            Change(
                COMMON,
                "postgres.py",
                "d.message_id = asked.message_id and d.step = $1\n",
                "d.message_id = asked.message_id and d.step = $1\n"
                "  and d.decided_at > clock_timestamp() - interval '20 s'\n",
            ),
            Change(
                COMMON,
                "postgres.py",
                "on conflict do nothing\nreturning workspace_id, message_id\n",
                "on conflict (workspace_id, message_id, step) do update\n"
                "set event_id = excluded.event_id, topic = excluded.topic, body = excluded.body,\n"
                "    decided_at = clock_timestamp()\n"
                "returning workspace_id, message_id\n",
            ),
        ),
    ),
    Bug(
        "decisions-dropped-early",
        "decisions are forgotten after 10 s, long before their topic's records",
        ("",),
        ("I7",),
        (
            Change(
                COMMON,
                "postgres.py",
                "from decision where prune_after < clock_timestamp() limit $1)",
                "from decision where decided_at < clock_timestamp() - interval '10 s' limit $1)",
            ),
            Change(COMMON, "service.py", "PRUNE_SECONDS = 600.0\n", "PRUNE_SECONDS = 5.0\n"),
        ),
        calm=60,
    ),
    Bug(
        "ladder-by-arrival",
        "the log shows the receipt that came last, not the highest",
        ("shuffle-storm", ""),
        ("I8",),
        (
            Change(
                LOG,
                "decide.py",
                "        return max(self.times, key=_RECEIPT_RANK.__getitem__, default=None)\n",
                "        return next(reversed(self.times), None)\n",
            ),
        ),
    ),
    Bug(
        "lock-from-the-pool",
        "the driver's lock is given back at once, as asyncpg's pool does, and nobody looks at the fence: both replicas"
        " drive every sender",
        ("",),
        ("I11",),
        (
            Change(
                DISPATCHER,
                "fleet.py",
                "            return None\n        fence = None\n",
                "            return None\n"
                '        await connection.execute("select pg_advisory_unlock_all()")\n'
                "        fence = None\n",
            ),
            Change(
                DISPATCHER,
                "fleet.py",
                "        share = math.ceil(len(senders) / max(1, alive))\n",
                "        share = math.ceil(len(senders) / max(1, min(alive, 1)))\n",
            ),
            Change(
                DISPATCHER,
                "claims.py",
                "where s.sender_id = $1 and s.fence = $2\n",
                "where s.sender_id = $1 and $2::bigint is not null\n",
            ),
        ),
        pace=2,
        calm=60,
    ),
    Bug(
        "pace-not-kept",
        "calls start as fast as they are claimed",
        ("in-flight-flood",),
        ("I11",),
        (
            Change(
                DISPATCHER,
                "limits.py",
                "        return int(saved / self.interval + 1e-9) + 1 if saved >= -1e-9 else 0\n",
                "        return 100 if saved < 1e9 else 0\n",
            ),
        ),
        pace=3,
    ),
    Bug(
        "late-calls",
        "what was marked in flight is called however late: a process that was frozen calls when it wakes",
        ("driver-asleep",),
        ("I9",),
        (
            Change(
                DISPATCHER,
                "driver.py",
                "return marked.may_start(now) and self._lease.holds(now)",
                "return now > 0",
            ),
            Change(
                DISPATCHER,
                "driver.py",
                "if self._is_resting(now) or self._results.circuit.is_open or utc_now()"
                " >= go.due.message.funded.expires_at:",
                "if now < 0:",
            ),
            Change(
                DISPATCHER,
                "starts.py",
                "        return now - self.marked_at <= CALL_STARTS_WITHIN_SECONDS\n",
                "        return True\n",
            ),
        ),
        pace=2,
    ),
    Bug(
        "released-and-captured",
        "a failure after a capture is booked as a release",
        ("",),
        ("I3",),
        (
            Change(
                BILLING,
                "decide.py",
                "    return Kind.RELEASE if charge.booked == _OPEN else Kind.REFUND\n",
                "    return Kind.RELEASE\n",
            ),
        ),
    ),
    Bug(
        "accounts-unlocked",
        "two replicas reserve from the same balance at once",
        ("",),
        ("I3", "I5"),
        (
            Change(
                BILLING,
                "store.py",
                '_LOCK_ACCOUNTS = _ACCOUNTS + " order by workspace_id for update"\n',
                '_LOCK_ACCOUNTS = _ACCOUNTS + " order by workspace_id"\n',
            ),
        ),
        calm=30,
    ),
    Bug(
        "dead-letter-without-bytes",
        "a dead letter tells the error and not what it was",
        ("", "poison-record"),
        ("I5",),
        (
            Change(
                COMMON,
                "stage.py",
                "    return Outgoing(Topic.DEAD_LETTERS, record.key, value, headers)\n",
                '    return Outgoing(Topic.DEAD_LETTERS, record.key, value and b"", headers)\n',
            ),
        ),
    ),
    Bug(
        "token-in-an-error",
        "the text of an error of the call to Meta holds the token",
        ("", "meta-cuts"),
        ("I6",),
        (
            Change(
                DISPATCHER,
                "meta.py",
                "            return MaybeTaken(type(error).__name__)\n",
                '            return MaybeTaken(f"{type(error).__name__} with {access.token}")\n',
            ),
        ),
    ),
    Bug(
        "stop-stays-outside",
        "the dispatcher never learns of a STOP: what waits then is sent",
        ("",),
        ("I12",),
        (
            Change(
                DISPATCHER,
                "stages.py",
                "        news = await people_store.save_contacts(connection, states.values())\n",
                "        news = await people_store.save_contacts(\n"
                "            connection, [one for one in states.values() if one not in unsubscribed]\n"
                "        )\n",
            ),
        ),
        calm=75,
    ),
    Bug(
        "replayed-start-believed",
        "a person's words count in the order in which they come, not in the order in which they were said",
        ("",),
        ("I12", "I7"),
        (
            Change(
                CONSENT,
                "stages.py",
                "Word(state, event.occurred_at, source, proof_of(event), own=True)",
                "Word(state, event.observed_at or event.occurred_at, source, proof_of(event), own=True)",
            ),
            Change(
                INGEST,
                "parsing.py",
                "        next((told for told in several if told[0].place == places.get(event_id)), None)\n",
                "        several[0]\n",
            ),
        ),
    ),
    Bug(
        "first-element-only",
        "of a webhook with several elements the first one is read",
        ("",),
        ("I4",),
        (
            Change(
                INGEST,
                "parsing.py",
                "        for element in reading.elements:\n",
                "        for element in reading.elements[:1]:\n",
            ),
        ),
    ),
)


def bug(name: str) -> Bug:
    """Raises KeyError with the names that there are."""
    known = {one.name: one for one in BUGS}
    if name not in known:
        raise KeyError(f"{name} is none of {', '.join(known)}")
    return known[name]


def planted(bugs: Sequence[Bug], into: Path) -> Path:
    """Copies of the packages that the bugs are in, with them; the folder to put first on PYTHONPATH. Raises ValueError
    where today's source no longer has what a bug replaces."""
    into.mkdir(parents=True, exist_ok=True)
    changes = [(one.name, change) for one in bugs for change in one.changes]
    for package in {change.package for _, change in changes}:
        copy = into / Path(package).name
        shutil.copytree(ROOT / package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for name, change in changes:
        file = into / Path(change.package).name / change.file
        text = file.read_text()
        if text.count(change.old) != 1:
            raise ValueError(
                f"{name}: {change.package}/{change.file} has {change.old!r} {text.count(change.old)} times"
            )
        file.write_text(text.replace(change.old, change.new))
    return into


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?")
    parser.add_argument("folder", nargs="?", type=Path)
    told = parser.parse_args()
    if told.name is None or told.folder is None:
        for one in BUGS:
            provoked = " or ".join(name or "the workload alone" for name in one.scenarios)
            print(f"{one.name}: {one.what}. By {provoked}; breaks {' or '.join(one.invariants)}.")
        return 0
    print(planted([bug(told.name)], told.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
