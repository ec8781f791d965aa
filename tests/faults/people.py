"""Who writes to the businesses, says STOP and START, and attacks the door."""

import hashlib
import json
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from actions import Actions, Tenant
from history import Said
from poison import HOSTILE_BYTES, hostile_text


@dataclass
class Signed:
    """A webhook that the workload posts itself, with who said what in it."""

    body: bytes
    tenant: Tenant
    contact: tuple[str, str]


class People:
    """`people`: how many each workspace has."""

    def __init__(self, actions: Actions, people: int) -> None:
        self._actions, self._people = actions, people
        self._valid: deque[bytes] = deque(maxlen=50)
        self._starts: list[Signed] = []
        self._stopped: dict[str, tuple[Tenant, tuple[str, str]]] = {}
        self._said = 0

    async def speak(self) -> None:
        """Somebody writes, which opens the window for replies."""
        tenant = self._actions.chance.choice(self._actions.tenants)
        contact_id, phone = self._actions.chance.choice(tenant.people[self.stoppers :])
        await self._hear(tenant, phone, "Is my order on its way?")
        tenant.speakers[contact_id] = datetime.now(UTC)

    @property
    def stoppers(self) -> int:
        """So many people of each workspace, the first ones, say STOP and START."""
        return max(4, self._people // 10)

    async def _hear(self, tenant: Tenant, phone: str, words: str) -> str:
        message = {"type": "text", "text": {"body": words}}
        inbound = {"phone_number_id": tenant.sender_id, "from": phone, "message": message}
        answer = await self._actions.rig.sim("POST", "/inbound", inbound)
        self._actions.counts["inbound"] += 1
        return str(answer.json()["id"])

    async def say(self) -> None:
        """STOP, or START of somebody who has stopped; through the simulator, or in a webhook of our own that is posted
        again later."""
        start = len(self._stopped) > self.stoppers and self._actions.chance.random() < 0.7
        if start:
            key = self._actions.chance.choice(list(self._stopped))
            tenant, contact = self._stopped.pop(key)
        else:
            tenant = self._actions.chance.choice(self._actions.tenants)
            contact = self._actions.chance.choice(tenant.people[: self.stoppers])
            if f"{tenant.workspace}/{contact[0]}" in self._stopped:
                return
        word: Literal["start", "stop"] = "start" if start else "stop"
        if self._actions.chance.random() < 0.5:
            wamid = await self._hear(tenant, contact[1], word.upper())
            self._note_said(tenant, contact, word, wamid=wamid)
        else:
            wamid, body = self._spoken(tenant, contact, word.upper())
            self._note_said(tenant, contact, word, wamid=wamid, sha256=hashlib.sha256(body).hexdigest())
            self._actions.begin(self._actions.post(body, "valid", signature=self._actions.signature(body)))
            if start:
                self._starts.append(Signed(body, tenant, contact))
        if not start:
            self._stopped[f"{tenant.workspace}/{contact[0]}"] = (tenant, contact)
            self._replay_a_start(tenant, contact)
        self._actions.counts[word] += 1

    def _note_said(
        self,
        tenant: Tenant,
        contact: tuple[str, str],
        word: Literal["start", "stop"],
        *,
        wamid: str | None = None,
        sha256: str | None = None,
        repeat: bool = False,
    ) -> None:
        contact_id, phone = contact
        self._actions.journal.write(
            Said(
                workspace_id=tenant.workspace,
                contact_id=contact_id,
                phone=phone,
                word=word,
                wamid=wamid,
                sha256=sha256,
                repeat=repeat,
            )
        )

    def _replay_a_start(self, tenant: Tenant, contact: tuple[str, str]) -> None:
        """An old START of theirs comes once more after their STOP: its signature holds for ever."""
        old = next((one for one in self._starts if (one.tenant, one.contact) == (tenant, contact)), None)
        if old is not None:
            self._note_said(tenant, contact, "start", sha256=hashlib.sha256(old.body).hexdigest(), repeat=True)
            self._actions.begin(self._actions.post(old.body, "replayed", signature=self._actions.signature(old.body)))
            self._actions.counts["replayed"] += 1

    def _spoken(self, tenant: Tenant, contact: tuple[str, str], words: str) -> tuple[str, bytes]:
        """A webhook as Meta would post it."""
        self._said += 1
        wamid = f"wamid.said{self._actions.seed}.{self._said}"
        wa_id = contact[1].removeprefix("+")
        message = {"from": wa_id, "id": wamid, "timestamp": str(int(datetime.now(UTC).timestamp())), "type": "text"}
        value = {
            "messaging_product": "whatsapp",
            "metadata": {"display_phone_number": tenant.display, "phone_number_id": tenant.sender_id},
            "contacts": [{"profile": {"name": "Inés"}, "wa_id": wa_id}],
            "messages": [message | {"text": {"body": words}}],
        }
        entry = {"id": tenant.waba_id, "changes": [{"field": "messages", "value": value}]}
        body = json.dumps({"object": "whatsapp_business_account", "entry": [entry]}).encode()
        self._valid.append(body)
        return wamid, body

    async def attack(self) -> None:
        """Hostile, broken and repeated webhooks."""
        (what,) = self._actions.chance.choices(
            ["unsigned", "wrong-signature", "rubbish", "too-large", "duplicate"], [3, 3, 3, 0.3, 3]
        )
        # A few bytes of their own make the digest tell which one it was.
        mark = f"{self._actions.seed}.{self._actions.counts['hostile']}"
        self._actions.counts["hostile"] += 1
        forged = self._spoken(self._actions.tenants[0], self._actions.tenants[0].people[0], f"forged {mark}")[1]
        if what == "duplicate":
            if self._valid:
                body = self._actions.chance.choice(list(self._valid)[:-1] or [forged])
                self._actions.begin(self._actions.post(body, what, signature=self._actions.signature(body)))
            return
        self._valid.remove(forged)
        if what == "unsigned":
            self._actions.begin(self._actions.post(forged, what, signature=None))
        elif what == "wrong-signature":
            self._actions.begin(
                self._actions.post(forged, what, signature=self._actions.signature(forged, "another app's secret"))
            )
        elif what == "too-large":
            body = forged + b" " * HOSTILE_BYTES
            self._actions.begin(self._actions.post(body, what, signature=self._actions.signature(body)))
        else:
            body = hostile_text(self._actions.chance, mark)
            self._actions.note_planted("webhook.received", body, "signed, but no JSON", 1)
            self._actions.begin(self._actions.post(body, what, signature=self._actions.signature(body)))
