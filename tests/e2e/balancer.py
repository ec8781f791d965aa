"""What stands before the replicas of a service in real life: an ingress, a load balancer, a reverse proxy."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import httpx

CHECK_SECONDS = 0.25
CHUNK = 65_536


class Balancer:
    """Gives each connection to a replica that says it is ready, in turn. It repeats nothing and answers nothing itself:
    what a replica does to a connection, the client sees."""

    def __init__(self, replicas: Sequence[str], *, check_seconds: float = CHECK_SECONDS) -> None:
        self._check_seconds = check_seconds
        self._ready: set[str] = set()
        self._turns = itertools.cycle(replicas)
        self._replicas = replicas
        self._relays: set[asyncio.Task[None]] = set()
        self.url = ""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Balancer"]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=512)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with httpx.AsyncClient(timeout=5) as http:
            await asyncio.gather(*(self._check(http, replica) for replica in self._replicas))
            checks = [asyncio.create_task(self._keep_checking(http, replica)) for replica in self._replicas]
            try:
                yield self
            finally:
                server.close()
                for task in (*checks, *self._relays):
                    task.cancel()
                await asyncio.gather(*checks, *self._relays, return_exceptions=True)

    async def _keep_checking(self, http: httpx.AsyncClient, replica: str) -> None:
        while True:
            await asyncio.sleep(self._check_seconds)
            await self._check(http, replica)

    async def _check(self, http: httpx.AsyncClient, replica: str) -> None:
        try:
            is_ready = (await http.get(f"{replica}/readyz")).status_code == 200
        except httpx.TimeoutException:
            # Slow is not away: the machine may be busy.
            return
        except httpx.TransportError:
            is_ready = False
        (self._ready.add if is_ready else self._ready.discard)(replica)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._relays.add(task)
        task.add_done_callback(self._relays.discard)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await self._relay(reader, writer)
        writer.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await self._connect()
        ways = [asyncio.create_task(_pass(*way)) for way in ((reader, up_writer), (up_reader, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            up_writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        turns = list(itertools.islice(self._turns, len(self._replicas) + 1))[1:]
        # If none says that it is ready, the machine is slow: better any than none, as Envoy has it.
        for replica in sorted(turns, key=lambda one: one not in self._ready):
            # Refused, nothing was sent: another one may have it.
            with contextlib.suppress(ConnectionRefusedError):
                return await asyncio.open_connection(urlsplit(replica).hostname, urlsplit(replica).port)
        raise ConnectionRefusedError("no replica listens")


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(CHUNK):
        writer.write(chunk)
        await writer.drain()
