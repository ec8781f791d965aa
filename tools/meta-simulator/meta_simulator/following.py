"""The webhooks that follow a message Meta took."""

import asyncio
import time
from contextlib import suppress
from functools import partial

from meta_simulator.accounts import tell_quality, tell_template
from meta_simulator.bodies import CasePlay, Inbound, TemplateName
from meta_simulator.cases import Unplayable, play_case
from meta_simulator.errors import Json, error_webhook
from meta_simulator.scenarios import (
    Effect,
    PlayCase,
    Preference,
    Reply,
    Scenario,
    Status,
    TemplateDropped,
    ValueErrors,
)
from meta_simulator.world import Message, World, make_wamid


async def follow(world: World, message: Message, scenario: Scenario, latency: float) -> None:
    """Plan the webhooks. Waits for the first one only where it has to overtake the answer."""
    effects = _effects(world, message, scenario)
    held = scenario.holds * message.delays.seconds("held")
    if scenario.status_first and effects and isinstance(effects[0], Status):
        await _post_first(world, message, effects[0])
        effects = effects[1:]
    for effect in effects:
        seconds = held + message.delays.seconds(effect.at)
        world.clock.later(seconds, partial(_happen, world, message), effect, real=latency)


def _effects(world: World, message: Message, scenario: Scenario) -> tuple[Effect, ...]:
    """The scenario's, unless Meta has a reason of its own to let the message fail."""
    first = scenario.effects[0] if scenario.effects else None
    if isinstance(first, Status) and first.status == "failed":
        return scenario.effects
    code = _meta_refuses(world, message)
    return (Status("sent", "failed", (error_webhook(code),)),) if code else scenario.effects


def _meta_refuses(world: World, message: Message) -> int | None:
    if message.category == "marketing" and world.has_stopped(message.line, message.to):
        return 131050
    if world.window_is_open(message.line, message.to):
        return None
    if message.template is None:
        return 131047
    # No page of Meta's names the code for a used-up messaging limit; 131048 is the nearest.
    return None if world.within_messaging_limit(message.line, message.to) else 131048


async def _post_first(world: World, message: Message, status: Status) -> None:
    webhook = world.make_webhook(message.line, _status_value(message, status))
    world.webhooks.append(webhook)
    await message.line.outbox.post(webhook)


def _happen(world: World, message: Message, effect: Effect) -> None:
    match effect:
        case Status():
            world.tell_messages(message.line, _status_value(message, effect))
        case ValueErrors(code=code):
            world.tell_messages(message.line, {"errors": [error_webhook(code)]})
        case Preference(value=value):
            world.prefer(message.line, message.to, value)
        case Reply(text=text):
            body = {"type": "text", "text": {"body": text}}
            world.hear(Inbound(phone_number_id=message.line.id, sender=message.to, message=body))
        case TemplateDropped():
            _drop_template(world, message)
        case PlayCase(name=name):
            played = asyncio.get_running_loop().create_task(_play(world, message, name))
            world.playing.add(played)
            played.add_done_callback(world.playing.discard)


async def _play(world: World, message: Message, name: str) -> None:
    """The case, with what the message tells of it; one that needs more than that can't be played so."""
    template = message.template and TemplateName(name=message.template.name, language=message.template.language)
    with suppress(Unplayable):
        await play_case(
            world, name, CasePlay(phone_number_id=message.line.id, phone=message.to, template=template or None)
        )


def _drop_template(world: World, message: Message) -> None:
    if message.template is None:
        return
    waba_id = message.line.number.waba_id
    message.template.status = "PAUSED"
    tell_quality(world, waba_id, message.template, "RED")
    tell_template(world, waba_id, message.template, "PAUSED")


def _status_value(message: Message, effect: Status) -> Json:
    now = time.time()
    status: Json = {
        "id": make_wamid(message.to) if effect.stray else message.wamid,
        "status": effect.status,
        "timestamp": str(int(now * 1000) if effect.milliseconds else int(now)),
    }
    if effect.user_id_only or message.wa_id is None:
        status["recipient_user_id"] = message.user_id
    else:
        status["recipient_id"] = message.wa_id
    if message.callback_data is not None and not effect.stray:
        status["biz_opaque_callback_data"] = message.callback_data
    if effect.conversation:
        status["conversation"] = _conversation(message, effect.status, now)
    if effect.pricing:
        status["pricing"] = {
            "billable": True,
            "pricing_model": "PMP",
            "type": "regular",
            "category": message.category,
        }
    if effect.errors is not None:
        status["errors"] = list(effect.errors)
    if "recipient_user_id" in status and effect.status != "failed":
        contact = {"profile": {"name": "Ines Calder"}, "user_id": message.user_id}
        return {"contacts": [contact], "statuses": [status]}
    return {"statuses": [status]}


def _conversation(message: Message, status: str, now: float) -> Json:
    conversation: Json = {"id": message.wamid[-32:].lower(), "origin": {"type": message.category}}
    if status == "sent":
        conversation["expiration_timestamp"] = str(int(now) + 86_400)
    return conversation
