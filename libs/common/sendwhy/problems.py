"""Errors over HTTP as RFC 9457 problem details (contract.md, "HTTP")."""

from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from sendwhy.logs import describe
from sendwhy.postgres import TRANSIENT_ERRORS

log = structlog.get_logger("sendwhy")


_SCHEMA: dict[str, Any] = {
    "title": "Problem",
    "description": "Why a request was refused (RFC 9457).",
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {
            "description": "The fields that are wrong, and how.",
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"field": {"type": "string"}, "detail": {"type": "string"}},
                "required": ["field", "detail"],
            },
        },
    },
    "required": ["type", "title", "status", "detail"],
}
PROBLEM: dict[str, Any] = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
_REFUSED: dict[str, Any] = {"description": "Refused, and why", "content": PROBLEM}


class Api(FastAPI):
    """An app whose OpenAPI tells of refusals as they are; FastAPI would tell of its own. `before_routes`: what OpenAPI
    tells of paths that are answered before the app's routes; `shapes`: schemas that routes refer to by themselves."""

    shapes: Mapping[str, Any] = MappingProxyType({})
    before_routes: Mapping[str, Any] = MappingProxyType({})

    def openapi(self) -> dict[str, Any]:
        told = super().openapi()
        schemas = told.setdefault("components", {}).setdefault("schemas", {})
        schemas |= {**self.shapes, **schemas, "Problem": _SCHEMA}
        for path, operations in told["paths"].items():
            for operation in operations.values() if path not in self.before_routes else ():
                operation["responses"] |= {"422": _REFUSED, "4XX": _REFUSED}
        told["paths"] |= self.before_routes
        return told


class Problem(HTTPException):
    """A refusal with a status, one sentence for a person, and, where fields are wrong, which."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errors: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, detail, headers)
        self.errors = errors or {}


def not_found(what: str) -> Problem:
    """Also the answer for another workspace's things, so that nobody learns that they exist."""
    return Problem(404, f"{what} was not found")


def problem_response(
    status: int, detail: str, errors: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    if errors:
        body["errors"] = [{"field": field, "detail": what} for field, what in errors.items()]
    return JSONResponse(body, status, headers=dict(headers or {}), media_type="application/problem+json")


async def _on_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    errors = error.errors if isinstance(error, Problem) else None
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and (methods := _methods_of(request)):
        headers = {"allow": ", ".join(sorted(methods))}
    return problem_response(error.status_code, str(error.detail), errors, headers)


def _methods_of(request: Request) -> set[str]:
    """What the path can be asked for. Starlette tells of its first route only, and here each method has its own."""
    methods = {
        method.upper()
        for path, operations in request.app.openapi()["paths"].items()
        if compile_path(path)[0].match(request.url.path)
        for method in operations
    }
    return methods | {"HEAD"} if "GET" in methods else methods


async def _on_validation(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    fields = dict(map(_fault_of, error.errors()[:20]))
    return problem_response(422, "The request has fields that are missing or wrong.", fields)


def _fault_of(entry: Mapping[str, Any]) -> tuple[str, str]:
    place, what = entry["loc"], str(entry["msg"]).removeprefix("Value error, ")
    if entry["type"] == "json_invalid" and len(place) > 1:
        # FastAPI's place within a body that is no JSON is an offset, and no field.
        return str(place[0]), f"{what} at character {place[1]}: {entry['ctx']['error']}"
    return ".".join(str(part) for part in place[1:]) or str(place[0]), what


async def _on_bug(_request: Request, _error: Exception) -> JSONResponse:
    return problem_response(500, "Sendwhy failed here; the error is in this service's log.")


async def _on_outage(request: Request, error: Exception) -> JSONResponse:
    log.warning("the database is away or busy", path=request.url.path, error=describe(error))
    return problem_response(503, "Sendwhy can't reach its database just now; try again.", headers={"retry-after": "1"})


def install(app: FastAPI) -> None:
    for kind in TRANSIENT_ERRORS:
        app.add_exception_handler(kind, _on_outage)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(Exception, _on_bug)
