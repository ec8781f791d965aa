"""Who may follow how many live streams."""

from contextlib import asynccontextmanager

import pytest
from fastapi import Request
from message_log.live import STREAMS_MAX, STREAMS_PER_READER_MAX, Streams
from message_log.login import COOKIE, SECURE_COOKIE
from sendwhy.problems import Problem

# How somebody says who they are: by a token, or by a session over http or https.
KNOWN_BY = ("authorization: {}", f"cookie: {COOKIE}={{}}", f"cookie: {SECURE_COOKIE}={{}}")


def reader(name: str, known_by: str = KNOWN_BY[0]) -> Request:
    header, _, value = known_by.format(name).partition(": ")
    return Request({"type": "http", "headers": [(header.encode(), value.encode())]})


async def refused(streams: Streams, name: str, known_by: str = KNOWN_BY[0]) -> int | None:
    """The status with which somebody is refused a stream, which else is closed at once."""
    try:
        async with asynccontextmanager(streams.slot)(reader(name, known_by)):
            return None
    except Problem as problem:
        return problem.status_code if (problem.headers or {}).get("retry-after") else None


@pytest.mark.parametrize("known_by", KNOWN_BY)
async def test_who_has_many_streams_keeps_nobody_out(known_by: str) -> None:
    streams = Streams()
    opened = [asynccontextmanager(streams.slot)(reader("greedy", known_by)) for _ in range(STREAMS_PER_READER_MAX)]
    for one in opened:
        await one.__aenter__()
    assert await refused(streams, "greedy", known_by) == 429
    assert await refused(streams, "modest", known_by) is None
    await opened[0].__aexit__(None, None, None)
    assert await refused(streams, "greedy", known_by) is None


async def test_a_process_serves_so_many_streams_and_no_more() -> None:
    streams = Streams()
    opened = [asynccontextmanager(streams.slot)(reader(f"reader {number}")) for number in range(STREAMS_MAX)]
    for one in opened:
        await one.__aenter__()
    assert await refused(streams, "one more") == 503
    for one in opened:
        await one.__aexit__(None, None, None)
    assert await refused(streams, "one more") is None
