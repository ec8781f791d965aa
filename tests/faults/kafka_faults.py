"""What can become of the broker, its logs and its groups."""

import asyncio
import os
import signal
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.protocol.admin import DeleteGroupsRequest
from field import Field
from outside import until
from rig import Rig

TAIL_BYTES = 64 * 2**10
PARTITIONS_MAX = 9


async def crash(on: Field, _target: str) -> None:
    """kill -9; its supervisor starts it again."""
    await _killed(on.rig)
    await on.last()


async def crash_loop(on: Field, _target: str) -> None:
    """kill -9 as soon as it answers again, all the while."""
    async for _ in on.again_and_again(0, 3):
        await _killed(on.rig)


async def _killed(rig: Rig) -> None:
    old = rig.pid("kafka")
    rig.signal("kafka", signal.SIGKILL)
    await rig.replaced("kafka", old)


async def frozen(on: Field, _target: str) -> None:
    """SIGSTOP: its connections stay open, and nothing answers."""
    on.rig.signal("kafka", signal.SIGSTOP)
    try:
        await on.last()
    finally:
        on.rig.signal("kafka", signal.SIGCONT)


async def gone(on: Field, _target: str) -> None:
    """Killed, and not back for the while."""
    old = on.rig.pid("kafka")
    on.rig.control.hold("kafka")
    try:
        on.rig.signal("kafka", signal.SIGKILL)
        await on.last()
    finally:
        on.rig.control.release("kafka")
    await on.rig.replaced("kafka", old)


def resettable(rig: Rig) -> list[str]:
    return ["consent", "billing", "dispatcher", "webhook-ingest", "message-log"]


async def offsets_lost(on: Field, target: str) -> None:
    """All that Kafka knew of a service's groups is deleted, as after seven days of absence: all is read again."""
    async with on.gone(target):
        await until(lambda: _deleted(on.rig, target), f"the groups of {target} are deleted", 60)
        await on.last()


async def _deleted(rig: Rig, service: str) -> bool:
    """A group can be deleted once the coordinator misses its last member."""
    admin = AIOKafkaAdminClient(bootstrap_servers=rig.bootstrap)
    await admin.start()
    try:
        groups = [name for name, _ in await admin.list_consumer_groups() if name.startswith(f"sendwhy-{service}.")]
        for group in groups:
            coordinator = await admin.find_coordinator(group)
            await admin._send_request(DeleteGroupsRequest([group]), coordinator)
        left = [name for name, _ in await admin.list_consumer_groups() if name.startswith(f"sendwhy-{service}.")]
        return not left
    finally:
        await admin.close()


def growing(rig: Rig) -> list[str]:
    return ["send.requested", "send.funded", "status.updated", "webhook.received"]


async def partitions_added(on: Field, target: str) -> None:
    """A topic gets more partitions in traffic: the order of each key breaks once."""
    admin = AIOKafkaAdminClient(bootstrap_servers=on.rig.bootstrap)
    await admin.start()
    try:
        (topic,) = await admin.describe_topics([target])
        count = len(topic["partitions"])
        if count < PARTITIONS_MAX:
            await admin.create_partitions({target: NewPartitions(count + 1)})
        await on.last()
    finally:
        await admin.close()


async def tail_cut(on: Field, _target: str) -> None:
    """kill -9, and the ends of the active segments are gone, as after a power cut of a disk that lied."""
    old = on.rig.pid("kafka")
    on.rig.control.hold("kafka")
    try:
        on.rig.signal("kafka", signal.SIGKILL)
        await asyncio.sleep(1)
        for log in sorted((on.rig.state_dir / "kafka" / "data").glob("s*-*/*.log")):
            _cut(log)
        await on.last()
    finally:
        on.rig.control.release("kafka")
    await on.rig.replaced("kafka", old)


def _cut(log: Path) -> None:
    """A part of a batch may be left, as a disk would leave it."""
    size = log.stat().st_size
    # Kafka writes into files that are larger than their content: the content ends where only zeros follow.
    written = len(log.read_bytes().rstrip(b"\0")) if size else 0
    os.truncate(log, max(0, written - TAIL_BYTES))
