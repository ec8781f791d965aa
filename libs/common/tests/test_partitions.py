"""A key's records stand where Kafka's own clients put them: whoever else writes a topic must find the same place."""

from aiokafka.partitioner import DefaultPartitioner
from hypothesis import given
from hypothesis import strategies as st
from sendwhy.partitions import partition_of

theirs = DefaultPartitioner()


@given(st.binary(max_size=80), st.integers(1, 12))
def test_a_key_has_the_partition_that_aiokafka_gives_it(key: bytes, count: int) -> None:
    partitions = list(range(count))
    assert partition_of(key, partitions, partitions) == theirs(key, partitions, partitions)


def test_without_a_key_one_that_is_available_is_taken() -> None:
    assert partition_of(None, [0, 1, 2], [1]) == 1
    assert partition_of(None, [7], []) == 7
