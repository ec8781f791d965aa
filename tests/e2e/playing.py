"""The 84 cases of Meta's, played at the simulator against the whole stack: each scene has a workspace and a number of
its own where the case touches more than its one message, and all go on at the same time."""

import asyncio
import itertools
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from outside import TEMPLATES, Json, Outside, outside, template, text, until

DELAYS = {"sent": 100, "delivered": 300, "read": 600, "held": 800}
INBOX: Json = {"origin": {"kind": "inbox", "thread_id": "t", "agent": "a"}}
ORDER_UPDATE: Json = {
    "origin": {"kind": "api"},
    "content": template("4711", name="order_update", language="en_US"),
}
PATIENCE_SECONDS = 110
# How long a passing state lasts: a message must get into it also on a machine that is busy with other things.
STATE_SECONDS = 25
_people = itertools.count(int(str(uuid.uuid4().int)[:7]) + 10_000_000)


class Scene(Outside):
    """One workspace with one number, in which one or more cases are played."""

    def person(self) -> str:
        return f"+5255{next(_people)}"

    async def set_up_beside(self, other: "Scene") -> None:
        """Another number in another's workspace and portfolio."""
        portfolio = f"p{other.waba_id}"
        account = {"portfolio_id": portfolio, "messaging_limit": 100_000, "templates": TEMPLATES}
        await self.sim("PUT", f"/accounts/{self.waba_id}", account)
        number = {
            "waba_id": self.waba_id,
            "display_phone_number": self.display,
            "access_token": f"token-{self.sender_id}",
            "app_id": self.stack["meta_app_id"],
            "app_secret": self.stack["meta_app_secret"],
            "webhook_url": self.at("webhook-ingest", "/webhooks/meta"),
        }
        await self.sim("PUT", f"/numbers/{self.sender_id}", number)
        sender = {
            "access_token": f"token-{self.sender_id}",
            "waba_id": self.waba_id,
            "portfolio_id": portfolio,
            "app_id": self.stack["meta_app_id"],
        }
        await self.ok("PUT", "dispatcher", f"/senders/{self.sender_id}", sender)

    async def play(self, name: str, **needs: Any) -> Json:
        answer = await self.sim("POST", f"/cases/{name}", {"phone_number_id": self.sender_id, **needs})
        told: Json = answer.json()
        return told

    async def meets(self, name: str, scenario: str = "ok", **more: Any) -> str:
        """A subscribed contact of that name, and how Meta treats them; their phone."""
        phone = self.person()
        await self.behaves(phone, scenario, **more)
        await self.contact(name, phone)
        return phone

    async def behaves(self, phone: str, scenario: str, **more: Any) -> None:
        await self.sim("PUT", f"/recipients/{phone}", {"scenario": scenario, "delays_ms": DELAYS} | more)

    async def becomes(self, message_id: str, status: str, cause: str | None = None) -> Json:
        """Wait until the message has that status (and that reason, or cause of waiting); returns it as it is at last,
        whether it became so or not: what a case must come to is asserted by its own test."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            told = await self.message(message_id) or {}
            said = (told.get("waiting") or {}).get("cause") if status == "waiting" else code_of(told)
            too_late = status == "waiting" and told.get("status") == "read"
            if (told.get("status"), said) == (status, cause) or too_late or time.monotonic() > deadline:
                return told
            await asyncio.sleep(0.3)

    async def sender(self) -> Json:
        told: Json = await self.ok("GET", "dispatcher", f"/senders/{self.sender_id}")
        return told

    async def sender_becomes(self, fits: Callable[[Json], bool], what: str) -> Json:
        async def fitting() -> bool:
            return fits(await self.sender())

        await until(fitting, what, PATIENCE_SECONDS)
        return await self.sender()

    async def template_becomes(self, fits: Callable[[Json], bool], what: str) -> Json:
        found: list[Json] = []

        async def fitting() -> bool:
            rows = (await self.ok("GET", "dispatcher", "/templates"))["items"]
            found[:] = [row for row in rows if fits(row)]
            return bool(found)

        await until(fitting, what, PATIENCE_SECONDS)
        return found[0]

    async def contact_becomes(self, contact_id: str, state: str) -> Json:
        async def fitting() -> bool:
            told = await self.ok("GET", "consent", f"/contacts/{contact_id}")
            return bool(told["marketing_state"] == state)

        await until(fitting, f"{contact_id} is {state}", PATIENCE_SECONDS)
        told: Json = await self.ok("GET", "consent", f"/contacts/{contact_id}")
        return told


def code_of(message: Json) -> str | None:
    reason = message.get("reason")
    return reason["code"] if reason else None


@dataclass
class Facts:
    """What came of all scenes. `scenes`: by name, what the scene tells, or how it failed."""

    scenes: dict[str, Json | BaseException] = field(default_factory=dict)
    calls: list[Json] = field(default_factory=list)
    webhooks: list[Json] = field(default_factory=list)
    events: dict[str, list[Json]] = field(default_factory=dict)

    def scene(self, name: str) -> Json:
        told = self.scenes[name]
        if isinstance(told, BaseException):
            raise told
        return told

    def calls_for(self, workspace: str, message_id: str) -> list[Json]:
        return [call for call in self.calls if call["biz_opaque_callback_data"] == f"sw1:{workspace}:{message_id}"]

    def of(self, topic: str, **fields: Any) -> list[Json]:
        return [
            event for event in self.events[topic] if all(event.get(name) == value for name, value in fields.items())
        ]

    def texts(self, wamids: Iterable[str]) -> list[Json]:
        wanted = set(wamids)
        return [event for event in self.events["message.received"] if event["wamid"] in wanted]


Cast = Callable[[], Scene]


# --- one message each, at one number ---


async def everyday(cast: Cast, fates: dict[str, tuple[str, str | None]], times: dict[str, int]) -> Json:
    """Every scenario of a send that touches no other message: name -> (status, reason) it must come to."""
    scene = cast()
    await scene.set_up(per_second=1000)
    for name in fates:
        more: Json = {"times": times[name]} if name in times else {}
        await scene.meets(name, name, **more)
    await scene.publish(*(scene.request(name, name) for name in fates))
    told = await asyncio.gather(*(scene.becomes(name, *fate) for name, fate in fates.items()))
    return {"workspace": scene.workspace, "messages": dict(zip(fates, told, strict=True))}


# --- answers that hold the sender ---


async def held(cast: Cast, scenario: str, cause: str) -> Json:
    """The message that met the answer waits, and so does another person's; an operator's word lets both go."""
    scene = cast()
    await scene.set_up()
    phone = await scene.meets("first", scenario)
    await scene.meets("second")
    await scene.publish(scene.request("first", "first"))
    waits = await scene.becomes("first", "waiting", cause)
    hold = (await scene.sender_becomes(lambda sender: sender["hold"] is not None, "held"))["hold"]
    await scene.publish(scene.request("second", "second"))
    also = await scene.becomes("second", "waiting", cause)
    calls = len(await scene.calls())
    await scene.behaves(phone, "ok")
    await scene.ok("POST", "dispatcher", f"/senders/{scene.sender_id}/resume")
    after = [await scene.becomes(name, "read") for name in ("first", "second")]
    return {
        "workspace": scene.workspace, "waits": waits, "also": also, "hold": hold, "calls_while_held": calls,
        "after": after,
    }  # fmt: skip


async def failed_and_held(cast: Cast, scenario: str, reason: str) -> Json:
    scene = cast()
    await scene.set_up()
    await scene.meets("first", scenario)
    await scene.publish(scene.request("first", "first"))
    failed = await scene.becomes("first", "failed", reason)
    sender = await scene.sender_becomes(lambda sender: sender["hold"] is not None, f"held by {reason}")
    return {"workspace": scene.workspace, "failed": failed, "hold": sender["hold"]}


# --- throughput, pairs, upgrades ---


async def throughput(cast: Cast) -> Json:
    """Meta allows less than any machine sends, and far less than it tells."""
    scene = cast()
    await scene.set_up(per_second=2)
    names = [f"m{number}" for number in range(20)]
    people = [(name, scene.person()) for name in names]
    await scene.contacts(people)
    await scene.publish(*(scene.request(name, name) for name in names))
    await asyncio.gather(*(scene.becomes(name, "read") for name in names))
    return {"workspace": scene.workspace, "messages": [await scene.message(name) for name in names]}


async def upgrade(cast: Cast) -> Json:
    scene = cast()
    await scene.set_up()
    await scene.meets("during")
    await scene.play("throughput_upgrade", seconds=STATE_SECONDS)
    await scene.publish(scene.request("during", "during"))
    during = await scene.becomes("during", "read")
    sender = await scene.sender_becomes(lambda sender: sender["messages_per_second"] == 1000, "1,000 a second")
    return {"workspace": scene.workspace, "during": during, "sender": sender}


# --- pacing, templates ---


async def dropped(cast: Cast) -> Json:
    scene = cast()
    await scene.set_up()
    await scene.meets("held", "held_then_dropped")
    await scene.meets("next")
    await scene.publish(scene.request("held", "held"))
    held = await scene.becomes("held", "failed", "TEMPLATE_NOT_APPROVED")
    known = await scene.template_becomes(
        lambda row: (row["name"], row["status"], row["quality"]) == ("autumn_sale", "PAUSED", "RED"), "PAUSED and RED"
    )
    await scene.publish(scene.request("next", "next"))
    following = await scene.becomes("next", "failed", "TEMPLATE_NOT_APPROVED")
    return {"workspace": scene.workspace, "held": held, "template": known, "next": following}


async def template_states(cast: Cast) -> Json:
    scene = cast()
    await scene.set_up()
    told: Json = {"workspace": scene.workspace}
    name = {"name": "autumn_sale", "language": "es_MX"}
    for case, status, outcome in (
        ("template_paused", "PAUSED", ("failed", "TEMPLATE_NOT_APPROVED")),
        ("template_unpaused", "APPROVED", ("read", None)),
        ("template_disabled", "DISABLED", ("failed", "TEMPLATE_NOT_APPROVED")),
    ):
        await scene.meets(case)
        await scene.play(case, template=name)
        await scene.template_becomes(partial(_is_sale, status), status)
        await scene.publish(scene.request(case, case))
        told[case] = await scene.becomes(case, *outcome)
    return told


def _is_sale(status: str, row: Json) -> bool:
    return (row["name"], row["status"]) == ("autumn_sale", status)


async def category(cast: Cast) -> Json:
    """A utility template goes to somebody who never subscribed, until it has become marketing."""
    scene = cast()
    await scene.set_up()
    phone = scene.person()
    await scene.behaves(phone, "ok")
    await scene.contact("nobody", phone, "NOT_SUBSCRIBED")
    await scene.play("template_category_moved", template={"name": "order_update"}, seconds=STATE_SECONDS)
    await scene.publish(scene.request("noticed", "nobody", **ORDER_UPDATE))
    noticed = await scene.becomes("noticed", "read")
    moved = await scene.template_becomes(
        lambda row: (row["name"], row["category"]) == ("order_update", "MARKETING"), "order_update is MARKETING"
    )
    await scene.publish(scene.request("moved", "nobody", **ORDER_UPDATE))
    after = await scene.becomes("moved", "failed", "CUSTOMER_IS_NOT_OPTED_IN")
    return {"workspace": scene.workspace, "noticed": noticed, "template": moved, "after": after}


# --- windows and consent ---


async def windows(cast: Cast) -> Json:
    scene = cast()
    await scene.set_up()
    told: Json = {"workspace": scene.workspace}
    outcomes = {
        "window_opens": ("read", None),
        "window_renewed_at_23_h_59": ("read", None),
        "window_closed_at_24_h": ("failed", "OUTSIDE_24_HOUR_WINDOW"),
    }
    for name in outcomes:
        phone = await scene.meets(name)
        played = await scene.play(name, phone=phone)
        await _hears(scene, name, len(played["wamids"]))
        await scene.publish(scene.request(name, name, content=text(), **INBOX))
    wrong = await scene.meets("wrong", "wrong_131047_then_ok")
    await scene.play("window_opens", phone=wrong)
    await _hears(scene, "wrong")
    await scene.publish(scene.request("wrong", "wrong", content=text(), **INBOX))
    await scene.meets("replies", "replies")
    await scene.publish(scene.request("replies", "replies"))
    told["replies"] = await scene.becomes("replies", "read")
    await _hears(scene, "replies")
    await scene.publish(scene.request("reply", "replies", content=text(), **INBOX))
    told["reply"] = await scene.becomes("reply", "read")
    told["wrong"] = await scene.becomes("wrong", "failed", "OUTSIDE_24_HOUR_WINDOW")
    await scene.publish(scene.request("again", "wrong", content=text(), resend_of="wrong", **INBOX))
    told["again"] = await scene.becomes("again", "read")
    for name, outcome in outcomes.items():
        told[name] = await scene.becomes(name, *outcome)
    return told


async def _hears(scene: Scene, contact_id: str, messages: int = 1) -> None:
    """An agent answers what stands in the thread: until the person's messages do."""

    async def heard() -> bool:
        path = f"/v1/workspaces/{scene.workspace}/threads/{contact_id}"
        answer = await scene.call("GET", scene.at("message-log", path))
        items = answer.json()["items"] if answer.status_code == 200 else []
        return len([item for item in items if item["direction"] == "in"]) >= messages

    await until(heard, f"{contact_id} wrote", PATIENCE_SECONDS)


async def consent(cast: Cast) -> Json:
    scene = cast()
    await scene.set_up()
    phones = {
        "stops": await scene.meets("stops", "stops_after_delivery"),
        # Meta tells seconds, and of the same second the stop wins.
        "resumes": await scene.meets("resumes", "stops_then_resumes", delays_ms=DELAYS | {"read": 3000}),
        "too_late": await scene.meets("too_late", "stops_after_acceptance"),
        "told": await scene.meets("told", "failed_131050"),
    }
    await scene.publish(*(scene.request(name, name) for name in phones))
    told: Json = {"workspace": scene.workspace}
    for name in ("stops", "resumes"):
        told[name] = await scene.becomes(name, "read")
    for name in ("too_late", "told"):
        told[name] = await scene.becomes(name, "failed", "RECIPIENT_STOPPED_MARKETING")
    for name in ("stops", "too_late", "told"):
        told[f"{name} contact"] = await scene.contact_becomes(name, "UNSUBSCRIBED")
    told["resumes contact"] = await scene.contact_becomes("resumes", "SUBSCRIBED")
    await scene.publish(
        scene.request("stops-marketing", "stops"),
        scene.request("stops-utility", "stops", **ORDER_UPDATE),
        scene.request("resumes-marketing", "resumes"),
    )
    told["stops-marketing"] = await scene.becomes("stops-marketing", "failed", "CUSTOMER_IS_NOT_OPTED_IN")
    told["stops-utility"] = await scene.becomes("stops-utility", "read")
    told["resumes-marketing"] = await scene.becomes("resumes-marketing", "read")
    # The same by WhatsApp's control alone, without a message of ours.
    await scene.play("marketing_stopped", phone=phones["resumes"])
    told["stopped contact"] = await scene.contact_becomes("resumes", "UNSUBSCRIBED")
    await asyncio.sleep(1)  # Meta tells whole seconds
    await scene.play("marketing_resumed", phone=phones["resumes"])
    told["resumed contact"] = await scene.contact_becomes("resumes", "SUBSCRIBED")
    return told


# --- limits ---


async def limits(cast: Cast) -> Json:
    """Two numbers of one portfolio: the first uses the limit up, the second waits for room, and gets it."""
    scene, sister = cast(), cast()
    await scene.set_up()
    sister.workspace = scene.workspace
    await sister.set_up_beside(scene)
    for name in ("first", "second"):
        await scene.meets(name)
    await scene.publish(scene.request("first", "first", sender_id=scene.sender_id))
    first = await scene.becomes("first", "read")
    reached = await scene.play("messaging_limit_reached")
    for one in (scene, sister):
        await one.sender_becomes(lambda sender: sender["messaging_limit"] == 1, "the limit of 1")
    await scene.publish(scene.request("second", "second", sender_id=sister.sender_id))
    waits = await scene.becomes("second", "waiting", "MESSAGING_LIMIT_REACHED")
    calls = len(await scene.calls())
    await scene.publish(scene.request("known", "first", sender_id=sister.sender_id))
    known = await scene.becomes("known", "read")
    raised = await scene.play("messaging_limit_raised")
    after = await scene.becomes("second", "read")
    return {
        "workspace": scene.workspace, "first": first, "reached": reached, "waits": waits, "calls_while_full": calls,
        "known": known, "raised": raised, "after": after, "senders": [await one.sender() for one in (scene, sister)],
    }  # fmt: skip


async def cap(cast: Cast) -> Json:
    scene = cast()
    await scene.set_up()
    await scene.meets("capped", "marketing_cap")
    await scene.meets("other")
    await scene.publish(scene.request("first", "capped"))
    first = await scene.becomes("first", "failed", "MARKETING_CAP_REACHED")
    await scene.publish(
        scene.request("second", "capped"),
        scene.request("utility", "capped", **ORDER_UPDATE),
        scene.request("other", "other"),
    )
    return {
        "workspace": scene.workspace,
        "first": first,
        "utility": await scene.becomes("utility", "read"),
        "other": await scene.becomes("other", "read"),
        "second": await scene.becomes("second", "waiting", "MARKETING_CAP_REACHED"),
    }


# --- accounts ---


async def unavailable(cast: Cast, case: str) -> Json:
    """The account can't send for a while, and Meta tells so: what waits goes out at its end."""
    scene = cast()
    await scene.set_up()
    await scene.meets("waits")
    played = await scene.play(case, seconds=STATE_SECONDS)
    sender = await scene.sender_becomes(lambda sender: sender["hold"] is not None, case)
    await scene.publish(scene.request("waits", "waits"))
    waits = await scene.becomes("waits", "waiting", "SENDER_NOT_AVAILABLE")
    after = await scene.becomes("waits", "read")
    return {"workspace": scene.workspace, "played": played, "sender": sender, "waits": waits, "after": after}


async def pin(cast: Cast) -> Json:
    scene = cast()
    await scene.set_up()
    await scene.play("pin_reset")
    await scene.meets("after")
    await scene.publish(scene.request("after", "after"))
    return {
        "workspace": scene.workspace, "waba_id": scene.waba_id, "after": await scene.becomes("after", "read"),
        "sender": await scene.sender(),
    }  # fmt: skip


# --- how webhooks travel ---


async def transport(cast: Cast) -> Json:
    scene = cast()
    await scene.set_up()
    token = scene.stack["meta_verify_token"]
    told: Json = {"workspace": scene.workspace, "sender_id": scene.sender_id, "waba_id": scene.waba_id}
    told["verification"] = await scene.play("verification", verify_token=token)
    told["signatures"] = await scene.play("signatures", old_secret="the secret before the last")
    for name in ("escaped_body", "several_in_one_post", "unknown_field_and_type", "webhook_unanswered"):
        told[name] = await scene.play(name, phone=scene.person())
    told["batch_of_1000"] = await scene.play("batch_of_1000")
    told["concurrent_webhooks"] = await scene.play("concurrent_webhooks")
    return told


# --- all of them ---


async def play_all(stack_file: Path, fates: dict[str, tuple[str, str | None]], times: dict[str, int]) -> Facts:
    async with outside(stack_file) as someone:

        def cast() -> Scene:
            return Scene(stack_file, someone.http, someone.producer)

        scenes: dict[str, Awaitable[Json]] = {
            "everyday": everyday(cast, fates, times),
            "answer_190": held(cast, "answer_190", "SENDER_CREDENTIALS_REJECTED"),
            "answer_10": held(cast, "answer_10", "SENDER_CREDENTIALS_REJECTED"),
            "answer_200": held(cast, "answer_200", "SENDER_CREDENTIALS_REJECTED"),
            "answer_100_33": held(cast, "answer_100_33", "SENDER_NOT_AVAILABLE"),
            "answer_368": held(cast, "answer_368", "SENDER_NOT_AVAILABLE"),
            "answer_131031": held(cast, "answer_131031", "SENDER_NOT_AVAILABLE"),
            "failed_131042": failed_and_held(cast, "failed_131042", "META_PAYMENT_ISSUE"),
            "failed_131031": failed_and_held(cast, "failed_131031", "SENDER_NOT_AVAILABLE"),
            "failed_131048": failed_and_held(cast, "failed_131048", "QUALITY_RATING_TOO_LOW"),
            "throughput": throughput(cast),
            "upgrade": upgrade(cast),
            "dropped": dropped(cast),
            "template_states": template_states(cast),
            "category": category(cast),
            "windows": windows(cast),
            "consent": consent(cast),
            "limits": limits(cast),
            "cap": cap(cast),
            "account_restricted": unavailable(cast, "account_restricted"),
            "account_disabled": unavailable(cast, "account_disabled"),
            "pin": pin(cast),
            "transport": transport(cast),
        }
        began = {name: asyncio.ensure_future(scene) for name, scene in scenes.items()}
        await asyncio.wait(began.values())
        facts = Facts()
        for name, task in began.items():
            facts.scenes[name] = task.exception() or task.result()
        await _gather(someone, facts)
    return facts


async def _gather(someone: Outside, facts: Facts) -> None:
    transport = facts.scenes["transport"]
    wamids: set[str] = set()
    if isinstance(transport, dict):
        played = [each for each in transport.values() if isinstance(each, dict)]
        wamids = {wamid for each in played for wamid in each.get("wamids", ())}

    async def all_told() -> bool:
        records = await someone.records("message.received", holding="wamid")
        facts.events["message.received"] = [json.loads(record.value) for record in records]
        return wamids <= {event["wamid"] for event in facts.events["message.received"]}

    with suppress(AssertionError):  # the test of the case that lacks one tells so
        await until(all_told, "all texts are told", PATIENCE_SECONDS)
    for topic in ("status.updated", "sender.reported"):
        told = [_event(record) for record in await someone.records(topic, holding="{")]
        # A record may come twice, with the same id.
        facts.events[topic] = list({event["event_id"]: event for event in told if "event_id" in event}.values())
    for what, rows in (("calls", facts.calls), ("webhooks", facts.webhooks)):
        rows += [json.loads(line) for line in (await someone.sim("GET", f"/{what}")).text.splitlines()]
    facts.scenes["scenarios"] = {"names": (await someone.sim("GET", "/scenarios")).json()}
    metrics = await someone.http.get(someone.at("webhook-ingest", "/metrics"))
    facts.scenes["metrics"] = {"text": metrics.text}


def _event(record: Any) -> Json:
    try:
        told = json.loads(record.value)
    except (ValueError, RecursionError):
        return {}  # rubbish of another test
    return told if isinstance(told, dict) else {}
