"""The question of POST /v1/evaluate, and how its requests are read: the same in all services (contract.md, "HTTP")."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, JsonValue, ValidationError, model_validator
from pydantic_core import to_json

from sendwhy.access import Role, Token
from sendwhy.events import Gate, Moment, Resolved, SendRequested
from sendwhy.http import Body
from sendwhy.problems import not_found
from sendwhy.requests import Invalid, complete
from sendwhy.stage import fields_of

EVALUATE_PATH = "/v1/evaluate"
EVALUATE_MAX = 1_000
EVALUATE_BYTES_MAX = 16 * 1024 * 1024
# A question about "now" takes a while to arrive; what lies further back is a question about history.
NOW_TOLERANCE = timedelta(minutes=1)

Raw = Mapping[str, JsonValue]
A = TypeVar("A")


class EvaluateRequest(SendRequested):
    resolved: Resolved | None = None


def _read(raw: Raw, now: datetime) -> EvaluateRequest | Invalid:
    """A request as the stage would read it, if it came now."""
    try:
        # As JSON: of Python's objects, strict models refuse every text that stands for a time.
        request = EvaluateRequest.model_validate_json(to_json(raw))
    except ValidationError as error:
        return Invalid(fields_of(error))
    completed = complete(request, now)
    return completed if isinstance(completed, Invalid) else request


def name_of(raw: Raw) -> str | None:
    """The message_id, as far as the request names one."""
    named = raw.get("message_id")
    return named if isinstance(named, str) else None


def refused(invalid: Invalid) -> Gate:
    """The one gate of a request that can't be used."""
    return Gate(gate="request", passed=False, reason=invalid.reason, evidence=invalid.reason.evidence)


def check_rights(token: Token, requests: Iterable[Raw]) -> None:
    """Every workspace that is named must be one that the token may look at; others are not found."""
    named = {name for one in requests if isinstance(name := one.get("workspace_id"), str)}
    if not all(token.may(Role.VIEWER, workspace) for workspace in named):
        raise not_found("The workspace")


def _as_it_came(value: Any) -> Any:
    return value


class Evaluate(Body):
    """`resolved` is what consent answered: beside the requests in their order, or within each request. A request that
    can't be used is answered so, and spoils none of the others."""

    requests: Annotated[
        list[Annotated[dict[str, JsonValue], BeforeValidator(_as_it_came, json_schema_input_type=EvaluateRequest)]],
        Field(max_length=EVALUATE_MAX),
    ]
    resolved: (
        list[Annotated[JsonValue, BeforeValidator(_as_it_came, json_schema_input_type=Resolved | None)]] | None
    ) = None
    at: Moment | None = None

    @model_validator(mode="after")
    def _resolved_belongs_to_the_requests(self) -> "Evaluate":
        if self.resolved is not None and len(self.resolved) != len(self.requests):
            raise ValueError("resolved must be as long as requests")
        return self

    def read(self, now: datetime) -> list[EvaluateRequest | Invalid]:
        beside = self.resolved or [None] * len(self.requests)
        return [
            _read(one if one.get("resolved") is not None else {**one, "resolved": other}, now)
            for one, other in zip(self.requests, beside, strict=True)
        ]

    def answers(
        self, asked: Sequence[EvaluateRequest | Invalid], judged: Iterable[A], answer: Callable[..., A]
    ) -> list[A]:
        """Each request's own answer, in the order of the list. `asked`: as `read` has read them; `judged`: the answers
        of those that can be used; `answer`: makes one of a `message_id`, `gates` and `resolved`."""
        usable = iter(judged)
        return [
            answer(message_id=name_of(raw), gates=[refused(one)], resolved=None)
            if isinstance(one, Invalid)
            else next(usable)
            for raw, one in zip(self.requests, asked, strict=True)
        ]

    def asks_of_the_past(self, now: datetime) -> bool:
        return self.at is not None and self.at < now - NOW_TOLERANCE
