"""Calls to Meta's Graph API. The verdict on every way a call can end is decided here and in answers.py.

Only the exceptions on the allow-list mean that nothing was sent (ADR 8). aiohttp itself, not httpx on top of it: that
cost more than twice the CPU a call, and raised `ConnectTimeout` for a refused connection as for one that was cut after
the whole request had been read.

Between the order to call and the first byte lie the wait for a connection and its making, seconds in which the right to
call may end: the last look at it is taken where the request is written.

A call that sends takes its connection from aiohttp's connector and leaves the answer to aiohttp's parser, without the
session in between: what that does for every request (cookies, redirects, payloads, a task that writes) took more than
half of the CPU of a call, and nothing of it concerns a POST of bytes.
"""

import asyncio
import os
import random
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import aiohttp
import certifi
from aiohttp.connector import Connection
from aiohttp.http import SERVER_SOFTWARE
from multidict import CIMultiDict, istr
from sendwhy.events import MetaError
from yarl import URL

from dispatcher.answers import (
    MaybeTaken,
    Outcome,
    answer_object,
    meta_error,
    read_answer,
    unreachable,
    unusable_token,
)
from dispatcher.settings import Settings
from dispatcher.tokens import Access


class ClosedBeforeWrite(Exception):
    """The connection was closed before the first byte of the request was written into it."""


SURELY_NOT_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, ClosedBeforeWrite)
ANSWER_BYTES_MAX = 256 * 1024
PAGE_BYTES_MAX = 8 * 1024 * 1024
# A server that closes an idle connection while we write makes an outcome unknown: don't keep them long.
KEEP_ALIVE_SECONDS = 8.0
PAGES_MAX = 200
CREDENTIALS = frozenset({"access_token", "appsecret_proof"})
# Beside the calls that send: numbers and templates are read.
READS_AT_ONCE = 50
_PORTFOLIO = re.compile(r"[0-9A-Za-z_\-]{1,64}")
_TEMPLATE_FIELDS = "id,name,language,status,category,parameter_format,components,quality_score,rejected_reason"
_TTL_FIELD = "message_send_ttl_seconds"
UNKNOWN_FIELD_CODE = 100


SWITCHING_PROTOCOLS = 101
_LINE_END = re.compile(r"[\r\n\0]")
# As aiohttp's session would write them.
_LINES = (
    "Host: {host}\r\nContent-Type: application/json\r\nAccept: */*\r\nAccept-Encoding: gzip, deflate\r\n"
    f"User-Agent: {SERVER_SOFTWARE}\r\n"
)
_AUTHORIZATION = istr("Authorization")
_HEADERS = CIMultiDict({istr("Content-Type"): "application/json"})


@dataclass(frozen=True, slots=True)
class _Answer:
    """`body` None: longer than allowed."""

    status: int
    body: bytes | None
    retry_after: str | None


class MetaRefused(Exception):
    """Meta answered a GET with an error object."""

    def __init__(self, error: MetaError) -> None:
        super().__init__(f"Meta answered code {error.code}")
        self.error = error


class MetaUnreachable(Exception):
    """A GET got no answer, or none that can be read."""


@dataclass(frozen=True, slots=True)
class Number:
    """What Meta tells of a number. `messaging_limit`: unique people in 24 h, None for `unlimited` or untold."""

    display_phone_number: str | None
    quality: str | None
    messages_per_second: int | None
    messaging_limit: int | None
    unlimited: bool = False


@dataclass(frozen=True, slots=True)
class Listing:
    """An account's templates; `incomplete` says why there may be more."""

    entries: list[Mapping[str, Any]]
    incomplete: str | None = None


@dataclass(frozen=True, slots=True)
class SubscribedApp:
    """An app that gets an account's webhooks. `override`: the address for this account alone, where one is set."""

    app_id: str
    name: str | None
    override: str | None


class Meta:
    """One client for all senders. Tokens come with each call and travel in a header, never in an address; the proof by
    an app's secret stands in the address, as Meta wants it. Exceptions may hold addresses: none leaves here."""

    def __init__(self, settings: Settings) -> None:
        self._base = f"{settings.meta_graph_url.rstrip('/')}/{settings.meta_api_version}"
        self._timeout = aiohttp.ClientTimeout(
            total=settings.meta_connect_timeout_seconds + settings.meta_read_timeout_seconds + 5,
            # The wait for a connection out of the pool, and its making.
            connect=settings.meta_connect_timeout_seconds,
            sock_connect=settings.meta_connect_timeout_seconds,
            sock_read=settings.meta_read_timeout_seconds,
        )
        self._connections_max = settings.calls_in_flight_max + READS_AT_ONCE
        self._certificates = ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE") or certifi.where())
        # Of the answer to a call, however slowly it comes.
        self._answer_seconds = settings.meta_read_timeout_seconds + 5
        self._opened: aiohttp.ClientSession | None = None
        # Where the connector connects to: a request that is never sent, of which it asks only that.
        self._address: aiohttp.ClientRequest | None = None
        url = URL(self._base)
        self._path = url.raw_path
        self._headers = _LINES.format(host=url.host_port_subcomponent)

    @property
    def _session(self) -> aiohttp.ClientSession:
        # Opened at the first call: it belongs to the loop that runs then.
        if self._opened is None:
            self._opened = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=self._connections_max, keepalive_timeout=KEEP_ALIVE_SECONDS, ssl=self._certificates
                ),
                # One client for all tenants: what Meta sets in one's cookie is not told of another.
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=self._timeout,
            )
        return self._opened

    async def close(self) -> None:
        if self._opened is not None:
            await self._opened.close()

    async def _connect(self) -> Connection:
        """Out of the pool, or a new one. Raises what `SURELY_NOT_SENT` names where none could be made."""
        connector = self._session.connector
        assert connector is not None
        if self._address is None:
            self._address = aiohttp.ClientRequest("POST", URL(self._base), loop=asyncio.get_running_loop())
        try:
            return await connector.connect(self._address, [], self._timeout)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError from error

    async def _post(self, request: bytes, may_start: Callable[[], bool]) -> _Answer | None:
        """Write a whole request at once and read the answer; None where `may_start` said no before the first byte."""
        connection = await self._connect()
        try:
            protocol = connection.protocol
            if protocol is None or protocol.transport is None or protocol.transport.is_closing():
                raise ClosedBeforeWrite
            protocol.set_response_params(read_until_eof=True, read_timeout=self._timeout.sock_read)
            # Nothing may come between these two: who is frozen in between would wake and call.
            if not may_start():
                return None
            protocol.transport.write(request)
            protocol.start_timeout()
            async with asyncio.timeout(self._answer_seconds):
                message, content = await protocol.read()
                while 100 <= message.code < 200 and message.code != SWITCHING_PROTOCOLS:
                    message, content = await protocol.read()
                answer = await _read(content, ANSWER_BYTES_MAX)
            if answer is not None:
                connection.release()
            return _Answer(message.code, answer, message.headers.get("retry-after"))
        finally:
            # What was not read to its end serves nobody else; after a release this does nothing.
            connection.close()

    def _request(self, sender_id: str, access: Access, body: bytes) -> bytes:
        proof = "" if access.proof is None else f"?appsecret_proof={access.proof}"
        head = (
            f"POST {self._path}/{sender_id}/messages{proof} HTTP/1.1\r\n{self._headers}"
            f"Authorization: Bearer {access.token}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    async def _ask(self, url: str, access: Access) -> _Answer:
        headers = CIMultiDict(_HEADERS)
        headers[_AUTHORIZATION] = f"Bearer {access.token}"
        if access.proof is not None:
            url = f"{url}{'&' if '?' in url else '?'}appsecret_proof={access.proof}"
        async with self._session.get(URL(url), headers=headers, allow_redirects=False) as response:
            answer = await _read(response.content, PAGE_BYTES_MAX)
            return _Answer(
                response.status,
                None if answer is None else access.scrubbed(answer),
                response.headers.get("retry-after"),
            )

    async def send(
        self, sender_id: str, access: Access, body: bytes, *, attempt: int, may_start: Callable[[], bool]
    ) -> Outcome | None:
        """POST /{sender_id}/messages, once; None where `may_start` said no before the first byte. Never raises for what
        Meta or the network does."""
        if _LINE_END.search(access.token):
            return unusable_token()
        jitter = random.random()
        try:
            answer = await self._post(self._request(sender_id, access, body), may_start)
        except SURELY_NOT_SENT as error:
            return unreachable(attempt=attempt, jitter=jitter, cause=type(error).__name__)
        except Exception as error:  # noqa: BLE001 - whatever is not on the allow-list may have been taken
            return MaybeTaken(type(error).__name__)
        if answer is None:
            return None
        if answer.body is None:
            return MaybeTaken("answer too long", answer.status)
        if 300 <= answer.status < 400:
            return MaybeTaken("redirect", answer.status)
        return read_answer(
            answer.status,
            access.scrubbed(answer.body),
            attempt=attempt,
            jitter=jitter,
            retry_after_seconds=retry_after_seconds(answer.retry_after, datetime.now(UTC)),
        )

    async def number(self, sender_id: str, access: Access) -> Number:
        """GET the number (Meta, "WhatsApp Business phone number"). Raises MetaRefused, MetaUnreachable."""
        fields = "display_phone_number,quality_rating,throughput,whatsapp_business_manager_messaging_limit"
        told = await self._get(f"{self._base}/{sender_id}?fields={fields}", access)
        throughput = told.get("throughput")
        level = throughput.get("level") if isinstance(throughput, dict) else throughput
        limit = told.get("whatsapp_business_manager_messaging_limit")
        return Number(
            display_phone_number=_digits(told.get("display_phone_number")),
            quality=_capitals(told.get("quality_rating")),
            messages_per_second=_per_second(level),
            messaging_limit=messaging_limit(limit),
            unlimited=is_unlimited(limit),
        )

    async def portfolio(self, waba_id: str, access: Access) -> str | None:
        """The business portfolio that owns an account (Meta, "WhatsApp Business Account", `owner_business_info`), as
        far as this token may know. Raises MetaUnreachable."""
        try:
            told = await self._get(f"{self._base}/{waba_id}?fields=owner_business_info", access)
        except MetaRefused:
            return None
        owner = told.get("owner_business_info")
        name = owner.get("id") if isinstance(owner, dict) else None
        return name if isinstance(name, str) and _PORTFOLIO.fullmatch(name) else None

    async def templates(self, waba_id: str, access: Access) -> "Listing":
        """GET all templates of an account, page by page. Raises MetaRefused, MetaUnreachable, also in the middle."""
        try:
            return await self._templates(waba_id, access, f"{_TEMPLATE_FIELDS},{_TTL_FIELD}")
        except MetaRefused as refused:
            # Without templates nothing goes out: whoever doesn't know the time to live is asked without it.
            if (
                refused.error.code != UNKNOWN_FIELD_CODE
                or _TTL_FIELD not in f"{refused.error.title} {refused.error.details}"
            ):
                raise
            return await self._templates(waba_id, access, _TEMPLATE_FIELDS)

    async def _templates(self, waba_id: str, access: Access, fields: str) -> "Listing":
        url = f"{self._base}/{waba_id}/message_templates?limit=200&fields={fields}"
        entries: list[Mapping[str, Any]] = []
        read: set[str] = set()
        while len(read) < PAGES_MAX:
            read.add(url)
            told = await self._get(url, access)
            data = told.get("data")
            if not isinstance(data, list):
                raise MetaUnreachable("a page of templates without a list `data`")
            # What can't be read stands in the list as nothing, so that nobody takes the list for whole.
            entries += [entry if isinstance(entry, dict) else {} for entry in data]
            paging = told.get("paging")
            if paging is None or (isinstance(paging, dict) and paging.get("next") is None):
                return Listing(entries)
            if not isinstance(paging, dict):
                return Listing(entries, "Whether there is a next page can't be read")
            following = self._next(paging["next"])
            if following is None:
                return Listing(entries, "The next page is not on Meta's own address, so it was not asked for")
            if following in read:
                return Listing(entries, "Meta named a page that was read before")
            url = following
        return Listing(entries, f"Meta has more than {PAGES_MAX} pages of templates")

    async def subscribed_apps(self, waba_id: str, access: Access) -> list[SubscribedApp]:
        """GET the apps that get an account's webhooks (Meta, "subscribed_apps"). Raises as `number`."""
        data = (await self._get(f"{self._base}/{waba_id}/subscribed_apps", access)).get("data")
        if not isinstance(data, list):
            raise MetaUnreachable("an answer without a list `data`")
        return [app for entry in data if (app := _subscribed_app(entry)) is not None]

    def _next(self, following: Any) -> str | None:
        # Followed only on Meta's own origin: the request carries the token. Meta writes the credentials into the link.
        if not isinstance(following, str) or urlsplit(following)[:2] != urlsplit(self._base)[:2]:
            return None
        address = urlsplit(following)
        query = [(name, value) for name, value in parse_qsl(address.query) if name not in CREDENTIALS]
        return address._replace(query=urlencode(query), fragment="").geturl()

    async def _get(self, url: str, access: Access) -> Mapping[str, Any]:
        try:
            answer = await self._ask(url, access)
        except Exception as error:  # noqa: BLE001 - whatever it is, it may hold the address
            raise MetaUnreachable(type(error).__name__) from None
        told = answer_object(answer.body or b"")
        if told is None:
            raise MetaUnreachable(f"HTTP {answer.status} without readable JSON")
        refused = meta_error(told.get("error"), answer.status)
        if refused is not None:
            raise MetaRefused(refused)
        if answer.status != 200:
            raise MetaUnreachable(f"HTTP {answer.status}")
        return told


def _subscribed_app(entry: Any) -> SubscribedApp | None:
    told = entry.get("whatsapp_business_api_data") if isinstance(entry, dict) else None
    if not isinstance(told, dict) or not isinstance(told.get("id"), str | int):
        return None
    name, override = told.get("name"), entry.get("override_callback_uri")
    return SubscribedApp(
        str(told["id"]), name if isinstance(name, str) else None, override if isinstance(override, str) else None
    )


async def _read(content: aiohttp.StreamReader, bytes_max: int) -> bytes | None:
    """The whole body, or None if it is longer than that."""
    parts: list[bytes] = []
    size = 0
    while part := await content.readany():
        size += len(part)
        if size > bytes_max:
            return None
        parts.append(part)
    return b"".join(parts)


_TIERS = {"TIER_50": 50, "TIER_250": 250, "TIER_1K": 1000, "TIER_2K": 2000, "TIER_10K": 10_000, "TIER_100K": 100_000}


def messaging_limit(told: Any) -> int | None:
    """Meta's messaging limit as a number: it comes as TIER_2K, 2000, "2000", UNLIMITED or -1 (pages disagree)."""
    if isinstance(told, dict):
        told = next(iter(told.values()), None)
    if isinstance(told, float) and told.is_integer():
        told = int(told)
    text = str(told).upper()
    if text in _TIERS:
        return _TIERS[text]
    text = text.removeprefix("TIER_")
    return int(text) if text.isdecimal() and len(text) < 10 else None


def is_unlimited(told: Any) -> bool:
    """Whether Meta says so: what it doesn't tell, or tells in new words, changes nothing."""
    return messaging_limit(told) is None and ("UNLIMITED" in str(told).upper() or str(told) in ("-1", "-1.0"))


def _per_second(level: Any) -> int | None:
    if isinstance(level, int) and not isinstance(level, bool) and 0 < level <= 1000:
        return level
    return {"STANDARD": 80, "HIGH": 1000}.get(str(level).upper())


def _digits(value: Any) -> str | None:
    return "".join(character for character in value if character.isdigit()) if isinstance(value, str) else None


def _capitals(value: Any) -> str | None:
    return value.upper()[:32] if isinstance(value, str) and value else None


def retry_after_seconds(header: str | None, now: datetime) -> float | None:
    """The header Retry-After: whole seconds, or a moment as HTTP writes it; None where it is neither."""
    if header is None:
        return None
    if header.isdecimal():
        return float(header) if len(header) < 7 else None
    try:
        moment = parsedate_to_datetime(header)
    except (ValueError, OverflowError):
        return None
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - now).total_seconds())
