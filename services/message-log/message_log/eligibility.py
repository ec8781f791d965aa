"""Whether one person would get a message now: every gate of consent, billing and dispatcher, asked by POST /v1/evaluate
with the rights of whoever asks us. Nothing is stored, sent or charged."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import uuid4

from pydantic import BaseModel, JsonValue, TypeAdapter, ValidationError
from sendwhy.evaluation import EVALUATE_PATH
from sendwhy.events import Gate, Moment, Purpose, TemplateUpdated
from sendwhy.problems import Problem
from sendwhy.reasons import CATALOGUE, ReasonCode, Service

from message_log.language import gettext as _
from message_log.language import told as translated
from message_log.services import ASK_SECONDS, PART_SECONDS, OtherServices
from message_log.template_forms import form_of
from message_log.view import mask, masked

SAMPLE = "sample"
Verdict = Literal["passes", "waits", "stopped", "unknown"]
_NUMBER = re.compile(r"\+\d{7,}")


class Evaluated(BaseModel):
    """What one service answered about one request."""

    gates: list[Gate]
    resolved: dict[str, JsonValue] | None = None


_RESULTS: TypeAdapter[list[Evaluated]] = TypeAdapter(list[Evaluated])


class GateView(Gate):
    """A gate's verdict. Where nothing passes: `cause` is the reason's code, `waits` whether the message would be held
    there instead of rejected, `what_to_do` the next step."""

    cause: ReasonCode | None = None
    waits: bool = False
    what_to_do: str | None = None


class Judged(BaseModel):
    """One service's gates. `fault`: why it could not be asked, null where it answered."""

    service: Service
    gates: list[GateView]
    fault: str | None


class Eligibility(BaseModel):
    """`verdict`: stopped where a gate would reject the message, waits where it would be held (`stopped_by` names the
    gates); passes where all let it pass; else unknown: a gate can't tell, or a service could not be asked.

    `sampled`: how many parameters of the template were filled in with a sample; `note`: what of it can't be judged so.
    """

    contact_id: str
    at: Moment
    template: str | None
    language: str | None
    sender_id: str | None
    purpose: Purpose
    verdict: Verdict
    stopped_by: list[str]
    sampled: int
    note: str | None
    services: list[Judged]


@dataclass(frozen=True, slots=True)
class Question:
    """`template` None: a free text, as in a conversation. `sender_id` None: the workspace's default. `shows_phones`:
    whether who asks may see numbers; the services' gates name them in their evidence."""

    workspace: str
    contact_id: str
    template: TemplateUpdated | None
    sender_id: str | None
    purpose: Purpose
    shows_phones: bool

    def request(self, now: datetime) -> dict[str, JsonValue]:
        """The send.requested that is judged: of no campaign, so that none's pause, throttle or tally counts."""
        content: dict[str, JsonValue] = {"type": "text", "text": {"body": SAMPLE}}
        if self.template is not None:
            form = form_of(self.template)
            content = form.content({field.name: SAMPLE for field in form.fields})
        return {
            "message_id": f"check-{uuid4()}",
            "workspace_id": self.workspace,
            "to": {"contact_id": self.contact_id},
            "origin": {"kind": "api"},
            "purpose": self.purpose.value,
            "content": content,
            "requested_at": now.isoformat(),
            **({"sender_id": self.sender_id} if self.sender_id else {}),
        }


async def judge(services: OtherServices, authorization: str, question: Question) -> Eligibility:
    now = datetime.now(UTC)
    request = question.request(now)
    consent, resolved = await _ask(services, Service.CONSENT, authorization, request, None)
    if resolved is None:
        why = consent.fault or _("Consent could not tell whom the request is for, so it can’t be asked.")
        others = [Judged(service=one, gates=[], fault=why) for one in (Service.BILLING, Service.DISPATCHER)]
    else:
        answers = await asyncio.gather(
            _ask(services, Service.BILLING, authorization, request, resolved),
            _ask(services, Service.DISPATCHER, authorization, request, resolved),
        )
        others = [judged for judged, _ in answers]
    return _view(question, now, [consent, *others])


def _view(question: Question, now: datetime, judged: list[Judged]) -> Eligibility:
    form = form_of(question.template) if question.template else None
    if not question.shows_phones:
        judged = [one.model_copy(update={"gates": [_masked(gate) for gate in one.gates]}) for one in judged]
    verdict, stopped_by = verdict_of(judged)
    return Eligibility(
        contact_id=question.contact_id,
        at=now,
        template=question.template.name if question.template else None,
        language=question.template.language if question.template else None,
        sender_id=question.sender_id,
        purpose=question.purpose,
        verdict=verdict,
        stopped_by=stopped_by,
        sampled=len(form.fields) if form else 0,
        note=form.unfit if form else None,
        services=judged,
    )


def verdict_of(judged: list[Judged]) -> tuple[Verdict, list[str]]:
    """One no is a no, whatever else isn't known; a pass needs every service's word."""
    gates = [(one.service, gate) for one in judged for gate in one.gates]
    closed = [(f"{service}/{gate.gate}", gate) for service, gate in gates if gate.passed is False]
    if closed:
        verdict: Verdict = "waits" if all(gate.waits for _, gate in closed) else "stopped"
        return verdict, [name for name, _ in closed]
    is_whole = all(one.fault is None and one.gates for one in judged)
    return ("passes" if is_whole and all(gate.passed for _, gate in gates) else "unknown"), []


async def _ask(
    services: OtherServices,
    service: Service,
    authorization: str,
    request: Mapping[str, JsonValue],
    resolved: dict[str, JsonValue] | None,
) -> tuple[Judged, dict[str, JsonValue] | None]:
    """The service's gates, and what it resolved."""
    known = None if resolved is None else [resolved]
    answer = await evaluate(services, service, authorization, [request], known, seconds=PART_SECONDS)
    if isinstance(answer, str):
        return Judged(service=service, gates=[], fault=answer), None
    [one] = answer
    return Judged(service=service, gates=[_gate(gate) for gate in one.gates], fault=None), one.resolved


async def evaluate(
    services: OtherServices,
    service: Service,
    authorization: str,
    requests: Sequence[Mapping[str, JsonValue]],
    resolved: Sequence[Mapping[str, JsonValue]] | None,
    *,
    seconds: float = ASK_SECONDS,
) -> list[Evaluated] | str:
    """What a service says of each of at most EVALUATE_MAX requests, in their order; or why it could not be asked."""
    body: dict[str, Any] = {"requests": requests} | ({"resolved": resolved} if resolved is not None else {})
    try:
        answer = await services.question(service, EVALUATE_PATH, authorization, body, seconds=seconds)
    except Problem as problem:
        return translated(str(problem.detail))
    if not answer.is_good:
        return answer.refusal
    try:
        # Thousands of gates: long enough that others would wait for it.
        results = await asyncio.to_thread(_RESULTS.validate_python, answer.body["results"], strict=False)
    except (ValidationError, KeyError, TypeError):
        return _("Its answer could not be read.")
    return results if len(results) == len(requests) else _("Its answer could not be read.")


def _gate(gate: Gate) -> GateView:
    if gate.passed is not False:
        return GateView(**gate.model_dump())
    # The dispatcher's waits have no reason: their evidence tells what the message would wait for, and why.
    told = gate.reason.code if gate.reason else gate.evidence.get("cause")
    cause = ReasonCode(told) if isinstance(told, str) and told in ReasonCode.__members__ else None
    waits = "waits_for" in gate.evidence
    todo = CATALOGUE[cause].what_to_do if cause else None
    if waits and cause is ReasonCode.EXPIRED_BEFORE_SENDING:
        # A pause: its cause is what a message would end with.
        todo = "Resume what is paused."
    return GateView(**gate.model_dump(), cause=cause, waits=waits, what_to_do=todo)


def _masked(gate: GateView) -> GateView:
    told = gate.reason
    if told is not None:
        told = told.model_copy(update={"detail": without_numbers(told.detail), "evidence": masked(told.evidence)})
    return gate.model_copy(update={"evidence": masked(gate.evidence), "reason": told})


def without_numbers(text: str) -> str:
    """The text with each phone number masked."""
    return _NUMBER.sub(lambda found: mask(found[0]) or "", text)
