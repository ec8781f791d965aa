"""Answers no well-behaved server gives: silence, a reset, half a header, a drip of bytes.

uvicorn's ASGI scope does not give the connection away, so a thin protocol puts it there.
"""

import asyncio
import socket
import struct
from enum import Enum
from typing import cast

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HANG_SECONDS = 300.0
DRIP_SECONDS = 0.25


class Fault(Enum):
    HANG = "hang"
    RESET = "reset"
    CLOSE = "close"
    HALF_HEADER = "half header"
    HALF_BODY = "half body"
    JUNK = "junk"
    DRIP = "drip"


class SimulatorProtocol(HttpToolsProtocol):
    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {"meta_simulator": {"transport": self.transport}}


class NoAnswer(Response):
    """What the app returns once the connection is gone."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive, send


async def break_answer(request: Request, fault: Fault, answer: bytes) -> Response:
    """Spoil the answer as `fault` says. Returns when the connection is closed, by whichever side."""
    transport = cast(asyncio.Transport, request.scope["extensions"]["meta_simulator"]["transport"])
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
        + str(len(answer)).encode()
        + b"\r\n\r\n"
    )
    if fault is Fault.RESET:
        _reset(transport)
    elif fault is Fault.DRIP:
        await _drip(transport, head, answer)
    elif fault is not Fault.HANG:
        transport.write(_broken_bytes(fault, head, answer))
        transport.close()
    await _gone(request, transport)
    return NoAnswer()


def _broken_bytes(fault: Fault, head: bytes, answer: bytes) -> bytes:
    if fault is Fault.HALF_HEADER:
        return head[:30]
    if fault is Fault.HALF_BODY:
        return head + answer[: len(answer) // 2]
    if fault is Fault.JUNK:
        return b"\x15\x03\x01 this is not HTTP\r\n\r\n"
    return b""


def _reset(transport: asyncio.Transport) -> None:
    # A linger of zero makes the kernel send RST instead of FIN.
    fd = transport.get_extra_info("socket").fileno()
    with socket.socket(fileno=socket.dup(fd)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


async def _drip(transport: asyncio.Transport, head: bytes, answer: bytes) -> None:
    transport.write(head)
    for byte in answer:
        if transport.is_closing():
            return
        transport.write(bytes([byte]))
        await asyncio.sleep(DRIP_SECONDS)
    transport.close()


async def _gone(request: Request, transport: asyncio.Transport) -> None:
    try:
        async with asyncio.timeout(HANG_SECONDS):
            while (await request.receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        transport.close()
        while (await request.receive())["type"] != "http.disconnect":
            pass
