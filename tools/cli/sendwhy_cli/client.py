"""The services' public HTTP APIs, asked with the installation's token; what goes wrong ends the command with a sentence
that says which service, what it said and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self
from urllib.parse import quote

import httpx

from sendwhy_cli.errors import CommandError, Exit
from sendwhy_cli.options import Place
from sendwhy_cli.services import MESSAGE_LOG
from sendwhy_cli.stack import RunningStack, find, setting_of
from sendwhy_cli.terminal import plain

TIMEOUT = httpx.Timeout(30, connect=5)
PAGE_MAX = 500
_CODES = {401: Exit.NOT_ALLOWED, 403: Exit.NOT_ALLOWED, 404: Exit.NOT_FOUND, 409: Exit.BAD_ANSWER}
_REMEDIES = {
    401: "the token is not known there: see SENDWHY_TOKEN and SENDWHY_API_TOKENS of the service",
    429: "too many at once: wait a little",
    503: "try again in a moment",
}

Params = Mapping[str, str | int | None]


class Client:
    """One installation and one workspace of it."""

    def __init__(self, stack: RunningStack, place: Place) -> None:
        self.stack, self.place = stack, place
        # What to do where a service is out of reach; the doctor, who asks as well, says so itself.
        self.remedy = f" (what is wrong: {place.command('doctor')})"
        headers = {"authorization": f"Bearer {stack.admin_token}", "accept": "application/json"}
        # A local stack is never behind a proxy, one elsewhere may be.
        self.http = httpx.Client(headers=headers, timeout=TIMEOUT, trust_env=not stack.kafka)

    @classmethod
    def at(cls, place: Place) -> Self:
        """Raises CommandError where no installation is named."""
        return cls(find(place), place)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def address(self, service: str, *parts: str) -> str:
        """Of something of the workspace. Raises CommandError where nobody said where the service is."""
        named = "/".join(quote(part, safe="") for part in (self.place.workspace, *parts))
        return f"{self._base(service)}/v1/workspaces/{named}"

    def page(self, *parts: str) -> str:
        """Where people see it."""
        return f"{self._base(MESSAGE_LOG)}/w/" + "/".join(quote(one, safe="") for one in (self.place.workspace, *parts))

    def _base(self, service: str) -> str:
        base = self.stack.services.get(service)
        if base is None:
            raise CommandError(Exit.USAGE, f"this asks {service}: set {setting_of(service)} to its address")
        return base

    def get(self, service: str, *parts: str, params: Params | None = None) -> Any:
        return self.ask("GET", service, *parts, params=given(params))

    def ask(self, method: str, service: str, *parts: str, **more: Any) -> Any:
        """What the service answered, as JSON; None where it answered nothing. Raises CommandError."""
        with self.reaching(service):
            answer = self.http.request(method, self.address(service, *parts), **more)
        check(service, answer)
        return body_of(service, answer) if answer.content else None

    def listed(
        self, service: str, *parts: str, params: Params, limit: int, cursor: str | None = None
    ) -> dict[str, Any]:
        """The first `limit` of a list, asked page by page, in the shape of one page. Raises CommandError."""
        items: list[Any] = []
        while True:
            asked = {**params, "limit": min(limit - len(items), PAGE_MAX), "cursor": cursor}
            page = self.get(service, *parts, params=asked)
            try:
                items += page["items"]
                cursor = page["next_cursor"]
            except (KeyError, TypeError):
                raise no_answer(service, "JSON that is no list") from None
            if cursor is None or len(items) >= limit or not page["items"]:
                return {"items": items, "next_cursor": cursor}

    def download(
        self, write: Callable[[bytes], object], service: str, *parts: str, params: Params | None = None
    ) -> None:
        """The answer's bytes as they come. Raises CommandError, also where the answer breaks off."""
        with (
            self.reaching(service),
            self.http.stream("GET", self.address(service, *parts), params=given(params)) as answer,
        ):
            if not answer.is_success:
                answer.read()
            check(service, answer)
            for piece in answer.iter_bytes():
                write(piece)

    @contextmanager
    def reaching(self, service: str) -> Iterator[None]:
        try:
            yield
        except UnicodeEncodeError as error:
            raise CommandError(Exit.USAGE, f"{service} can't be asked: half a character is in what names it") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            base = self.stack.services.get(service, service)
            sentence = f"{service} at {base} doesn't answer: {_words(error)}{self.remedy}"
            raise CommandError(Exit.UNREACHABLE, sentence) from error


def given(params: Params | None) -> dict[str, str | int]:
    """Those that have a value."""
    return {name: value for name, value in (params or {}).items() if value is not None}


def check(service: str, answer: httpx.Response) -> None:
    """Raises CommandError unless the answer is a good one."""
    if answer.is_success:
        return
    status = answer.status_code
    usual = Exit.USAGE if answer.is_client_error and status != 429 else Exit.UNREACHABLE
    code = _CODES.get(status, usual)
    problem = _problem_of(answer)
    if problem is None:
        where = f" and sends to {answer.headers['location']}" if "location" in answer.headers else ""
        raise CommandError(code, f"{service} answered {status}{where}{_hint(status)}, with no reason that can be read")
    raise CommandError(code, f"{service}: {_told(problem)}{_hint(status)}", problem)


def _hint(status: int) -> str:
    return f" ({_REMEDIES[status]})" if status in _REMEDIES else ""


def _problem_of(answer: httpx.Response) -> dict[str, Any] | None:
    try:
        problem = answer.json()
    except (ValueError, RecursionError):
        return None
    return problem if isinstance(problem, dict) and isinstance(problem.get("detail"), str) else None


def _told(problem: Mapping[str, Any]) -> str:
    errors = problem.get("errors")
    named = [one for one in errors if isinstance(one, dict)] if isinstance(errors, list) else []
    fields = "".join(f"\n  {plain(str(one.get('field')))}: {plain(str(one.get('detail')))}" for one in named)
    return plain(problem["detail"]) + fields


def body_of(service: str, answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except (ValueError, RecursionError):
        kind = answer.headers.get("content-type", "nothing named")
        raise no_answer(service, f"{kind}, which is not JSON") from None


def no_answer(service: str, what: str) -> CommandError:
    return CommandError(
        Exit.UNREACHABLE,
        f"{service} answered with {what}: is this the address of Sendwhy's {service}, or does a proxy answer?",
    )


def _words(error: Exception) -> str:
    if isinstance(error, httpx.TimeoutException):
        return f"no answer in time ({type(error).__name__})"
    return str(error) or type(error).__name__
