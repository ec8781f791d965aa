"""The other services over HTTP, asked with the rights of the person who asks us: by their own token, or by one that
`sendwhy.acting` sealed for them."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
import structlog
from httpx import QueryParams
from sendwhy.logs import describe
from sendwhy.metrics import Metric, Metrics
from sendwhy.problems import Problem
from sendwhy.reasons import Service
from sendwhy.settings import PREFIX

from message_log.language import gettext as _
from message_log.settings import MessageLogSettings

ASK_SECONDS = 20.0
# A part of a page: who looks at it waits no longer for a service that hangs.
PART_SECONDS = 4.0

log = structlog.get_logger("sendwhy")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a service answered below 500. `body`: its JSON, None where there is none."""

    status: int
    body: Any

    @property
    def is_good(self) -> bool:
        return self.status < 400

    @property
    def refusal(self) -> str:
        """In the service's own words, with the fields that it names."""
        problem = self.body if isinstance(self.body, dict) else {}
        errors = problem.get("errors")
        listed = [each for each in errors if isinstance(each, dict)] if isinstance(errors, list) else []
        named = "; ".join(f"{each.get('field')}: {each.get('detail')}" for each in listed)
        told = str(problem.get("detail") or problem.get("title") or _("It answered %(status)s.", status=self.status))
        return f"{told} ({named})" if named else told


class OtherServices:
    """One client for all. A service that has no address, can't be reached or fails is a 503 that names it."""

    def __init__(self, settings: MessageLogSettings, metrics: Metrics) -> None:
        self._metrics = metrics
        self._http = httpx.AsyncClient(timeout=ASK_SECONDS, trust_env=False)
        self._urls = {
            Service.CONSENT: settings.consent_url,
            Service.BILLING: settings.billing_url,
            Service.DISPATCHER: settings.dispatcher_url,
            Service.WEBHOOK_INGEST: settings.webhook_ingest_url,
        }

    async def close(self) -> None:
        await self._http.aclose()

    def has_address(self, service: Service) -> bool:
        return self._urls.get(service) is not None

    async def probe(self, service: Service, path: str) -> httpx.Response:
        """GET what needs no token, as /livez, whatever it answers. Raises httpx.HTTPError."""
        return await self._http.get(f"{str(self._urls[service]).rstrip('/')}{path}")

    async def get(
        self,
        service: Service,
        path: str,
        authorization: str,
        asked: Sequence[tuple[str, str]] = (),
        *,
        seconds: float = ASK_SECONDS,
    ) -> Answer:
        request = self._request("GET", service, path, authorization, params=QueryParams(list(asked)))
        return await self._ask(service, request, seconds)

    async def write(
        self,
        method: str,
        service: Service,
        path: str,
        authorization: str,
        body: Mapping[str, Any] | None = None,
        *,
        key: str | None = None,
        asked: Sequence[tuple[str, str]] = (),
    ) -> Answer:
        """A PUT, POST or DELETE; `key`: its Idempotency-Key, `asked`: its query."""
        headers = {"idempotency-key": key} if key is not None else {}
        more: dict[str, Any] = {} if body is None else {"json": dict(body)}
        if asked:
            more["params"] = QueryParams(list(asked))
        request = self._request(method, service, path, authorization, headers=headers, **more)
        return await self._ask(service, request, ASK_SECONDS)

    async def question(
        self, service: Service, path: str, authorization: str, body: Mapping[str, Any], *, seconds: float
    ) -> Answer:
        """A POST that changes nothing."""
        return await self._ask(service, self._request("POST", service, path, authorization, json=dict(body)), seconds)

    async def file(
        self, service: Service, path: str, authorization: str, asked: Sequence[tuple[str, str]] = ()
    ) -> httpx.Response:
        """GET a file: its head is here and its body comes piece by piece; whoever has it closes it. A refusal is a
        Problem."""
        request = self._request("GET", service, path, authorization, params=QueryParams(list(asked)))
        answer, body = await self._exchange(service, request, is_file=True)
        if answer.is_error:
            raise Problem(answer.status_code, Answer(answer.status_code, body).refusal)
        return answer

    async def _ask(self, service: Service, request: httpx.Request, seconds: float) -> Answer:
        answer, body = await self._exchange(service, request, seconds)
        return Answer(answer.status_code, body)

    def _request(
        self,
        method: str,
        service: Service,
        path: str,
        authorization: str,
        *,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> httpx.Request:
        url = self._urls[service]
        if url is None:
            name = f"{PREFIX}{service.replace('-', '_').upper()}_URL"
            raise Problem(503, _("%(name)s is not set, so %(service)s can't be asked.", name=name, service=service))
        address = f"{str(url).rstrip('/')}{path}"
        return self._http.build_request(
            method, address, headers={"authorization": authorization, **(headers or {})}, **more
        )

    async def _exchange(
        self, service: Service, request: httpx.Request, seconds: float = ASK_SECONDS, *, is_file: bool = False
    ) -> tuple[httpx.Response, Any]:
        """The answer and its JSON; of a file that is there only the head. A failure is a 503 that names the service."""
        started, result = time.monotonic(), "failed"
        try:
            async with asyncio.timeout(seconds):
                answer = await self._http.send(request, stream=is_file)
                body = None
                if not is_file or answer.is_error:
                    body = answer.json() if await answer.aread() else None
            if answer.status_code < 500:
                result = "answered" if answer.status_code < 400 else "refused"
        except TimeoutError:
            log.warning("a service did not answer in time", service=service, seconds=seconds)
            told = _("%(service)s did not answer within %(seconds)s s.", service=service, seconds=round(seconds))
            raise Problem(503, told) from None
        except (httpx.HTTPError, ValueError) as error:
            log.warning("a service could not be asked", service=service, error=describe(error))
            raise Problem(503, _("%(service)s can't be reached just now; try again.", service=service)) from None
        finally:
            seconds = time.monotonic() - started
            self._metrics.observe(Metric.SERVICE_CALL_SECONDS, seconds, service=service, result=result)
        if answer.status_code >= 500:
            log.warning("a service failed", service=service, status=answer.status_code)
            raise Problem(
                503, _("%(service)s answered %(status)s; try again.", service=service, status=answer.status_code)
            )
        return answer, body


def path_of(workspace: str, *parts: str) -> str:
    """/v1/workspaces/{workspace}/… with each part quoted."""
    return "/".join(["/v1/workspaces", *(quote(part, safe="") for part in (workspace, *parts))])
