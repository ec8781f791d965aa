"""How a process ends towards its clients, over real sockets: nobody who comes in good time is reset."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from sendwhy.http import Server, is_ending, make_server

ASK = b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n"


class House:
    def __init__(self, app: FastAPI, server: Server) -> None:
        self.app, self.server = app, server
        self.opened = asyncio.Event()
        self.entered = asyncio.Event()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        port = self.server.servers[0].sockets[0].getsockname()[1]
        return await asyncio.open_connection("127.0.0.1", port)


@asynccontextmanager
async def house(drain_seconds: float) -> AsyncIterator[House]:
    app = FastAPI()
    server = make_server(app, host="127.0.0.1", port=0, drain_seconds=drain_seconds)
    made = House(app, server)

    @app.get("/quick")
    async def quick() -> int:
        return 1

    @app.get("/slow")
    async def slow() -> int:
        made.entered.set()
        await made.opened.wait()
        return 1

    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield made
    finally:
        made.opened.set()
        server.should_exit = server.force_exit = True
        await task


async def answer(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(20):
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(1)
    return head


async def test_while_it_drains_every_connection_is_answered_and_told_to_end() -> None:
    async with house(60) as ours:
        kept_reader, kept_writer = await ours.connect()
        kept_writer.write(ASK % b"quick")
        assert b"connection: close" not in await answer(kept_reader)
        slow_reader, slow_writer = await ours.connect()
        slow_writer.write(ASK % b"slow")
        await ours.entered.wait()

        assert not is_ending(ours.app)
        ours.app.state.end()
        assert is_ending(ours.app)
        while (b"connection", b"close") not in ours.server.server_state.default_headers:
            await asyncio.sleep(0.01)
        # One that came before, one that comes now, and one that is inside.
        kept_writer.write(ASK % b"quick")
        new_reader, new_writer = await ours.connect()
        new_writer.write(ASK % b"quick")
        ours.opened.set()
        for reader in (kept_reader, new_reader, slow_reader):
            head = await answer(reader)
            assert head.startswith(b"HTTP/1.1 200")
            assert b"connection: close" in head
            assert await reader.read() == b""
        for writer in (kept_writer, new_writer, slow_writer):
            writer.close()


async def test_after_it_nobody_is_let_in_and_who_is_inside_gets_an_answer() -> None:
    async with house(0) as ours:
        reader, writer = await ours.connect()
        writer.write(ASK % b"slow")
        await ours.entered.wait()
        ours.app.state.end()
        async with asyncio.timeout(20):
            while ours.server.servers[0].is_serving():
                await asyncio.sleep(0.01)
        ours.opened.set()
        assert (await answer(reader)).startswith(b"HTTP/1.1 200")
        writer.close()
