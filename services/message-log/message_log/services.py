"""The other services over HTTP, asked with the rights of the person who asks us: by their own token, or by one that
`sendwhy.acting` sealed for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
import structlog
from httpx import QueryParams
from sendwhy.logs import describe
from sendwhy.problems import Problem
from sendwhy.reasons import Service
from sendwhy.settings import PREFIX

from message_log.language import gettext as _
from message_log.settings import MessageLogSettings

ASK_SECONDS = 20.0

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

    def __init__(self, settings: MessageLogSettings) -> None:
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
        self, service: Service, path: str, authorization: str, asked: Sequence[tuple[str, str]] = ()
    ) -> Answer:
        return await self._ask("GET", service, path, authorization, params=QueryParams(list(asked)))

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
        return await self._ask(method, service, path, authorization, headers=headers, **more)

    async def _ask(
        self,
        method: str,
        service: Service,
        path: str,
        authorization: str,
        *,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> Answer:
        url = self._urls[service]
        if url is None:
            name = f"{PREFIX}{service.replace('-', '_').upper()}_URL"
            raise Problem(503, _("%(name)s is not set, so %(service)s can't be asked.", name=name, service=service))
        address = f"{str(url).rstrip('/')}{path}"
        try:
            answer = await self._http.request(
                method, address, headers={"authorization": authorization, **(headers or {})}, **more
            )
            body = answer.json() if answer.content else None
        except (httpx.HTTPError, ValueError) as error:
            log.warning("a service could not be asked", service=service, error=describe(error))
            raise Problem(503, _("%(service)s can't be reached just now; try again.", service=service)) from None
        if answer.status_code >= 500:
            log.warning("a service failed", service=service, status=answer.status_code)
            raise Problem(
                503, _("%(service)s answered %(status)s; try again.", service=service, status=answer.status_code)
            )
        return Answer(answer.status_code, body)


def path_of(workspace: str, *parts: str) -> str:
    """/v1/workspaces/{workspace}/… with each part quoted."""
    return "/".join(["/v1/workspaces", *(quote(part, safe="") for part in (workspace, *parts))])
