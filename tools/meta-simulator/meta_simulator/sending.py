"""POST /{phone-number-id}/messages: what Meta answers."""

import asyncio
import json
import time
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from meta_simulator.access import BAD_TOKEN, Credentials, check_proof, credentials
from meta_simulator.bodies import Template
from meta_simulator.components import check_call
from meta_simulator.errors import Json, Refusal, error_answer, unknown_object
from meta_simulator.following import follow
from meta_simulator.messages import Addressed, addressee, check_body, read_json
from meta_simulator.scenarios import OK, SCENARIOS, Scenario
from meta_simulator.wire import Fault, NoAnswer, break_answer
from meta_simulator.world import Call, Line, Message, Person, World, make_wamid

_RANDOM_CODES = {"400": 100, "401": 190, "403": 10, "404": 132001, "429": 130429, "500": 131000, "503": 2}
_RATES = frozenset({4, 613, 80007, 130429, 131056})
_RATE_STATUSES = frozenset({429, 503})
_HTML = b"<html><body><h1>Sorry, something went wrong.</h1></body></html>"
_UNSENDABLE = {"PAUSED": 132015, "DISABLED": 132016}


@dataclass(slots=True)
class Outcome:
    """What the caller gets, and the message if Meta took it."""

    http_status: int
    body: bytes
    message: Message | None = None
    scenario: Scenario = OK
    fault: Fault | None = None
    is_rate: bool = False


async def post_message(world: World, request: Request, number_id: str) -> Response:
    call = Call(request.method, request.scope["path"], number_id)
    world.calls.append(call)
    try:
        call.body = await request.body()
    except ClientDisconnect:
        call.whole = False
        return NoAnswer()
    outcome = judge(world, call, credentials(request))
    latency = world.settings.latency_ms / 1000
    if outcome.message:
        call.wamid = outcome.message.wamid
        await follow(world, outcome.message, outcome.scenario, latency)
    if latency:
        await asyncio.sleep(latency)
    if outcome.fault:
        return await break_answer(request, outcome.fault, outcome.body)
    call.answered(outcome.http_status, outcome.body)
    headers = {"content-type": "application/json" if outcome.body[:1] == b"{" else "text/html; charset=utf-8"}
    if outcome.is_rate and world.settings.retry_after_seconds is not None:
        headers["retry-after"] = str(world.settings.retry_after_seconds)
    return Response(outcome.body, outcome.http_status, headers)


def find_line(world: World, who: Credentials, number_id: str) -> Line | Refusal:
    if not world.knows(who.token):
        return BAD_TOKEN
    line = world.lines.get(number_id)
    if line is None or not world.may_see(who.token, line.number.waba_id):
        return unknown_object(number_id)
    return check_proof(world, who, line.number.waba_id) or line


def judge(world: World, call: Call, who: Credentials) -> Outcome:
    """Token, number, its account's state, throughput, random answers, then the person's scenario."""
    body = _parse(call.body)
    to = addressee(body or {})
    if body is not None:
        call.is_json = True
        callback_data = body.get("biz_opaque_callback_data")
        call.callback_data = callback_data if isinstance(callback_data, str) else None
        call.to = to.key if isinstance(to, Addressed) else None
    line = find_line(world, who, call.phone_number_id or "")
    if isinstance(line, Refusal):
        return _refused(line)
    if code := world.refusing_code(line):
        return _refused(Refusal(code))
    if body is None:
        return _refused(Refusal(100, message="(#100) The request body is not a JSON object."))
    if body.get("status") == "read" and "to" not in body:
        return Outcome(200, b'{"success":true}')
    if not line.throughput.take(time.monotonic()):
        return _refused(Refusal(130429))
    random_answer = world.random_answer()
    if random_answer is not None and random_answer not in SCENARIOS:
        return _by_status(int(random_answer))
    if isinstance(to, Refusal):
        return _refused(to)
    person = Person(SCENARIOS[random_answer]) if random_answer else world.person(to.key)
    return _Send(world, line, to, body, person).outcome()


def _parse(raw: bytes) -> Json | None:
    try:
        body = read_json(raw)
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def _refused(refusal: Refusal) -> Outcome:
    body = json.dumps(error_answer(refusal)).encode()
    return Outcome(refusal.http_status, body, is_rate=refusal.code in _RATES)


def _by_status(http_status: int) -> Outcome:
    code = _RANDOM_CODES.get(str(http_status))
    body = json.dumps(error_answer(Refusal(code))).encode() if code else _HTML
    return Outcome(http_status, body, is_rate=http_status in _RATE_STATUSES)


@dataclass(slots=True)
class _Send:
    """One send to one person."""

    world: World
    line: Line
    to: Addressed
    body: Json
    person: Person

    def outcome(self) -> Outcome:
        template = self._template()
        marketing = isinstance(template, Template) and template.category.upper() == "MARKETING"
        scenario = self._scenario(marketing)
        if not scenario.taken:
            return _untaken(scenario)
        refusal = self._refusal(template)
        if refusal:
            return _refused(refusal)
        message = self._take(template if isinstance(template, Template) else None, scenario)
        if scenario.raw is not None:
            return Outcome(scenario.http_status or 200, scenario.raw_bytes, message, scenario)
        answer = json.dumps(self._answer(message, scenario)).encode()
        return Outcome(200, answer, message, scenario, scenario.fault)

    def _scenario(self, marketing: bool) -> Scenario:
        """The person's scenario, or `ok` where it doesn't hold for this message or is used up."""
        scenario = self.person.scenario
        if scenario.marketing_only and not marketing:
            return OK
        if scenario.capped_hours is not None:
            return scenario if self._is_capped(scenario.capped_hours) else OK
        if scenario.times is None and not scenario.in_turn:
            return scenario
        tried = self.person.count_try(self._try_key(scenario))
        if scenario.times is not None and tried >= scenario.times:
            return OK
        return scenario.at_try(tried)

    def _try_key(self, scenario: Scenario) -> str:
        return str(self.body.get("biz_opaque_callback_data", "")) if scenario.per_message else ""

    def _is_capped(self, hours: float) -> bool:
        now = self.world.clock.now()
        if self.person.capped_since is None:
            self.person.capped_since = now
        return now < self.person.capped_since + hours * 3600

    def _template(self) -> Template | Refusal | None:
        """The template that the body calls, or why it can't be sent; None for free-form content."""
        call = self.body.get("template")
        if self.body.get("type") != "template" or not isinstance(call, dict):
            return None
        language = call.get("language")
        code = str(language.get("code", "")) if isinstance(language, dict) else ""
        name = str(call.get("name", ""))
        template = self.world.template(self.line.number.waba_id, name, code)
        if template is None:
            return Refusal(132001, f"template name ({name}) does not exist in {code}")
        status = template.status.upper()
        if status in _UNSENDABLE:
            return Refusal(_UNSENDABLE[status])
        if status != "APPROVED":
            return Refusal(132001, f"template name ({name}) does not exist in {code}")
        return template

    def _refusal(self, template: Template | Refusal | None) -> Refusal | None:
        wrong = check_body(self.body)
        if wrong:
            return wrong
        if self.to.key == self.line.display:
            return Refusal(131021)
        if isinstance(template, Refusal):
            return template
        if template and template.category.upper() == "AUTHENTICATION" and self.to.by_user_id:
            return Refusal(131062)
        if template and template.plan is not None:
            wrong = check_call(self.body["template"], template.plan, template.parameter_format)
        if wrong:
            return wrong
        paced = self.world.pairs.take(self.line.id, self.to.key, self.world.clock.now())
        return None if paced else Refusal(131056)

    def _take(self, template: Template | None, scenario: Scenario) -> Message:
        return Message(
            wamid=make_wamid(self.to.key),
            line=self.line,
            to=self.to.key,
            wa_id=self._wa_id(scenario),
            category=template.category.lower() if template else "service",
            callback_data=self.body.get("biz_opaque_callback_data"),
            template=template,
            delays=self.person.delays,
        )

    def _wa_id(self, scenario: Scenario) -> str | None:
        if self.to.by_user_id or scenario.wa_id == "none":
            return None
        return self.to.key if scenario.wa_id == "same" else f"{self.to.key[:2]}1{self.to.key[2:]}"

    def _answer(self, message: Message, scenario: Scenario) -> Json:
        contact = {"input": self.to.input}
        if message.wa_id is None:
            contact["user_id"] = message.user_id
        else:
            contact["wa_id"] = message.wa_id
        sent = {"id": message.wamid}
        if message.template and scenario.message_status:
            sent["message_status"] = scenario.message_status
        return {"messaging_product": "whatsapp", "contacts": [contact], "messages": [sent]}


def _untaken(scenario: Scenario) -> Outcome:
    if scenario.refusal:
        return _refused(scenario.refusal)
    http_status = scenario.http_status or 200
    is_rate = http_status in _RATE_STATUSES
    return Outcome(http_status, scenario.raw_bytes, scenario=scenario, fault=scenario.fault, is_rate=is_rate)
