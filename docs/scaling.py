"""How large an installation is for so many messages a second: `.venv/bin/python docs/scaling.py --rate 1000`.

Pure arithmetic on the figures of scaling.json, which tests/bench/footprint.py measures; `docs/generate.py` writes
scaling.md from it. Whatever is assumed rather than measured is a field of `Case`, and an option of the command.
"""

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import ceil
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

FIGURES = Path(__file__).with_name("scaling.json")
SECONDS_A_DAY = 86_400
KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40
WAL_BLOCK, TABLE_BLOCK = 16 * KIB, 8 * KIB
Figures = Mapping[str, Any]


class Kept(StrEnum):
    """For how long rows stay; `CONTACT`: one for a person, not for a message."""

    EVENTS = "events"
    MESSAGES = "messages"
    WEBHOOKS = "webhooks"
    KEYS = "keys"
    RECEIPTS = "receipts"
    TWO_DAYS = "two days"
    FOR_EVER = "for ever"
    CONTACT = "contact"


# By service and table. Who adds a table that grows with messages adds it here (tests/deploy/test_scaling.py).
KEPT: Mapping[tuple[str, str], Kept] = {
    ("consent", "decision"): Kept.KEYS,
    ("consent", "message_of"): Kept.KEYS,
    ("consent", "memory"): Kept.CONTACT,
    ("consent", "contact"): Kept.CONTACT,
    ("consent", "contact_history"): Kept.CONTACT,
    ("consent", "contact_name"): Kept.CONTACT,
    ("billing", "decision"): Kept.KEYS,
    ("billing", "charge"): Kept.KEYS,
    ("billing", "ledger"): Kept.FOR_EVER,
    ("dispatcher", "contact"): Kept.CONTACT,
    ("dispatcher", "message"): Kept.KEYS,
    ("dispatcher", "reached_person"): Kept.TWO_DAYS,
    ("webhook-ingest", "message"): Kept.RECEIPTS,
    ("webhook-ingest", "seen_status"): Kept.RECEIPTS,
    ("message-log", "message"): Kept.MESSAGES,
    ("message-log", "event"): Kept.EVENTS,
    ("message-log", "event_of"): Kept.EVENTS,
    ("message-log", "webhook"): Kept.WEBHOOKS,
    ("message-log", "webhook_part"): Kept.WEBHOOKS,
    ("message-log", "known_state"): Kept.CONTACT,
}
# Rows go again within seconds or minutes, or there is one for each replica, partition or workspace: what is measured of
# them is room that is used anew.
PASSING = frozenset(
    {"outbox", "message_cell", "message_cell_change", "message_hour", "replica", "driving", "account", "reached"}
)


@dataclass(frozen=True)
class Case:
    """What is asked, and what is assumed. `rate`: messages/s while it lasts; `busy_share`: that share of all time."""

    rate: float
    busy_share: float = 1.0
    retention_days: float = 90
    webhook_days: float = 14
    kafka_days: float = 14
    kept_years: float = 1
    contacts: int = 1_000_000
    copies: int = 3
    utilisation: float = 0.5
    replicas_min: int = 2
    partitions_min: int = 6
    sender_rate: float = 80
    memory_headroom: float = 2
    hot_hours: float = 1
    server_cores: int = 32
    server_disk_gib: int = 16_384
    broker_cores: int = 8
    broker_disk_gib: int = 8_192
    broker_mb_per_second: float = 300
    core_price: float = 0
    memory_gib_price: float = 0
    disk_gib_price: float = 0

    @property
    def days_by_kept(self) -> Mapping[Kept, float]:
        """Keys: 45 days after an expiry that is 2 days off; receipts: as long after a deadline that is 30 days off;
        messages: as their events, but no less than 75 days (message_log.forgetting)."""
        return {
            Kept.EVENTS: self.retention_days,
            Kept.MESSAGES: max(self.retention_days, 75),
            Kept.WEBHOOKS: self.webhook_days,
            Kept.KEYS: 47,
            Kept.RECEIPTS: 75,
            Kept.TWO_DAYS: 2,
            Kept.FOR_EVER: 365 * self.kept_years,
            Kept.CONTACT: 0,
        }

    @property
    def messages_a_day(self) -> float:
        return self.rate * SECONDS_A_DAY * self.busy_share


@dataclass(frozen=True)
class ServiceSize:
    """One service and its database, at a case's rate."""

    name: str
    replicas: int
    memory_gib: float
    database_cores: int
    database_disk_gib: float
    database_hot_gib: float
    write_operations: float
    shards: int


@dataclass(frozen=True)
class KafkaSize:
    brokers: int
    cores: int
    disk_gib: float
    in_mb_per_second: float
    out_mb_per_second: float
    partitions: Mapping[str, int]


@dataclass(frozen=True)
class Size:
    """Everything. `meta_numbers`: phone numbers that it takes at `sender_rate` each."""

    case: Case
    services: Sequence[ServiceSize]
    kafka: KafkaSize
    meta_numbers: int

    @property
    def cores(self) -> int:
        own = sum(one.replicas + one.database_cores for one in self.services)
        return own + self.kafka.cores

    @property
    def memory_gib(self) -> float:
        """Of services, of what databases have in hand, and 4 GiB of heap and pages a broker."""
        return sum(one.memory_gib + one.database_hot_gib for one in self.services) + 4 * self.kafka.brokers

    @property
    def disk_gib(self) -> float:
        return sum(one.database_disk_gib for one in self.services) + self.kafka.disk_gib

    @property
    def price(self) -> float:
        case = self.case
        return (
            self.cores * case.core_price + self.memory_gib * case.memory_gib_price + self.disk_gib * case.disk_gib_price
        )


def kept_as(service: str, table: str) -> Kept | None:
    """None: nothing of it stays. Raises KeyError for a table that nobody has looked at."""
    return None if table in PASSING else KEPT[service, table]


def tables_of(figures: Figures, service: str) -> Mapping[str, float]:
    """Bytes a message by table, its indexes included."""
    return {name: sum(sizes.values()) for name, sizes in figures["tables"].get(service, {}).items()}


def database_bytes(figures: Figures, service: str, case: Case) -> float:
    total = 0.0
    for table, each in tables_of(figures, service).items():
        kept = kept_as(service, table)
        if kept is Kept.CONTACT:
            total += each * case.contacts
        elif kept is not None:
            total += each * case.days_by_kept[kept] * case.messages_a_day
    return total


def cores_for(rate: float, microseconds: float, utilisation: float) -> int:
    return max(1, ceil(rate * microseconds / 1e6 / utilisation))


def service_size(figures: Figures, service: str, case: Case) -> ServiceSize:
    own = figures["services"][service]
    replicas = max(case.replicas_min, cores_for(case.rate, own["cpu_us"], case.utilisation))
    cores = cores_for(case.rate, own["postgres_cpu_us"], case.utilisation)
    disk = database_bytes(figures, service, case) / GIB
    written = sum(tables_of(figures, service).values())
    operations = own["wal_fsyncs"] + own["wal_bytes"] / WAL_BLOCK + written / TABLE_BLOCK
    return ServiceSize(
        service,
        replicas,
        replicas * own["memory_mib"] * case.memory_headroom / KIB,
        cores,
        disk,
        written * case.rate * 3600 * case.hot_hours / GIB,
        operations * case.rate,
        max(1, ceil(cores / case.server_cores), ceil(disk / case.server_disk_gib)),
    )


def partitions(figures: Figures, replicas: Mapping[str, int], case: Case) -> Mapping[str, int]:
    """By topic: one for each replica of the service that reads it with most of them, in multiples of six."""
    return {
        topic: 6 * ceil(max([case.partitions_min, *(replicas[name] for name in told["readers"])]) / 6)
        for topic, told in figures["topics"].items()
    }


def kafka_size(figures: Figures, replicas: Mapping[str, int], case: Case) -> KafkaSize:
    topics = figures["topics"]
    streams = {name: told for name, told in topics.items() if name != "contact.updated"}
    written = sum(told["bytes"] for told in streams.values())
    read = sum(told["bytes"] * len(told["readers"]) for told in streams.values())
    disk = written * case.kafka_days * case.messages_a_day + topics["contact.updated"]["bytes"] * case.contacts
    disk_gib = disk * case.copies / GIB
    spent = sum(own["kafka_cpu_us"] for own in figures["services"].values()) * case.copies
    cores = cores_for(case.rate, spent, case.utilisation)
    into = written * case.copies * case.rate / 1e6
    brokers = max(
        case.copies,
        ceil(cores / case.broker_cores),
        ceil(disk_gib / case.broker_disk_gib),
        ceil(into / case.broker_mb_per_second),
    )
    out = (read + written * (case.copies - 1)) * case.rate / 1e6
    return KafkaSize(brokers, max(cores, brokers), disk_gib, into, out, partitions(figures, replicas, case))


def size(figures: Figures, case: Case) -> Size:
    services = [service_size(figures, name, case) for name in figures["services"]]
    replicas = {one.name: one.replicas for one in services}
    return Size(case, services, kafka_size(figures, replicas, case), ceil(case.rate / case.sender_rate))


@dataclass(frozen=True)
class Limit:
    """Up to how many messages/s something holds, and what to do then."""

    what: str
    rate: float
    then: str


def limits(figures: Figures, case: Case) -> list[Limit]:
    """What gives in first, with the partitions that there are, one PostgreSQL server a database, three brokers."""
    found = [Limit("one phone number at Meta's default pace", case.sender_rate, "more numbers, or Meta's 1,000/s")]
    kafka = sum(own["kafka_cpu_us"] for own in figures["services"].values()) * case.copies
    available = case.copies * case.broker_cores * case.utilisation * 1e6
    found.append(Limit(f"{case.copies} brokers of {case.broker_cores} cores", available / kafka, "more brokers"))
    for name, own in figures["services"].items():
        one = case.utilisation * 1e6 / own["cpu_us"]
        found.append(Limit(f"{name}, one process", one, "replicas"))
        if name != "dispatcher":
            more = "more partitions in `sendwhy.topics`"
            found.append(Limit(f"{name}, {case.partitions_min} partitions", case.partitions_min * one, more))
        server = case.server_cores * case.utilisation * 1e6 / own["postgres_cpu_us"]
        found.append(Limit(f"{name}'s database, {case.server_cores} cores", server, "cells by workspace"))
        growing = database_bytes(figures, name, dataclasses.replace(case, rate=1, contacts=0)) / GIB
        if growing:
            what = f"{name}'s database, {case.server_disk_gib:,} GiB"
            found.append(Limit(what, case.server_disk_gib / growing, "a shorter retention, or cells by workspace"))
    return sorted(found, key=lambda limit: limit.rate)


# --- scaling.md ---

RATES = (10, 1_000, 100_000)
PER_MILLION = 1_000_000


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *("--:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float) -> str:
    """Three digits that count."""
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def measured(figures: Figures) -> str:
    rows = [
        [
            name,
            *(number(own[key]) for key in ("cpu_us", "kafka_cpu_us", "postgres_cpu_us", "memory_mib")),
            number(own["wal_bytes"] / KIB),
            number(sum(tables_of(figures, name).values()) * PER_MILLION / GIB),
        ]
        for name, own in figures["services"].items()
    ]
    head = ["service", "CPU µs", "Kafka µs", "PostgreSQL µs", "memory MiB", "WAL KiB", "tables, GiB per million"]
    return table(head, rows)


def per_table(figures: Figures, case: Case) -> str:
    rows = []
    for service in figures["services"]:
        for name, sizes in figures["tables"].get(service, {}).items():
            kept = kept_as(service, name)
            if kept is None:
                continue
            days = "–" if kept in (Kept.CONTACT, Kept.FOR_EVER) else f"{case.days_by_kept[kept]:g} days"
            gib = [number(sizes.get(part, 0) * PER_MILLION / GIB) for part in ("heap", "indexes")]
            rows.append([f"{service}: {name}", *gib, f"{kept}, {days}" if days != "–" else str(kept)])
    return table(["table", "rows, GiB per million", "indexes, GiB per million", "kept"], rows)


def per_topic(figures: Figures, case: Case) -> str:
    rows = [
        [
            topic,
            number(told["records"]),
            number(told["bytes"]),
            number(told["bytes"] * PER_MILLION * case.copies / GIB),
            str(len(told["readers"])),
        ]
        for topic, told in figures["topics"].items()
    ]
    head = ["topic", "records a message", "bytes a message", f"GiB per million, {case.copies} copies", "read by"]
    return table(head, rows)


def by_rate(sizes: Sequence[Size]) -> str:
    def row(name: str, *values: float) -> list[str]:
        return [name, *map(number, values)]

    names = [one.name for one in sizes[0].services]
    rows = [row(f"{name}: replicas", *(each.services[i].replicas for each in sizes)) for i, name in enumerate(names)]
    for topic in sizes[0].kafka.partitions:
        rows.append(row(f"{topic}: partitions", *(each.kafka.partitions[topic] for each in sizes)))
    rows += [
        row("Kafka: brokers", *(each.kafka.brokers for each in sizes)),
        row("Kafka: disk, GiB", *(each.kafka.disk_gib for each in sizes)),
        row("Kafka: in, MB/s", *(each.kafka.in_mb_per_second for each in sizes)),
        row("Kafka: out, MB/s", *(each.kafka.out_mb_per_second for each in sizes)),
    ]
    for i, name in enumerate(names):
        rows += [
            row(f"{name}'s database: cores", *(each.services[i].database_cores for each in sizes)),
            row(f"{name}'s database: disk, GiB", *(each.services[i].database_disk_gib for each in sizes)),
            row(f"{name}'s database: write operations/s", *(each.services[i].write_operations for each in sizes)),
            row(f"{name}'s database: servers, by workspace", *(each.services[i].shards for each in sizes)),
        ]
    rows += [
        row("numbers at Meta", *(each.meta_numbers for each in sizes)),
        row("**all: CPU cores**", *(each.cores for each in sizes)),
        row("**all: memory, GiB**", *(each.memory_gib for each in sizes)),
        row("**all: disk, GiB**", *(each.disk_gib for each in sizes)),
        row("**all: write operations/s of databases**", *(sum(s.write_operations for s in e.services) for e in sizes)),
    ]
    return table(["", *(f"{number(each.case.rate)} messages/s" for each in sizes)], rows)


def assumed(case: Case) -> str:
    fields = {field.name: getattr(case, field.name) for field in dataclasses.fields(case) if field.name != "rate"}
    shown = {name: f"{value:g}" if isinstance(value, float) else value for name, value in fields.items()}
    return ", ".join(f"`--{name.replace('_', '-')} {value}`" for name, value in shown.items())


def bytes_of(figures: Figures, *kept: Kept) -> float:
    """Bytes a message, or a person, of all tables that are kept so."""
    return sum(
        each
        for service in figures["services"]
        for name, each in tables_of(figures, service).items()
        if kept_as(service, name) in kept
    )


def left_by_a_million(figures: Figures, case: Case) -> str:
    streams = sum(told["bytes"] for name, told in figures["topics"].items() if name != "contact.updated")
    lasting = bytes_of(figures, *(kept for kept in Kept if kept is not Kept.CONTACT))
    databases, kafka, contacts = (
        number(each * PER_MILLION / GIB) for each in (lasting, streams * case.copies, bytes_of(figures, Kept.CONTACT))
    )
    kept = f"{case.copies} copies, {case.kafka_days:g} days"
    return (
        f"A million messages leave {databases} GiB in the databases, for as long as each table keeps them, and"
        f" {kafka} GiB in Kafka ({kept}); a million contacts take {contacts} GiB in the databases."
    )


def page(figures: Figures, generated: str) -> str:
    """scaling.md."""
    case, told = Case(RATES[0]), figures["measured"]
    sizes = [size(figures, Case(rate)) for rate in RATES]
    first = table(
        ["what", "holds up to, messages/s", "then"],
        [[limit.what, number(limit.rate), limit.then] for limit in limits(figures, case)],
    )
    return f"""{generated}
# Scaling

How large an installation is for 10, 1,000 and 100,000 messages a second; for any other case:

    .venv/bin/python docs/scaling.py --rate 250 --retention-days 30 --busy-share 0.3

A message here is a campaign's template to a contact, taken by Meta, then sent, delivered and read, each told by a
webhook of its own. What a message takes was measured on {told["at"][:10]} at commit {told["commit"]}
({told["machine"]}, with a load of {told["load"]} by other work; {told["messages"]:,} messages) by

    {told["command"]}

and is in [scaling.json](scaling.json); all else on this page is arithmetic (`docs/scaling.py`). Nothing above one
machine was run: the columns are what the figures of one machine come to, not what somebody has seen.

## What a message takes

{measured(figures)}

CPU in µs a message: of the service's process, and of Kafka and PostgreSQL while only that service worked; what they do
by the clock (timers, heartbeats, empty reads) is in it, and the more of it the longer a loaded machine takes. A process
has one thread that computes, so it fills one core. Memory is the largest that was seen of a process.

## What a message leaves

{left_by_a_million(figures, case)}

{per_table(figures, case)}

"contact": a row for each person, not for each message. "for ever": nothing deletes it, as is meant of billing's
ledger; its disk is counted for one year (`--kept-years`).

{per_topic(figures, case)}

Event topics keep 14 days (`sendwhy.topics`); contact.updated is compacted: one record for each person.

## Three sizes

{by_rate(sizes)}

Assumed, each an option of the command: {assumed(case)}. A rate that lasts all day (`--busy-share 1`) is the dearest
case: a campaign of an hour a day takes the same replicas and a 24th of the disk. Write operations: flushes of the
write-ahead log, its bytes in blocks of 16 KiB, rows and indexes in blocks of 8 KiB. Prices: `--core-price`,
`--memory-gib-price` and `--disk-gib-price`, each for one a month, add the month's sum. Not in it: what stands in front
(TLS, balancers), Prometheus, a standby of each database (the same again). Of Kafka each copy is counted as dear as the
first.

## What gives in first

{first}

At `--utilisation {case.utilisation:g}`: half of each core is left for bursts and for a replica that is away.

## What is shared, and what is divided

| | |
|---|---|
| a message | one partition of each topic: its key is the message's id (of send.requested: the person) |
| a service's work | its replicas, by partitions; more replicas than partitions idle. KEDA adds replicas by lag |
| a phone number's queue | one replica of the dispatcher at a time; replicas share the numbers, not a number |
| a workspace's credits | one row, locked for each batch: all of a workspace's reservations are one after the other |
| a messaging limit | one row for each of Meta's portfolios |
| a service's database | one server. The five need not share one: each has its own address |
| a workspace | nothing of it is shared with another one but topics, processes and servers |

**Partitions** can be added while it runs; a key's records then go to another partition, and no rule leans on their
order. `sendwhy.topics.TOPICS` has the numbers, and `python -m sendwhy topics` creates what is missing; it changes no
topic that is there: `kafka-topics.sh --alter --topic NAME --partitions N`.

**A database that is too large for a server.** In this order: another server for that service alone; a shorter
retention (`SENDWHY_EVENT_RETENTION_DAYS`, `SENDWHY_WEBHOOK_RETENTION_DAYS`); then cells: whole installations, each
with its own Kafka and databases, and some of the workspaces. Nothing in one cell asks another, so that needs no change
of the code: upstream publishes a workspace's requests to its cell, and the numbers of a cell belong to an app of
Meta's whose webhooks come to that cell. The row "servers, by workspace" is how many cells a database's size asks for;
the largest of them counts. One database of a service can't be divided over several servers within a cell.
"""


def report(found: Size) -> str:
    """For the command."""
    text = by_rate([found])
    price = f"\n\nprice a month: {found.price:,.2f}" if found.price else ""
    return f"{text}{price}"


def case_of(arguments: Sequence[str] | None = None) -> Case:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for each in dataclasses.fields(Case):
        is_rate = each.name == "rate"
        kind = int if isinstance(each.default, int) and not is_rate else float
        default = {"required": True} if is_rate else {"default": each.default}
        parser.add_argument(f"--{each.name.replace('_', '-')}", type=kind, metavar="N", **default)
    return Case(**vars(parser.parse_args(arguments)))


def load(path: Path = FIGURES) -> Figures:
    return TypeAdapter(dict[str, Any]).validate_json(path.read_bytes())


if __name__ == "__main__":
    sys.stdout.write(f"{report(size(load(), case_of()))}\n")
