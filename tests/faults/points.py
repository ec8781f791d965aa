"""Named moments of a protocol: a process is killed, or its line cut, exactly there.

For the time of such a fault that one line leads through a relay. Which moment, of how many that pass, is drawn.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable

from field import Field
from relay import Moment, Relay
from toxiproxy import link_name

MET_SECONDS = 60.0
PASSING_MAX = 12


def dies(moment: Moment, what: str, *, passes: bool = False) -> Callable[[Field, str], Awaitable[None]]:
    """kill -9 of a process at that moment. `passes`: what it asked for still reaches the server."""

    async def strike(on: Field, target: str) -> None:
        old = on.rig.pid(target)
        await _at(on, target, moment, lambda: on.rig.signal(target, signal.SIGKILL), passes=passes)
        await on.rig.replaced(target, old)

    strike.__doc__ = what
    return strike


def cut(moment: Moment, what: str) -> Callable[[Field, str], Awaitable[None]]:
    """The line ends at that moment, and what was asked has reached the server: again and again."""

    async def strike(on: Field, target: str) -> None:
        async for _ in on.again_and_again(0.5, 2):
            await _at(on, target, moment, lambda: None, passes=True)

    strike.__doc__ = what
    return strike


async def _at(on: Field, target: str, moment: Moment, strike: Callable[[], None], *, passes: bool) -> None:
    link = next(one for one in on.rig.links if one.name == link_name(target, moment.server))
    relay = Relay(link.upstream, moment, on.chance.randint(1, PASSING_MAX), passes, strike)
    async with relay.listening() as port:
        await on.rig.proxies.lead(link.name, port)
        try:
            async with asyncio.timeout(MET_SECONDS):
                await relay.met.wait()
        finally:
            await on.rig.proxies.lead(link.name, link.upstream)
