"""`sendwhy demo`: sample requests through the whole product, and what became of each of them, by reason.

Everything that comes out is caused by the data in the folder `demo` (its README): this module starts a stack on an
empty state directory, sets the world up over public HTTP, plays the steps of plan.json and waits for all outcomes.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import hmac
import json
import os
import shlex
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from local_stack.errors import StackError
from local_stack.progress import Progress
from local_stack.state import StateDir
from local_stack.supervisor import Options, Stack, first_of, how_to_log_in, stop_on_signals
from pydantic import AwareDatetime, BaseModel, ConfigDict
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text
from sendwhy.reasons import CATALOGUE, ReasonCode

from sendwhy_cli.errors import CommandError, Exit
from sendwhy_cli.send import publish
from sendwhy_cli.stack import RunningStack
from sendwhy_cli.terminal import status as status_text

Json = dict[str, Any]

# Whose webhooks `shopify_secret` of stack.json signs.
SHOP = "demo"
# What takes 30 days and 10 minutes otherwise; the caller's own SENDWHY_ settings win.
SETTINGS = {"SENDWHY_RECEIPT_TTL_SECONDS": "12", "SENDWHY_UNKNOWN_OUTCOME_SECONDS": "15"}
MARKER = "demo.json"
ENDED = frozenset({"delivered", "read", "failed"})
POLL_SECONDS = 1.0
# A `delivered` may become `read`, and a failure that was inferred may be undone by a late receipt.
QUIET_SECONDS = 4.0
STALLED_SECONDS = 90.0
PLAIN_PROGRESS_SECONDS = 5.0
TABLE_WIDTH = 150
MISSING_SHOWN = 20
TIMES = ("requested_at", "send_at", "expires_at")


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Step(_Data):
    """What happens at once, in this order; `wait`: until every request so far has its outcome.

    `customers`: files of customers that the shop tells anew; `top_ups`: credits by workspace.
    """

    title: str
    recipients: dict[str, Json] = {}
    webhooks: list[str] = []
    customers: list[str] = []
    top_ups: dict[str, int] = {}
    requests: list[str] = []
    cancel: list[str] = []
    wait: bool = False


class Plan(_Data):
    """`base_time` is the moment that the files' times are relative to: that of their publishing."""

    base_time: AwareDatetime
    steps: list[Step]


class Sender(_Data):
    id: str
    waba_id: str
    portfolio_id: str
    default: bool = False


class Workspace(_Data):
    contacts: str
    senders: list[Sender] = []
    credits: int | None = None
    prices: list[Json] = []
    throttles: dict[str, Json] = {}
    paused_campaigns: list[str] = []


class Workspaces(BaseModel):
    """workspaces.json by workspace."""

    by_id: dict[str, Workspace]


class Meta(_Data):
    """What stands at Meta: bodies of the simulator's controls, by their ids."""

    accounts: dict[str, Json]
    numbers: dict[str, Json]
    recipients: dict[str, Json]


class DemoStack(RunningStack):
    meta: str
    meta_app_id: str
    meta_app_secret: str
    shopify_secret: str


@dataclass(frozen=True)
class Data:
    folder: Path
    plan: Plan
    workspaces: dict[str, Workspace]
    meta: Meta

    @classmethod
    def load(cls, folder: Path) -> Data:
        """Raises CommandError if the folder holds no demo."""
        try:
            plan = Plan.model_validate_json((folder / "plan.json").read_bytes())
            workspaces = Workspaces(by_id=json.loads((folder / "workspaces.json").read_bytes()))
            meta = Meta.model_validate_json((folder / "meta.json").read_bytes())
        except FileNotFoundError as error:
            sentence = f"no demo is in {folder}: run this in the repository's folder, or name the demo's by --data"
            raise CommandError(Exit.USAGE, sentence) from error
        except (OSError, ValueError) as error:
            first = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
            raise CommandError(Exit.USAGE, f"{folder} holds no demo ({first}); name its folder by --data") from error
        return cls(folder, plan, workspaces.by_id, meta)

    def lines(self, name: str) -> list[Json]:
        return [json.loads(line) for line in (self.folder / name).read_bytes().splitlines() if line.strip()]


@dataclass(frozen=True)
class Outcome:
    """How a message ended. `variant` is which of a reason's kinds: the marketing_state, the template's status."""

    status: str
    service: str | None = None
    reason: str | None = None
    variant: str = ""

    @classmethod
    def of(cls, message: Json) -> Outcome:
        reason = message["reason"] or {}
        return cls(message["status"], message["service"], reason.get("code"), _variant(reason))


def _variant(reason: Json) -> str:
    evidence = reason.get("evidence") or {}
    if reason.get("code") == ReasonCode.META_ERROR:
        told = reason.get("meta") or {}
        return f"{told.get('code')}: {told.get('title')}"
    if reason.get("code") in (ReasonCode.CUSTOMER_IS_NOT_OPTED_IN, ReasonCode.TEMPLATE_NOT_APPROVED):
        return str(evidence.get("marketing_state") or evidence.get("status") or "")
    return ""


@dataclass
class Show:
    """One playing of the data on a running stack. `sent`: message_id to workspace, in order."""

    stack: DemoStack
    data: Data
    progress: Progress
    ours: httpx.AsyncClient
    meta: httpx.AsyncClient
    sent: dict[str, str] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    @classmethod
    @contextlib.asynccontextmanager
    async def on(cls, stack: DemoStack, data: Data, progress: Progress) -> AsyncIterator[Show]:
        token = {"Authorization": f"Bearer {stack.admin_token}"}
        async with (
            httpx.AsyncClient(headers=token, timeout=60, trust_env=False) as ours,
            httpx.AsyncClient(base_url=stack.meta, timeout=60, trust_env=False) as meta,
        ):
            yield cls(stack, data, progress, ours, meta)

    async def play(self) -> None:
        """Returns when every request has its outcome, or nothing has changed for too long."""
        with self.progress.step("Meta's side"):
            await self._set_up_meta()
        for workspace, wanted in self.data.workspaces.items():
            with self.progress.step(f"workspace {workspace}"):
                await self._set_up_workspace(workspace, wanted)
        for step in self.data.plan.steps:
            with self.progress.step(step.title):
                await self._play(step)
            if step.wait and not await self._wait():
                return

    @property
    def missing(self) -> list[str]:
        return [name for name in self.sent if self._status(name) not in ENDED]

    def _status(self, message_id: str) -> str:
        outcome = self.outcomes.get(message_id)
        return outcome.status if outcome else "sending"

    # --- the world, before anything is sent ---

    async def _set_up_meta(self) -> None:
        for account, body in self.data.meta.accounts.items():
            await _call(self.meta, "PUT", f"/_sim/accounts/{account}", json=body)
        for number, body in self.data.meta.numbers.items():
            ours = {
                "access_token": _token(number),
                "app_id": self.stack.meta_app_id,
                "app_secret": self.stack.meta_app_secret,
                "webhook_url": f"{self.stack.services['webhook-ingest']}/webhooks/meta",
            }
            await _call(self.meta, "PUT", f"/_sim/numbers/{number}", json=body | ours)
        await self._set_recipients(self.data.meta.recipients)

    async def _set_recipients(self, recipients: dict[str, Json]) -> None:
        for phone, body in recipients.items():
            await _call(self.meta, "PUT", f"/_sim/recipients/{phone}", json=body)

    async def _set_up_workspace(self, workspace: str, wanted: Workspace) -> None:
        for sender in wanted.senders:
            body = sender.model_dump(exclude={"id"})
            body |= {"access_token": _token(sender.id), "app_id": self.stack.meta_app_id}
            await self._ask("PUT", "dispatcher", workspace, f"senders/{sender.id}", json=body)
        for known in await self._ask("GET", "dispatcher", workspace, "senders"):
            await self._ask("POST", "dispatcher", workspace, f"senders/{known['sender_id']}/sync")
        if wanted.prices:
            await self._ask("PUT", "billing", workspace, "prices", json=wanted.prices)
        if wanted.credits:
            await self._top_up(workspace, wanted.credits, "demo-invoice-1")
        for campaign, throttle in wanted.throttles.items():
            await self._ask("PUT", "dispatcher", workspace, f"throttles/{campaign}", json=throttle)
        for campaign in wanted.paused_campaigns:
            await self._ask("POST", "dispatcher", workspace, f"campaigns/{campaign}/pause")
        await self._import(workspace, wanted.contacts)

    async def _top_up(self, workspace: str, credits: int, reference: str) -> None:
        body = {"credits": credits, "reference": reference}
        await self._ask("POST", "billing", workspace, "top-ups", json=body, headers={"Idempotency-Key": reference})

    async def _import(self, workspace: str, name: str) -> None:
        csv = (self.data.folder / name).read_bytes()
        told = await self._ask(
            "POST", "consent", workspace, "contacts/import", content=csv, headers={"Content-Type": "text/csv"}
        )
        self.progress.say(f"{name}: {told['imported']} contacts imported, {told['refused_count']} rows refused")
        for row in told["refused"]:
            what = " ".join(filter(None, (row["field"], row["detail"])))
            self.progress.say(f"  row {row['row']}: {what}")

    async def _ask(self, method: str, service: str, workspace: str, path: str, **body: Any) -> Any:
        url = f"{self.stack.services[service]}/v1/workspaces/{workspace}/{path}"
        headers = body.pop("headers", {})
        if method != "GET":
            headers = {"Idempotency-Key": f"demo/{path}"} | headers
        return await _call(self.ours, method, url, headers=headers, **body)

    # --- the steps ---

    async def _play(self, step: Step) -> None:
        await self._set_recipients(step.recipients)
        for name in step.webhooks:
            for webhook in self.data.lines(name):
                await self._tell(webhook)
        for name in step.customers:
            for customer in self.data.lines(name):
                await self._correct(customer)
        for workspace, credits in step.top_ups.items():
            await self._top_up(workspace, credits, "demo-invoice-2")
        bodies = [body for name in step.requests for body in self.data.lines(name)]
        if bodies:
            await self._publish(bodies)
        for message_id in step.cancel:
            await self._ask("POST", "dispatcher", self.sent[message_id], f"messages/{message_id}/cancel")

    async def _tell(self, webhook: Json) -> None:
        """Has the simulator cause what the webhook tells, so that it knows of it too; the signed webhook follows."""
        for entry in webhook["entry"]:
            for change in entry["changes"]:
                for method, path, body in self._causes(entry["id"], change["field"], change["value"]):
                    await _call(self.meta, method, path, json=body)

    async def _correct(self, customer: Json) -> None:
        """What Shopify sends when somebody mends a customer there; returns when consent knows the number."""
        body = json.dumps(customer | {"updated_at": datetime.now(UTC).isoformat()}).encode()
        signature = hmac.digest(self.stack.shopify_secret.encode(), body, "sha256")
        headers = {
            "Content-Type": "application/json",
            "X-Shopify-Topic": "customers/update",
            "X-Shopify-Hmac-Sha256": base64.b64encode(signature).decode(),
        }
        url = f"{self.stack.services['webhook-ingest']}/webhooks/shopify/{SHOP}"
        await _call(self.meta, "POST", url, content=body, headers=headers)
        await self._known(f"contacts/shopify:{customer['id']}", customer["phone"])

    async def _known(self, contact: str, phone: str) -> None:
        deadline = time.monotonic() + STALLED_SECONDS
        while True:
            if (await self._ask("GET", "consent", SHOP, contact))["phone"] == phone:
                return
            if time.monotonic() > deadline:
                raise CommandError(Exit.BAD_ANSWER, f"{contact} was corrected in the shop, and consent doesn't know it")
            await asyncio.sleep(POLL_SECONDS)

    def _causes(self, account: str, name: str, value: Json) -> Iterator[tuple[str, str, Json]]:
        if name == "message_template_status_update":
            template = f"{value['message_template_name']}/{value['message_template_language']}"
            change = {"status": value["event"], "reason": value["reason"]}
            yield "PATCH", f"/_sim/templates/{account}/{template}", change
            return
        number = value["metadata"]["phone_number_id"]
        profile = value["contacts"][0]["profile"]["name"]
        for message in value.get("messages", []):
            ago = self.data.plan.base_time.timestamp() - int(message["timestamp"])
            said = message | {"timestamp": str(int(time.time() - ago))}
            body = {"phone_number_id": number, "from": message["from"], "name": profile, "message": said}
            yield "POST", "/_sim/inbound", body | {"seconds_ago": max(0, ago)}
        for preference in value.get("user_preferences", []):
            body = {"phone_number_id": number, "from": preference["wa_id"], "name": profile}
            yield "POST", "/_sim/inbound", body | {"marketing": preference["value"]}

    async def _publish(self, bodies: list[Json]) -> None:
        later = datetime.now(UTC) - self.data.plan.base_time
        lines = [json.dumps(shifted(body, later), ensure_ascii=False).encode() for body in bodies]
        sent = await publish(self.stack.kafka, lines, lambda _length: None)
        if sent.acknowledged < len(lines):
            raise CommandError(Exit.BAD_ANSWER, f"{len(lines) - sent.acknowledged} requests were not acknowledged")
        self.sent |= {body["message_id"]: body["workspace_id"] for body in bodies}

    async def _wait(self) -> bool:
        """False if nothing has changed for STALLED_SECONDS and some have no outcome still."""
        changed_at = time.monotonic()
        with self._bar() as show:
            while True:
                before, self.outcomes = self.outcomes, await self._read()
                if self.outcomes != before:
                    changed_at = time.monotonic()
                still = time.monotonic() - changed_at
                missing = len(self.missing)
                show(len(self.sent) - missing, len(self.sent))
                if not missing and still >= QUIET_SECONDS:
                    return True
                if still >= STALLED_SECONDS:
                    return False
                await asyncio.sleep(POLL_SECONDS)

    async def _read(self) -> dict[str, Outcome]:
        """What message-log tells of every request published so far."""
        found: dict[str, Outcome] = {}
        for workspace in dict.fromkeys(self.sent.values()):
            cursor: str | None = ""
            while cursor is not None:
                path = f"messages?limit=500{f'&cursor={quote(cursor)}' if cursor else ''}"
                page = await self._ask("GET", "message-log", workspace, path)
                found |= {item["message_id"]: Outcome.of(item) for item in page["items"]}
                cursor = page["next_cursor"]
        return found

    @contextlib.contextmanager
    def _bar(self) -> Iterator[Callable[[int, int], None]]:
        console, started = self.progress.console, time.monotonic()
        what = "requests have an outcome"
        if console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn(what), TimeElapsedColumn())
            with Bar(*columns, console=console, transient=True) as bar:
                task = bar.add_task("")
                yield lambda done, total: bar.update(task, completed=done, total=total)
        else:
            yield _plain(lambda done, total: self.progress.say(f"{done} of {total} {what}"))
        ended = len(self.sent) - len(self.missing)
        self.progress.say(f"{ended} of {len(self.sent)} {what}, {time.monotonic() - started:.1f} s")


def _plain(say: Callable[[int, int], None]) -> Callable[[int, int], None]:
    told = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told >= PLAIN_PROGRESS_SECONDS:
            told = time.monotonic()
            say(done, total)

    return show


def _token(number: str) -> str:
    return f"simulated-token-of-{number}"


async def _call(client: httpx.AsyncClient, method: str, url: str, **body: Any) -> Any:
    try:
        answer = await client.request(method, url, **body)
    except httpx.TransportError as error:
        raise CommandError(Exit.UNREACHABLE, f"{method} {url} failed: {error!r}") from error
    if answer.is_error:
        raise CommandError(
            Exit.BAD_ANSWER, f"{method} {answer.url} was answered {answer.status_code}: {answer.text[:500]}"
        )
    return answer.json() if answer.content else None


def shifted(body: Json, later: timedelta) -> Json:
    """The request with its times moved."""
    moved = {name: datetime.fromisoformat(body[name]) + later for name in TIMES if body.get(name)}
    return body | {name: moment.isoformat().replace("+00:00", "Z") for name, moment in moved.items()}


# --- what is told at the end ---


def table(outcomes: Iterable[Outcome]) -> Table:
    """One row for each way to end, the good ones first."""
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    made.add_column("status", no_wrap=True)
    made.add_column("reason", ratio=3)
    made.add_column("said by", no_wrap=True)
    made.add_column("count", justify="right", no_wrap=True)
    made.add_column("what to do", ratio=5)
    order = {"read": 0, "delivered": 1}
    counts = Counter(outcomes)
    for outcome, count in sorted(counts.items(), key=lambda pair: (order.get(pair[0].status, 2), *_place(pair[0]))):
        info = CATALOGUE[ReasonCode(outcome.reason)] if outcome.reason else None
        title = f"{info.title}: {outcome.variant}" if info and outcome.variant else info.title if info else ""
        made.add_row(
            status_text(outcome.status),
            Text(title),
            outcome.service or "",
            str(count),
            Text(info.what_to_do if info else ""),
        )
    return made


def _place(outcome: Outcome) -> tuple[int, str]:
    """The catalogue's order, which is the order of a message's way."""
    codes = list(ReasonCode)
    return (codes.index(ReasonCode(outcome.reason)) if outcome.reason else -1), outcome.variant


def tell(show: Show, state_dir: Path, seconds: float, *, stays: bool) -> None:
    """Table and hints on stdout."""
    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=TABLE_WIDTH)
    ended = {name: outcome for name, outcome in show.outcomes.items() if outcome.status in ENDED}
    console.print(table(show.outcomes[name] for name in show.sent if name in show.outcomes))
    good = sum(outcome.status != "failed" for outcome in ended.values())
    failed = len(ended) - good
    console.print(
        f"{len(show.sent)} requests in {seconds:.0f} s: {good} arrived, {failed} failed,"
        f" {len(show.missing)} have no outcome. Every failure has its reason, and who says it.\n"
    )
    for line in _hints(show, state_dir, stays=stays):
        console.print(line, markup=False, soft_wrap=True)


def _hints(show: Show, state_dir: Path, *, stays: bool) -> Iterator[str]:
    where = f"--state-dir {shlex.quote(str(state_dir))}"
    if stays:
        yield f"pages: {show.stack.services['message-log']}   workspace demo"
        yield how_to_log_in(state_dir)
    else:
        yield f"The pages are gone. `sendwhy up {where}` brings everything back:"
        yield f"{how_to_log_in(state_dir)}, and"
    for message_id in _examples(show):
        yield f"  sendwhy why {shlex.quote(message_id)} {where} --workspace {show.sent[message_id]}"
    if stays:
        yield "Ctrl-C ends all of it."


def _examples(show: Show) -> list[str]:
    """One that arrived and two that did not."""
    chosen: dict[str | None, str] = {}
    for name in show.sent:
        if name in show.outcomes:
            chosen.setdefault(show.outcomes[name].reason, name)
    return list(chosen.values())[:3]


def write_report(show: Show, path: Path) -> None:
    """Every request with its outcome, in the order of publishing (contract.md, "The local stack")."""
    rows = []
    for message_id in show.sent:
        outcome = show.outcomes.get(message_id, Outcome("sending"))
        row = {"message_id": message_id, "status": outcome.status, "service": outcome.service}
        rows.append(row | {"reason": outcome.reason})
    try:
        path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise CommandError(Exit.USAGE, f"{path}: {error.strerror}") from error


def check_report(path: Path) -> None:
    """Raises CommandError for a report that couldn't be written: better now than after the whole demo."""
    if path.is_dir():
        raise CommandError(Exit.USAGE, f"--report {path} is a directory: name a file")
    if not path.parent.is_dir():
        raise CommandError(Exit.USAGE, f"--report {path}: there is no directory {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise CommandError(Exit.USAGE, f"--report {path} can't be written: {os.strerror(errno.EACCES)}")


# --- the stack around it ---


def make_fresh(state_dir: Path) -> None:
    """Empties the directory of a former demo: the same message_ids again would change nothing.

    Raises CommandError if it holds anything else, StackError if a demo runs there.
    """
    if not _is_empty(state_dir):
        if not (state_dir / MARKER).exists():
            raise CommandError(
                Exit.USAGE, f"{state_dir} holds something else than a former demo, and the demo starts from nothing"
            )
        os.close(StateDir(state_dir).lock())
        shutil.rmtree(state_dir)
    StateDir(state_dir).write_json(MARKER, {"started_at": datetime.now(UTC).isoformat()})


def _is_empty(folder: Path) -> bool:
    try:
        return not any(folder.iterdir())
    except FileNotFoundError:
        return True
    except OSError as error:
        raise CommandError(Exit.USAGE, f"--state-dir {folder} can't be used: {error.strerror}") from error


async def demo(state_dir: Path, data: Data, report: Path | None, *, stays: bool, progress: Progress) -> int:
    """Runs until all is told, or with `stays` until SIGINT, SIGTERM or SIGHUP; returns the exit code."""
    make_fresh(state_dir)
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    stack = Stack(Options(state_dir), progress)
    told = asyncio.Event()

    async def perform() -> int:
        started = time.monotonic()
        await stack.start()
        running = DemoStack.model_validate_json((state_dir / "stack.json").read_bytes())
        progress.say(f"ready after {time.monotonic() - started:.1f} s; pages: {running.services['message-log']}")
        async with _beside(stack.watch()), Show.on(running, data, progress) as show:
            await show.play()
            code = _conclude(show, state_dir, report, time.monotonic() - started, stays=stays)
            told.set()
            if stays:
                await asyncio.Event().wait()
        return code

    work = asyncio.create_task(perform())
    stop_on_signals(stack, work, progress)
    try:
        await asyncio.wait([work])
    finally:
        with progress.step("stopping"):
            await stack.stop()
    if work.cancelled():
        return Exit.DONE if told.is_set() and not stack.killed else Exit.INTERRUPTED
    return work.result()


def _conclude(show: Show, state_dir: Path, report: Path | None, seconds: float, *, stays: bool) -> int:
    tell(show, state_dir, seconds, stays=stays)
    if report is not None:
        write_report(show, report)
    if not show.missing:
        return Exit.DONE
    names = ", ".join(f"{name} ({show.sent[name]}, {show._status(name)})" for name in show.missing[:MISSING_SHOWN])
    show.progress.say(f"{len(show.missing)} requests have no outcome: {names}")
    return Exit.BAD_ANSWER


@contextlib.asynccontextmanager
async def _beside(work: Awaitable[None]) -> AsyncIterator[None]:
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def run(state_dir: Path, folder: Path, report: Path | None, *, stays: bool) -> int:
    """The whole command. Raises CommandError."""
    data = Data.load(folder)
    if report is not None:
        check_report(report)
    try:
        return asyncio.run(demo(state_dir, data, report, stays=stays, progress=Progress()))
    except (StackError, BaseExceptionGroup) as error:
        first = first_of(error)
        if not isinstance(first, StackError):
            raise
        raise CommandError(Exit(first.exit_code), str(first)) from error
