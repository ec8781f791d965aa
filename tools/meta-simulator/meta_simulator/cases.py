"""How the cases are played that are no answer to a send: windows, consent, limits, account events, transport.

Each play is a function of the number it is played at; seconds are simulated ones. What it answers stands beside
`success` in the answer of POST /_sim/cases/{name}.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from functools import partial

from meta_simulator import accounts
from meta_simulator.bodies import CasePlay, Inbound, Template, TemplateName, TemplatePatch
from meta_simulator.errors import Json
from meta_simulator.webhooks import Webhook, body_of
from meta_simulator.world import Line, World, make_wamid, written

MINUTE, DAY = 60.0, 86_400.0
ALMOST_A_DAY = DAY - 60
BATCH = 1000
BATCH_TEXT = 2_500
STRANGER = "15550000000"
UNICODE = "Grüße 50 % <a/b> & “€” 🙂 \\ / é"

Play = Callable[[World, Line, CasePlay], Awaitable[Json] | Json]


class Unplayable(Exception):
    """The case needs something that isn't there; says what."""


def _phone(play: CasePlay) -> str:
    if play.phone is None:
        raise Unplayable("phone: this case needs one")
    return play.phone


def _hear(world: World, line: Line, phone: str, text: str, seconds_ago: float = 0) -> str:
    said = {"type": "text", "text": {"body": text}}
    return world.hear(Inbound(phone_number_id=line.id, sender=phone, message=said, seconds_ago=seconds_ago))


# Windows


def _opens(world: World, line: Line, play: CasePlay) -> Json:
    return {"wamids": [_hear(world, line, _phone(play), "Is the blue one in stock?")]}


def _renews(world: World, line: Line, play: CasePlay) -> Json:
    first = _hear(world, line, _phone(play), "Is the blue one in stock?", ALMOST_A_DAY)
    return {"wamids": [first, _hear(world, line, _phone(play), "And the green one?")]}


def _closes(world: World, line: Line, play: CasePlay) -> Json:
    return {"wamids": [_hear(world, line, _phone(play), "Is the blue one in stock?", DAY)]}


# Consent


def _prefers(value: str, world: World, line: Line, play: CasePlay) -> Json:
    world.prefer(line, _phone(play), value)
    return {}


# Limits


def _limit_reached(world: World, line: Line, _play: CasePlay) -> Json:
    """The limit comes down to what was reached, so that the next new person is one too many for every number."""
    portfolio = accounts.portfolio_of(world, line)
    reached = world.reached(portfolio)
    accounts.change_limit(world, portfolio, max(reached, 1))
    if not reached:
        world.reach(portfolio, STRANGER)
    return {"portfolio_id": portfolio, "messaging_limit": max(reached, 1)}


def _limit_raised(world: World, line: Line, _play: CasePlay) -> Json:
    portfolio = accounts.portfolio_of(world, line)
    limit = accounts.next_step(world.account_of(line).messaging_limit)
    accounts.change_limit(world, portfolio, limit)
    return {"portfolio_id": portfolio, "messaging_limit": limit}


# Accounts, numbers and templates


def _restricted(world: World, line: Line, play: CasePlay) -> Json:
    seconds = play.seconds or MINUTE
    # Told in whole seconds: whoever comes at that moment must not be too early.
    expiration = math.ceil(time.time() + world.clock.real(seconds))
    world.block(line.number.waba_id, 368, seconds)
    accounts.tell_of_restriction(world, line.number.waba_id, expiration)
    return {"expiration": expiration}


def _disabled(world: World, line: Line, play: CasePlay) -> Json:
    waba_id, seconds = line.number.waba_id, play.seconds or MINUTE
    world.block(waba_id, 131031, seconds)
    accounts.tell_of_ban(world, waba_id, "DISABLE")
    world.clock.later(seconds, partial(accounts.tell_of_ban, world, waba_id), "REINSTATE")
    return {}


def _template(world: World, line: Line, named: TemplateName | None) -> Template:
    waba_id = line.number.waba_id
    if named:
        found = world.template(waba_id, named.name, named.language)
    else:
        found = next(iter(world.account_of(line).templates), None)
    if found is None:
        raise Unplayable(f"template: account {waba_id} has none such")
    return found


def _pauses(world: World, line: Line, play: CasePlay) -> Json:
    template, waba_id = _template(world, line, play.template), line.number.waba_id
    template.status = "PAUSED"
    accounts.tell_quality(world, waba_id, template, "RED")
    accounts.tell_template(world, waba_id, template, "PAUSED")
    return {"template": template.name}


def _unpauses(world: World, line: Line, play: CasePlay) -> Json:
    template, waba_id = _template(world, line, play.template), line.number.waba_id
    template.status = "APPROVED"
    accounts.tell_quality(world, waba_id, template, "GREEN")
    accounts.tell_template(world, waba_id, template, "APPROVED", info=accounts.UNPAUSED_INFO)
    return {"template": template.name}


def _disables(world: World, line: Line, play: CasePlay) -> Json:
    template, waba_id = _template(world, line, play.template), line.number.waba_id
    template.status = "DISABLED"
    accounts.tell_template(world, waba_id, template, "DISABLED", info=accounts.DISABLED_INFO)
    return {"template": template.name}


def _moves(world: World, line: Line, play: CasePlay) -> Json:
    template, waba_id = _template(world, line, play.template), line.number.waba_id
    seconds = play.seconds or DAY
    moved_at = time.time() + world.clock.real(seconds)
    accounts.notify_of_category(world, waba_id, template, "MARKETING", moved_at)

    def move(patch: TemplatePatch) -> None:
        accounts.change_template(world, waba_id, template, patch)

    world.clock.later(seconds, move, TemplatePatch(category="MARKETING"))
    return {"template": template.name, "category_update_timestamp": int(moved_at)}


def _upgrades(world: World, line: Line, play: CasePlay) -> Json:
    seconds = play.seconds or MINUTE
    line.maintenance_until = world.clock.now() + seconds
    world.clock.later(seconds, partial(accounts.upgrade_throughput, world), line)
    return {"messages_per_second": accounts.HIGH_THROUGHPUT}


def _pin_is_reset(world: World, line: Line, _play: CasePlay) -> Json:
    value = {
        "display_phone_number": line.display,
        "event": "PIN_RESET_REQUEST",
        "requester": "61500000011122",
    }
    world.tell_account(line.number.waba_id, "security", value)
    return {}


# Transport


async def verify(world: World, line: Line, token: str) -> Json:
    """Meta's handshake with a number's webhook_url."""
    if line.number.webhook_url is None:
        raise Unplayable(f"number {line.id} has no webhook_url")
    challenge = str(int(time.time_ns()))
    params = {"hub.mode": "subscribe", "hub.challenge": challenge, "hub.verify_token": token}
    answer = await world.poster.get(line.number.webhook_url, params)
    if answer is None:
        return {"verified": False, "http_status": None}
    text = answer.body.decode(errors="replace")
    return {
        "verified": answer.http_status == 200 and text == challenge,
        "http_status": answer.http_status,
        "answer": text[:200],
    }


async def _verifies(world: World, line: Line, play: CasePlay) -> Json:
    if play.verify_token is None:
        raise Unplayable("verify_token: this case needs the right one")
    right = await verify(world, line, play.verify_token)
    return {"right": right, "wrong": await verify(world, line, f"not {play.verify_token}")}


async def _signs(world: World, line: Line, play: CasePlay) -> Json:
    """The same update four times, each signed otherwise and posted once; `old` only where an old secret is given."""
    value = {"statuses": [_stray_status()]}
    webhooks = {kind: world.make_webhook(line, value) for kind in ("right", "wrong", "missing")}
    webhooks["wrong"].signature, webhooks["missing"].signature = "wrong", "missing"
    if play.old_secret is not None:
        webhooks["old"] = world.make_webhook(line, value)
        webhooks["old"].secret = play.old_secret
    told: Json = {}
    for kind, webhook in webhooks.items():
        webhook.once = True
        world.webhooks.append(webhook)
        told[kind] = await line.outbox.post(webhook)
    return {"http_status": told}


def _stray_status() -> Json:
    return {
        "id": make_wamid(STRANGER),
        "status": "delivered",
        "timestamp": str(int(time.time())),
        "recipient_id": STRANGER,
    }


def _escapes(world: World, line: Line, play: CasePlay) -> Json:
    return {"wamids": [_hear(world, line, _phone(play), UNICODE)], "text": UNICODE}


def _text(phone: str, text: str) -> Json:
    message: Json = {"from": phone, "id": make_wamid(phone, inbound=True), "timestamp": str(int(time.time()))}
    return message | {"type": "text", "text": {"body": text}}


def _batches(world: World, line: Line, _play: CasePlay) -> Json:
    """As many entries as Meta ever puts into a POST, and nearly as many bytes: texts of a thousand strangers."""
    entries, wamids = [], []
    for number in range(BATCH):
        phone = str(int(STRANGER) + number)
        message = _text(phone, f"{number} " + "x" * BATCH_TEXT)
        wamids.append(message["id"])
        contacts = [{"profile": {"name": "Ines Calder"}, "wa_id": phone}]
        entries.append(written(world.entry(line, {"contacts": contacts, "messages": [message]})))
    body = body_of(*entries)
    world.tell(line, Webhook(None, "messages", own_body=body))
    return {"updates": BATCH, "bytes": len(body), "wamids": wamids}


def _is_unanswered(world: World, line: Line, play: CasePlay, lost: float) -> Json:
    phone = _phone(play)
    message = _text(phone, "Did you get this?")
    contacts = [{"profile": {"name": "Ines Calder"}, "wa_id": phone}]
    webhook = world.make_webhook(line, {"contacts": contacts, "messages": [message]})
    webhook.lost = lost
    world.tell(line, webhook)
    return {"wamids": [message["id"]]}


def _unanswered(world: World, line: Line, play: CasePlay) -> Json:
    return _is_unanswered(world, line, play, play.times)


def _never_answered(world: World, line: Line, play: CasePlay) -> Json:
    return _is_unanswered(world, line, play, math.inf)


async def _concurrent(world: World, line: Line, play: CasePlay) -> Json:
    """Three statuses for each message of the number's rate, evenly over the (real) seconds; each posted once."""
    seconds = play.seconds or 1.0
    count = max(1, round(3 * line.number.messages_per_second * seconds))
    tasks, began = [], time.monotonic()
    for number in range(count):
        await asyncio.sleep(max(0.0, began + number * seconds / count - time.monotonic()))
        tasks.append(asyncio.create_task(_timed(world, line)))
    took = sorted(await asyncio.gather(*tasks))
    answered = [each for each in took if each is not math.inf]
    return {
        "posted": count,
        "answered_200": len(answered),
        "median_ms": round(took[len(took) // 2] * 1000, 1) if answered else None,
        "p99_ms": round(answered[max(0, math.ceil(len(answered) * 0.99) - 1)] * 1000, 1) if answered else None,
        "share_above_1_s": sum(each > 1 for each in took) / count,
    }


async def _timed(world: World, line: Line) -> float:
    webhook = world.make_webhook(line, {"statuses": [_stray_status()]})
    webhook.once = True
    world.webhooks.append(webhook)
    began = time.monotonic()
    http_status = await line.outbox.post(webhook)
    return time.monotonic() - began if http_status == 200 else math.inf


def _several(world: World, line: Line, play: CasePlay) -> Json:
    """Two entries: the first with two changes and three kinds of elements, the second of another field."""
    phone = _phone(play)
    first, second = _text(phone, "One"), _text(phone, "Two")
    contacts = [{"profile": {"name": "Ines Calder"}, "wa_id": phone}]
    entry = world.entry(line, {"contacts": contacts, "messages": [first, second]})
    statuses = world.entry(line, {"statuses": [_stray_status(), _stray_status()], "errors": [_some_error()]})
    entry["changes"] += statuses["changes"]
    security = {"display_phone_number": line.display, "event": "PIN_CHANGED"}
    other = {
        "id": line.number.waba_id,
        "time": int(time.time()),
        "changes": [{"value": security, "field": "security"}],
    }
    body = body_of(written(entry), written(other))
    world.open_window(line, phone)
    world.tell(line, Webhook(None, "messages", own_body=body))
    return {"wamids": [first["id"], second["id"]]}


def _some_error() -> Json:
    return {"code": 131000, "title": "Something went wrong", "message": "Something went wrong"}


def _unknown(world: World, line: Line, play: CasePlay) -> Json:
    phone = _phone(play)
    message = _text(phone, "")
    del message["text"]
    message |= {"type": "hologram", "hologram": {"scent": "rose", "colours": [1, 2]}, "mood": "sunny"}
    contacts = [{"profile": {"name": "Ines Calder"}, "wa_id": phone}]
    world.tell_messages(line, {"contacts": contacts, "messages": [message], "forecasts": [{"rain": True}]})
    world.tell_account(line.number.waba_id, "future_field_update", {"event": "SOMETHING_NEW", "level": 3})
    return {"wamids": [message["id"]]}


PLAYS: dict[str, Play] = {
    "window_opens": _opens,
    "window_renewed_at_23_h_59": _renews,
    "window_closed_at_24_h": _closes,
    "marketing_stopped": partial(_prefers, "stop"),
    "marketing_resumed": partial(_prefers, "resume"),
    "messaging_limit_reached": _limit_reached,
    "messaging_limit_raised": _limit_raised,
    "account_restricted": _restricted,
    "account_disabled": _disabled,
    "template_paused": _pauses,
    "template_unpaused": _unpauses,
    "template_disabled": _disables,
    "template_category_moved": _moves,
    "throughput_upgrade": _upgrades,
    "pin_reset": _pin_is_reset,
    "verification": _verifies,
    "signatures": _signs,
    "escaped_body": _escapes,
    "batch_of_1000": _batches,
    "webhook_unanswered": _unanswered,
    "webhook_never_answered": _never_answered,
    "concurrent_webhooks": _concurrent,
    "several_in_one_post": _several,
    "unknown_field_and_type": _unknown,
}


async def play_case(world: World, name: str, play: CasePlay) -> Json:
    """Raises Unplayable."""
    line = world.lines.get(play.phone_number_id)
    if line is None:
        raise Unplayable(f"phone_number_id: there is no number {play.phone_number_id}")
    told = PLAYS[name](world, line, play)
    return told if isinstance(told, dict) else await told
