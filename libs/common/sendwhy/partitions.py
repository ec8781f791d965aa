"""Which partition a key's records stand in: Kafka's own choice, as Java's client and aiokafka make it."""

import random
from collections.abc import Sequence
from functools import lru_cache
from struct import unpack_from

_M, _MASK = 0x5BD1E995, 0xFFFFFFFF


def partition_of(key: bytes | None, partitions: Sequence[int], available: Sequence[int]) -> int:
    """A partitioner for aiokafka, whose own takes twice as long."""
    if key is None:
        return random.choice(available or partitions)
    return partitions[(murmur2(key) & 0x7FFFFFFF) % len(partitions)]


# A message's events have one key, and come close together.
@lru_cache(maxsize=16_384)
def murmur2(data: bytes) -> int:
    words, rest = divmod(len(data), 4)
    h = 0x9747B28C ^ len(data)
    for word in unpack_from(f"<{words}I", data):
        k = word * _M & _MASK
        h = h * _M & _MASK ^ (k ^ k >> 24) * _M & _MASK
    if rest:
        h = (h ^ int.from_bytes(data[-rest:], "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15
