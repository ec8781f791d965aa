"""PostgreSQL's side of TLS, before a server whose build has none: the one of the local stack says "SSL is not supported
by this build". Refuses who asks for no TLS, in the words of a server with nothing but `hostssl` in its pg_hba.conf."""

import asyncio
import contextlib
import ssl

SSL_REQUEST = bytes.fromhex("0000000804d2162f")
NO_ENTRY = b"SFATAL\0VFATAL\0C28000\0Mno pg_hba.conf entry for host, no encryption\0\0"


class Front:
    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self._context, self._host = context, host
        self._target = 0
        self._server: asyncio.Server | None = None
        # Of the connections from here to the server: by these it knows who came through TLS.
        self.client_ports: set[int] = set()

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def start(self, target: int) -> None:
        self._target = target
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, self._host, 0)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            if await reader.readexactly(len(SSL_REQUEST)) != SSL_REQUEST:
                writer.write(b"E" + (len(NO_ENTRY) + 4).to_bytes(4) + NO_ENTRY)
                await writer.drain()
                return
            writer.write(b"S")
            await writer.drain()
            await writer.start_tls(self._context)
            inner, outer = await asyncio.open_connection(self._host, self._target)
            self.client_ports.add(outer.get_extra_info("sockname")[1])
            with contextlib.closing(outer):
                ways = [asyncio.create_task(_pipe(reader, outer)), asyncio.create_task(_pipe(inner, writer))]
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
