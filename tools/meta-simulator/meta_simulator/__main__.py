"""`python -m meta_simulator --port N`: serve until SIGTERM or Ctrl-C."""

import argparse
import asyncio
import contextlib
import gc
import signal
import socket
import sys
from pathlib import Path
from typing import cast

import uvicorn
import uvloop
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from meta_simulator.app import make_app
from meta_simulator.bodies import Seed
from meta_simulator.controls import check_scenario
from meta_simulator.scenarios import listing
from meta_simulator.wire import SimulatorProtocol
from meta_simulator.world import BOOKS_KEEP, World


class Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(f"meta-simulator is ready at http://{self.config.host}:{self.port}", flush=True)

    @property
    def port(self) -> int:
        return int(self.servers[0].sockets[0].getsockname()[1])

    async def go_down(self, seconds: float) -> None:
        """Cut all connections and refuse new ones for so long; the port stays ours."""
        address = self.servers[0].sockets[0].getsockname()
        family = self.servers[0].sockets[0].family
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            cast(SimulatorProtocol, connection).transport.abort()
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.servers = [await asyncio.get_running_loop().create_server(self._protocol, sock=bound)]

    def _protocol(self) -> SimulatorProtocol:
        return SimulatorProtocol(self.config, self.server_state, self.lifespan.state)


def make_server(seed: Seed, host: str, port: int, keep: int = BOOKS_KEEP) -> Server:
    world = World(keep)
    config = uvicorn.Config(
        make_app(world, seed),
        host=host,
        port=port,
        http=SimulatorProtocol,
        ws="none",
        proxy_headers=False,
        lifespan="on",
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=1,
        timeout_keep_alive=75,
    )
    server = Server(config)
    world.go_down = server.go_down
    return server


def read_seed(path: Path | None) -> Seed:
    seed = Seed.model_validate_json(path.read_bytes()) if path else Seed()
    for recipient in seed.recipients.values():
        check_scenario(recipient)
    return seed


def print_scenarios() -> None:
    print("| name | case | played by | number ends in | what happens |\n|---|---|---|---|---|")
    for row in listing():
        cells = (row["name"], row["case"] or "", row["play"], row["number_suffix"] or "", row["says"])
        print("| " + " | ".join(map(str, cells)) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(prog="meta_simulator", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8090, help="0 for any free one")
    parser.add_argument("--seed", type=Path, help="JSON with the bodies of the /_sim PUTs by id")
    parser.add_argument("--keep", type=int, default=BOOKS_KEEP, help="calls, and webhooks, that /_sim tells of")
    parser.add_argument("--scenarios", action="store_true", help="print the table of scenarios and end")
    arguments = parser.parse_args()
    if arguments.scenarios:
        print_scenarios()
        return
    try:
        seed = read_seed(arguments.seed)
    except (OSError, ValidationError, HTTPException) as error:
        sys.exit(f"--seed: {error}")
    # uvicorn raises the signal again when it is done; by then there is nothing left to do.
    signal.signal(signal.SIGTERM, lambda *_: None)
    gc.set_threshold(50_000, 20, 100)
    server = make_server(seed, arguments.host, arguments.port, arguments.keep)
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(server.serve())


if __name__ == "__main__":
    main()
