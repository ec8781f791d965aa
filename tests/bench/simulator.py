"""What the simulator of Meta itself costs: CPU microseconds per send and per webhook, of its process only.

    .venv/bin/python tests/bench/simulator.py --sends 20000

The same sends are made twice, first without any webhook, then with three each: what the second round costs more is the
webhooks'. Whoever measures Sendwhy on one machine with the simulator has this on top of the services' own figures.
"""

import argparse
import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

import aiohttp
import psutil
from aiohttp import web
from processes import cpu_of

SENDS_AT_ONCE = 64
NUMBER, WABA, TOKEN = "100000000000777", "200000000000777", "bench-token"
AUTHORIZATION = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}


class Receiver:
    """Answers 200 to every webhook and counts them."""

    def __init__(self) -> None:
        self.count = 0

    async def hook(self, request: web.BaseRequest) -> web.Response:
        await request.read()
        self.count += 1
        return web.Response()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        runner = web.ServerRunner(web.Server(self.hook, access_log=None))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}/"
        await runner.cleanup()


@contextlib.asynccontextmanager
async def simulator() -> AsyncIterator[tuple[psutil.Process, str]]:
    program = (sys.executable, "-m", "meta_simulator", "--port", "0")
    process = await asyncio.create_subprocess_exec(*program, stdout=asyncio.subprocess.PIPE)
    assert process.stdout
    try:
        line = await asyncio.wait_for(process.stdout.readline(), 60)
        yield psutil.Process(process.pid), line.decode().split()[-1]
    finally:
        process.terminate()
        await process.wait()


def send_body(number: int) -> bytes:
    return (
        f'{{"messaging_product":"whatsapp","recipient_type":"individual","to":"+5255{10_000_000 + number}",'
        '"type":"template","template":{"name":"autumn_sale","language":{"code":"es_MX"},"components":'
        '[{"type":"body","parameters":[{"type":"text","text":"In\\u00e9s"}]}]},'
        f'"biz_opaque_callback_data":"sw1:bench:m{number}"}}'
    ).encode()


async def send(http: aiohttp.ClientSession, base: str, numbers: range) -> None:
    waiting, url = iter(numbers), f"{base}/v25.0/{NUMBER}/messages"

    async def send_some() -> None:
        for number in waiting:
            async with http.post(url, data=send_body(number), headers=AUTHORIZATION) as got:
                assert got.status == 200, await got.text()
                await got.read()

    await asyncio.gather(*(send_some() for _ in range(SENDS_AT_ONCE)))


async def control(http: aiohttp.ClientSession, url: str, body: object) -> None:
    async with http.put(url, json=body) as answer:
        assert answer.status == 200, await answer.text()


async def main(sends: int) -> None:
    receiver = Receiver()
    async with receiver.running() as hook, simulator() as (process, base), aiohttp.ClientSession() as http:
        components = [{"type": "BODY", "text": "Hola {{1}}"}]
        template = {"name": "autumn_sale", "language": "es_MX", "category": "MARKETING", "components": components}
        await control(http, f"{base}/_sim/accounts/{WABA}", {"templates": [template]})
        number = {
            "waba_id": WABA,
            "access_token": TOKEN,
            "app_secret": "secret",
            "webhook_url": hook,
            "messages_per_second": 1_000_000,
        }
        await control(http, f"{base}/_sim/numbers/{NUMBER}", number)
        silent = {"latency_ms": 0, "answers": {"accepted_then_silence": 1.0}}
        took: list[float] = []
        for settings, webhooks in ((silent, 0), ({"latency_ms": 0}, 3)):
            await control(http, f"{base}/_sim/settings", settings)
            before = cpu_of(process, alone=True)
            await send(http, base, range(len(took) * sends, (len(took) + 1) * sends))
            while receiver.count < webhooks * sends:
                await asyncio.sleep(0.05)
            took.append(cpu_of(process, alone=True) - before)
            print(f"{sends} sends, {webhooks} webhooks each: {took[-1]:.2f} s of CPU")
    each = took[0] / sends * 1e6
    webhook = (took[1] - took[0]) / (3 * sends) * 1e6
    whole = each + 3 * webhook
    print(f"{each:,.0f} µs a send, {webhook:,.0f} µs a webhook, {whole:,.0f} µs a message with three webhooks")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sends", type=int, default=20_000)
    asyncio.run(main(parser.parse_args().sends))
