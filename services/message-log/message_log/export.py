"""Everything that all services hold of one person, as one JSON document for an operator to hand out.

Each service is asked with the caller's own token. One that can't be reached makes the whole a 503 that names it: an
export with a gap in it would look complete.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import structlog
from asyncpg import Record
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from sendwhy.events import ContactId, Moment
from sendwhy.http import Cursor, Operator, cursor_of, position_of
from sendwhy.postgres import Connection
from sendwhy.privacy import Tagger, spellings
from sendwhy.problems import Problem, not_found
from sendwhy.reasons import Service
from sendwhy.service import Runtime

from message_log.language import gettext
from message_log.services import OtherServices
from message_log.settings import MessageLogSettings
from message_log.view import read_json

MESSAGES_PER_PAGE = 200
ROWS_MAX = 5_000

log = structlog.get_logger("sendwhy")

_IDS = """
select message_id from message where workspace_id = $1 and state is not null
  and (contact_id = any($2::text[]) or message_id = any($3::text[]))
order by message_id
"""
_MESSAGES = "select * from message_now where workspace_id = $1 and message_id = any($2::text[]) order by message_id"
_EVENTS = """
select event_id, occurred_at, service, kind, note, body, message_id from event
where workspace_id = $1 and message_id = any($2::text[]) order by occurred_at, kind
"""
_INBOUND = """
select event_id, sender_id, phone, wamid, at, kind, text from inbound
where workspace_id = $1 and (phone = any($2::text[]) or event_id in (
    select event_id from event_of where workspace_id = $1 and tag = any($3::bytea[])))
order by at desc limit $4
"""
_TOLD = """
select e.event_id, e.occurred_at, e.service, e.kind, e.body from event_of o
join event e on e.workspace_id = o.workspace_id and e.message_id is null
  and e.event_id = o.event_id and e.occurred_at = o.occurred_at
where o.workspace_id = $1 and o.tag = any($2::bytea[]) order by e.occurred_at desc limit $3
"""
_STATES = "select body from known_state where topic = 'contact.updated' and key = any($1::text[])"


class Kept(BaseModel):
    """How long message-log keeps what stands here."""

    events_days: int
    raw_deliveries_days: int


class Export(BaseModel):
    """`services`: what each holds, in its own words and with its own times. `messages`: how many are on this page; with
    `next_cursor` there are more. What is older than `kept` is gone."""

    workspace_id: str
    contact_id: str
    made_at: Moment
    messages: int
    next_cursor: str | None
    kept: Kept
    services: dict[Service, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Person:
    """By what a person is found: contact ids (the one asked for first), phones in E.164, WhatsApp user ids."""

    workspace: str
    contact_ids: tuple[str, ...]
    phones: tuple[str, ...]
    user_ids: tuple[str, ...]

    @property
    def digits(self) -> list[str]:
        return sorted({form for phone in self.phones for form in spellings(phone)})

    def tags(self, tagger: Tagger) -> list[bytes]:
        named = [tag for one in self.contact_ids for tag in tagger.of_person(self.workspace, contact_id=one)]
        named += [tag for one in self.digits for tag in tagger.of_person(self.workspace, phone=one)]
        return named + [tag for one in self.user_ids for tag in tagger.of_person(self.workspace, user_id=one)]


class Exporter:
    """Asks the services."""

    def __init__(self, runtime: Runtime, settings: MessageLogSettings, services: OtherServices) -> None:
        self._runtime, self._settings, self._services = runtime, settings, services
        self._tagger = Tagger(settings.privacy_key.get_secret_value())

    def routes(self) -> APIRouter:
        router = APIRouter(prefix="/v1/workspaces/{w}")

        @router.get("/contacts/{contact_id:path}/export", response_model=Export)
        async def export(
            request: Request,
            caller: Operator,
            contact_id: ContactId,
            cursor: Cursor = None,
        ) -> Response:
            """Everything that all services hold of a person, up to 200 messages a page; a service that could not be
            asked makes it a 503 that names the service."""
            token = request.headers.get("authorization", "")
            made = await self._make(caller.workspace, contact_id, token, position_of(cursor) if cursor else "")
            log.info(
                "a person's data were exported",
                workspace=caller.workspace,
                by=caller.token.name,
                messages=made.messages,
                first_page=cursor is None,
            )
            headers = {"cache-control": "no-store", "content-disposition": 'attachment; filename="person.json"'}
            return Response(made.model_dump_json(), media_type="application/json", headers=headers)

        return router

    async def _make(self, workspace: str, contact_id: str, token: str, after: str) -> Export:
        path = f"/v1/workspaces/{workspace}/contacts/{quote(contact_id, safe='')}/data"
        consent = await self._ask(Service.CONSENT, path, token)
        person = _person(workspace, contact_id, consent)
        decided = consent.pop("message_ids")
        async with self._runtime.within(workspace) as connection:
            rows = await connection.fetch(_IDS, workspace, list(person.contact_ids), decided)
            ids = sorted({*decided, *(row["message_id"] for row in rows)})
            left = [one for one in ids if one > after]
            shown = left[:MESSAGES_PER_PAGE]
            own = await self._own(connection, person, shown)
        asked = [("message_id", one) for one in shown]
        known = [("phone", phone) for phone in person.phones]
        billing, dispatcher, ingest = await asyncio.gather(
            self._ask(Service.BILLING, path, token, asked) if shown else _nothing(),
            self._ask(
                Service.DISPATCHER, path, token, [*asked, *known, *(("user_id", one) for one in person.user_ids)]
            ),
            self._ask(Service.WEBHOOK_INGEST, path, token, known),
        )
        services = {
            Service.CONSENT: consent,
            Service.BILLING: billing,
            Service.DISPATCHER: dispatcher,
            Service.WEBHOOK_INGEST: ingest,
            Service.MESSAGE_LOG: own,
        }
        if not any(_holds_something(part) for part in services.values()):
            raise not_found("The contact")
        return Export(
            workspace_id=workspace,
            contact_id=contact_id,
            made_at=datetime.now(UTC),
            messages=len(shown),
            next_cursor=cursor_of(shown[-1]) if len(left) > len(shown) else None,
            kept=Kept(
                events_days=self._settings.event_retention_days,
                raw_deliveries_days=self._settings.webhook_retention_days,
            ),
            services=services,
        )

    async def _ask(
        self, service: Service, path: str, token: str, asked: Sequence[tuple[str, str]] = ()
    ) -> dict[str, Any]:
        """A service's answer to the caller's own token."""
        answer = await self._services.get(service, path, token, asked)
        if not answer.is_good:
            log.warning("a service refused an export", service=service, status=answer.status)
            detail = gettext(
                "The export can't be made: %(service)s answered %(status)s.", service=service, status=answer.status
            )
            raise Problem(503, detail)
        told: dict[str, Any] = answer.body
        return told

    async def _own(self, connection: Connection, person: Person, message_ids: list[str]) -> dict[str, Any]:
        workspace, tags = person.workspace, person.tags(self._tagger)
        messages = await connection.fetch(_MESSAGES, workspace, message_ids)
        events = await connection.fetch(_EVENTS, workspace, message_ids)
        inbound = await connection.fetch(_INBOUND, workspace, person.digits, tags, ROWS_MAX + 1)
        told = await connection.fetch(_TOLD, workspace, tags, ROWS_MAX + 1)
        states = await connection.fetch(_STATES, [f"{workspace}/{one}" for one in person.contact_ids])
        return {
            "contacts": [read_json(row["body"]) for row in states],
            "messages": [
                {"message_id": row["message_id"], "status": row["status"], "state": read_json(row["state"])}
                for row in messages
            ],
            "events": [_event(row) for row in events],
            "inbound": [_plain(row) for row in inbound[:ROWS_MAX]],
            "told": [_event(row) for row in told[:ROWS_MAX]],
            "left_out": len(inbound) > ROWS_MAX or len(told) > ROWS_MAX,
        }


async def _nothing() -> dict[str, Any]:
    return {}


def _person(workspace: str, contact_id: str, consent: dict[str, Any]) -> Person:
    contacts = consent["contacts"]
    return Person(
        workspace,
        tuple(dict.fromkeys([contact_id, *(one["contact_id"] for one in contacts)])),
        tuple(sorted({one["phone"] for one in contacts if one["phone"]})),
        tuple(sorted({one["user_id"] for one in contacts if one["user_id"]})),
    )


def _holds_something(part: dict[str, Any]) -> bool:
    return any(bool(value) for value in part.values() if isinstance(value, list | dict))


def _event(row: Record) -> dict[str, Any]:
    return {**_plain(row), "body": read_json(row["body"])}


def _plain(row: Record) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "body"}
