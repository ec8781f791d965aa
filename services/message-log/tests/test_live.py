"""Who may follow how many live streams."""

from contextlib import asynccontextmanager

from fastapi import Request
from message_log.live import STREAMS_MAX, STREAMS_PER_READER_MAX, Streams
from sendwhy.problems import Problem


def reader(name: str) -> Request:
    return Request({"type": "http", "headers": [(b"authorization", name.encode())]})


async def refused(streams: Streams, name: str) -> int | None:
    """The status with which somebody is refused a stream, which else is closed at once."""
    try:
        async with asynccontextmanager(streams.slot)(reader(name)):
            return None
    except Problem as problem:
        return problem.status_code if (problem.headers or {}).get("retry-after") else None


async def test_who_has_many_streams_keeps_nobody_out() -> None:
    streams = Streams()
    opened = [asynccontextmanager(streams.slot)(reader("greedy")) for _ in range(STREAMS_PER_READER_MAX)]
    for one in opened:
        await one.__aenter__()
    assert await refused(streams, "greedy") == 429
    assert await refused(streams, "modest") is None
    await opened[0].__aexit__(None, None, None)
    assert await refused(streams, "greedy") is None


async def test_a_process_serves_so_many_streams_and_no_more() -> None:
    streams = Streams()
    opened = [asynccontextmanager(streams.slot)(reader(f"reader {number}")) for number in range(STREAMS_MAX)]
    for one in opened:
        await one.__aenter__()
    assert await refused(streams, "one more") == 503
    for one in opened:
        await one.__aexit__(None, None, None)
    assert await refused(streams, "one more") is None
