"""Errors over HTTP are problem documents, each with the status that tells the caller what to do."""

import asyncpg
import httpx
import pytest
from fastapi import FastAPI
from sendwhy import problems

CASES = [
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
