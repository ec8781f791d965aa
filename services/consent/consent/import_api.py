"""Imports over HTTP (contract.md): the file comes as the body, and is on disk before anything is done with it."""

import asyncio
import hashlib
import hmac
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO, Annotated, Any
from uuid import UUID, uuid4

import asyncpg
import structlog
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field
from sendwhy.http import Caller, Cursor, IdempotencyKey, Operator, Viewer, cursor_of, position_of
from sendwhy.problems import Problem, not_found
from sendwhy.service import Runtime
from sendwhy.sheets import csv_text
from starlette.requests import ClientDisconnect

from consent import import_store
from consent.import_columns import UnreadableFile
from consent.import_csv import Layout, examine
from consent.import_job import Job, Upload
from consent.import_view import ImportPage, ImportView, RefusedView, RepeatedView, about_of, address_of, view_of
from consent.imports import TURN_SECONDS, Imports

PAGE_MAX = 500
# How long a repeat under the Idempotency-Key of an import that still runs waits for its answer.
TWIN_SECONDS = 10.0
MAP_PREFIX = "map."

log = structlog.get_logger("sendwhy")
_CSV_SCHEMA: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"text/csv": {"schema": {"type": "string"}}}},
    "description": (
        "Header names are mapped by likeness; `?map.phone=Mobile` takes the column Mobile for the field phone, and"
        " `?map.phone=` takes none. Encoding and separator are detected; a charset in Content-Type, or `?encoding=`, is"
        " believed. The same file again changes nothing that is already so."
    ),
}
_ACCEPTED: dict[int | str, dict[str, Any]] = {
    202: {"model": ImportView, "description": "With `Prefer: respond-async`: the file is here, the import runs."}
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the caller says of the file."""

    mapping: Mapping[str, str]
    encoding: str | None

    @classmethod
    def of(cls, request: Request, content_type: str, encoding: str | None) -> "Wanted":
        named = request.query_params.items()
        mapping = {name.removeprefix(MAP_PREFIX): column for name, column in named if name.startswith(MAP_PREFIX)}
        media, *parameters = (part.strip() for part in content_type.split(";"))
        if media.lower() != "text/csv":
            raise Problem(415, "The body must be text/csv.", errors={"Content-Type": "must be text/csv"})
        charsets = [part.partition("=")[2].strip('" ') for part in parameters if part.lower().startswith("charset=")]
        return cls(mapping, encoding or next(iter(charsets), None))


def routes(runtime: Runtime, imports: Imports) -> APIRouter:
    router = APIRouter(prefix="/v1/workspaces/{w}/contacts")
    desk = ImportDesk(runtime, imports)

    @router.post("/import", response_model=ImportView, responses=_ACCEPTED, openapi_extra=_CSV_SCHEMA)
    async def import_contacts(
        caller: Operator,
        request: Request,
        content_type: Annotated[str, Header()] = "",
        key: IdempotencyKey = None,
        prefer: Annotated[str, Header(description="`respond-async`: answer when the file is here (202).")] = "",
        dry_run: Annotated[bool, Query(description="Read and judge all rows, store nothing.")] = False,
        encoding: Annotated[str | None, Field(max_length=40)] = None,
    ) -> Response:
        wanted = Wanted.of(request, content_type, encoding)
        return await desk.take(caller, request, wanted, key, Manner(dry_run, _is_async(prefer)))

    @router.get("/imports", response_model=ImportPage)
    async def list_imports(
        caller: Viewer,
        cursor: Cursor = None,
        limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 50,
    ) -> ImportPage:
        before = _number(cursor) if cursor else 2**63 - 1
        async with runtime.within(caller.workspace, wait_seconds=30) as connection:
            rows = await import_store.imports_of(connection, caller.workspace, before, limit)
        cursor = cursor_of(str(rows[-1]["number"])) if len(rows) == limit else None
        return ImportPage(items=[view_of(row) for row in rows], next_cursor=cursor)

    @router.get("/imports/{import_id:uuid}", response_model=ImportView)
    async def get_import(caller: Viewer, import_id: UUID) -> ImportView:
        async with runtime.within(caller.workspace, wait_seconds=30) as connection:
            row = await import_store.one(connection, caller.workspace, import_id)
            if row is None:
                raise not_found("The import")
            return view_of(row, await import_store.refused_of(connection, import_id, 0, import_store.SHOWN))

    @router.get("/imports/{import_id:uuid}/refused.csv", response_class=StreamingResponse)
    async def get_refused(caller: Operator, import_id: UUID) -> StreamingResponse:
        async with runtime.within(caller.workspace, wait_seconds=30) as connection:
            row = await import_store.one(connection, caller.workspace, import_id)
        if row is None:
            raise not_found("The import")
        headers = {
            "content-disposition": f'attachment; filename="refused-{import_id}.csv"',
            "cache-control": "no-store",
        }
        lines = _refused_lines(runtime, caller.workspace, import_id, about_of(row)["header"])
        return StreamingResponse(lines, media_type="text/csv; charset=utf-8", headers=headers)

    return router


@dataclass(frozen=True, slots=True)
class Manner:
    is_dry: bool
    is_async: bool


class ImportDesk:
    """Takes a file in, and answers once it is imported (or, where that was asked for, once it is here)."""

    def __init__(self, runtime: Runtime, imports: Imports, twin_seconds: float = TWIN_SECONDS) -> None:
        self._runtime = runtime
        self._imports = imports
        self._twin_seconds = twin_seconds

    async def take(self, caller: Caller, request: Request, wanted: Wanted, key: str | None, manner: Manner) -> Response:
        # Has no name, so that nothing is left of it whatever happens to this process.
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the import that begins closes it
        task: asyncio.Task[bytes] | None = None
        try:
            async with self._imports.place():
                upload = await _received(request, file)
                job = Job(uuid4(), caller, upload, await _examined(file, wanted), datetime.now(UTC), key)
                if manner.is_dry:
                    return await self._preview(job)
            noted = await self.noted(job, is_async=manner.is_async)
            if isinstance(noted, Response):
                return noted
            task = self._imports.begin(job)
        finally:
            if task is None:
                file.close()
        if manner.is_async:
            return _accepted(noted, address_of(caller.workspace, job.import_id))
        # The import goes on if the one who waits for it goes away.
        return Response(await asyncio.shield(task), media_type="application/json")

    async def noted(self, job: Job, *, is_async: bool) -> bytes | Response:
        """Note the import, and how it stands (JSON); or what stands under its Idempotency-Key already."""
        while True:
            async with self._runtime.pool.acquire(timeout=30) as connection, connection.transaction():
                row = await import_store.add(connection, job)
                # After it: a twin that just ended has left its answer before its row made way for this one.
                if job.key and (kept := await import_store.kept_answer(connection, job.caller.workspace, job.key)):
                    if row is not None:
                        await import_store.withdraw(connection, job.import_id)
                    return _replayed(job, kept)
                if row is not None:
                    view = view_of(row).model_dump_json().encode()
                    if job.key and is_async:
                        await import_store.keep_answer(connection, job, 202, view)
                    return view
                twin = await import_store.twin_of(connection, job)
            if twin is not None:
                _refuse_another(job, twin["digest"])
                # The twin has a file of its own; this one must not lie on the disk while it waits.
                job.upload.file.close()
                return await self._twins_answer(job, twin["import_id"])

    async def _twins_answer(self, job: Job, import_id: UUID) -> Response:
        """What the import that runs under the same Idempotency-Key comes to, if that is soon.

        Raises Problem 409 while it runs, and 503 where it failed: then the file has to come again.
        """
        until = asyncio.get_running_loop().time() + self._twin_seconds
        while True:
            async with self._runtime.pool.acquire(timeout=30) as connection:
                state = await import_store.state_of(connection, import_id)
                # After it: an import that is done has left its answer.
                kept = await import_store.kept_answer(connection, job.caller.workspace, job.key or "")
            if kept is not None:
                return _replayed(job, kept)
            if state not in ("waiting", "running"):
                failed = "The import under this Idempotency-Key failed; send the file again."
                raise Problem(503, failed, headers={"retry-after": "1"})
            if asyncio.get_running_loop().time() >= until:
                break
            await asyncio.sleep(TURN_SECONDS)
        address = address_of(job.caller.workspace, import_id)
        raise Problem(
            409,
            f"The import under this Idempotency-Key still runs; see {address} or ask again.",
            errors={"Idempotency-Key": "its import still runs"},
            headers={"retry-after": "10", "location": address},
        )

    async def _preview(self, job: Job) -> Response:
        tally = await self._imports.preview(job)
        layout = job.layout
        view = ImportView(
            import_id=None,
            state="done",
            waiting=False,
            dry_run=True,
            read=tally.read,
            imported=tally.imported,
            unchanged=tally.unchanged,
            refused=[RefusedView(row=one.number, field=one.field, detail=one.detail) for one in tally.refused],
            refused_count=tally.refused_count,
            repeated=[RepeatedView(row=number, earlier_row=earlier) for number, earlier in tally.repeated],
            repeated_count=tally.repeated_count,
            encoding=layout.encoding,
            separator=layout.separator,
            mapping=layout.columns.mapping,
            ignored=layout.columns.ignored,
            bytes_read=layout.size,
            bytes_total=layout.size,
            rows_total=layout.lines,
            by=job.caller.token.name,
            started_at=job.started_at,
            finished_at=datetime.now(UTC),
            result_file=None,
        )
        return Response(view.model_dump_json(), media_type="application/json")


def _is_async(prefer: str) -> bool:
    return "respond-async" in (part.partition(";")[0].strip().lower() for part in prefer.split(","))


async def _received(request: Request, file: IO[bytes]) -> Upload:
    content = hashlib.sha256()
    query = f"?{request.url.query}" if request.url.query else ""
    asked = hashlib.sha256(f"{request.url.path}{query}".encode())
    try:
        async for chunk in request.stream():
            content.update(chunk)
            asked.update(chunk)
            file.write(chunk)
        file.flush()
    except ClientDisconnect:
        log.info("an upload was broken off, nothing of it is kept")
        raise Problem(400, "The upload was broken off; nothing of it is kept.") from None
    except OSError as error:
        log.error("an upload could not be written to disk", error=error.strerror)
        raise Problem(507, "There is no room for the file on this service's disk; nothing of it is kept.") from None
    return Upload(file, content.digest(), asked.digest())


async def _examined(file: IO[bytes], wanted: Wanted) -> Layout:
    try:
        return await asyncio.to_thread(examine, file, wanted.mapping, wanted.encoding)
    except UnreadableFile as error:
        raise Problem(422, str(error), errors=error.errors) from None


def _refuse_another(job: Job, digest: bytes) -> None:
    if not hmac.compare_digest(digest, job.upload.request_digest):
        detail = "This Idempotency-Key was used for another request."
        raise Problem(409, detail, errors={"Idempotency-Key": "was used for another request"})


def _replayed(job: Job, kept: asyncpg.Record) -> Response:
    _refuse_another(job, kept["digest"])
    if kept["status"] == 202:
        view = ImportView.model_validate_json(kept["answer"])
        response = _accepted(kept["answer"], (view.result_file or "").removesuffix("/refused.csv"))
    else:
        response = Response(kept["answer"], kept["status"], media_type="application/json")
    response.headers["idempotent-replayed"] = "true"
    return response


def _accepted(view: bytes, address: str) -> Response:
    headers = {"location": address, "preference-applied": "respond-async"}
    return Response(view, 202, headers=headers, media_type="application/json")


def _number(cursor: str) -> int:
    position = position_of(cursor)
    if not position.isdecimal() or len(position) > 18:
        raise Problem(422, "The cursor is not one of ours.", errors={"cursor": "is not one of ours"})
    return int(position)


async def _refused_lines(
    runtime: Runtime, workspace: str, import_id: UUID, header: Sequence[str]
) -> AsyncIterator[str]:
    """Page by page, each with a connection of its own: a slow reader holds none."""
    yield csv_text([["row", "field", "why", *header]])
    after = 0
    while True:
        async with runtime.within(workspace) as connection:
            rows = await import_store.refused_of(connection, import_id, after, PAGE_MAX)
        if not rows:
            return
        yield csv_text([[row, field, detail, *cells] for row, field, detail, cells in rows])
        after = rows[-1][0]
