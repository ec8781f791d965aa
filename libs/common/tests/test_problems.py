"""Errors over HTTP are problem documents, each with the status that tells the caller what to do."""

import asyncpg
import httpx
import pytest
from fastapi import APIRouter, FastAPI
from sendwhy import problems

CASES: list[tuple[Exception, int]] = [
    (asyncpg.ConnectionDoesNotExistError("x"), 503),
    (asyncpg.DeadlockDetectedError("x"), 503),
    (asyncpg.QueryCanceledError("x"), 503),
    (ConnectionRefusedError(), 503),
    (TimeoutError(), 503),
    (problems.not_found("It"), 404),
    (KeyError("a bug"), 500),
]


@pytest.mark.parametrize(("error", "status"), CASES, ids=[type(case[0]).__name__ for case in CASES])
async def test_an_outage_is_no_bug(error: Exception, status: int) -> None:
    app = FastAPI()
    problems.install(app)

    @app.get("/")
    async def fail() -> None:
        raise error

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.get("/")
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_wrong_method_is_told_all_that_the_path_takes() -> None:
    app, router = FastAPI(), APIRouter(prefix="/v1")
    problems.install(app)

    @router.get("/things/{id}")
    async def read(id: str) -> str:
        return id

    @router.put("/things/{id}")
    async def write(id: str) -> str:
        return id

    app.include_router(router)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        answer = await client.delete("/v1/things/a")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, PUT")
    assert answer.headers["content-type"] == "application/problem+json"
