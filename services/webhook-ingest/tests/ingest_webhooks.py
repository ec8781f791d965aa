"""What tests post: Meta's shapes, with the fields that a test cares about."""

import hashlib
import hmac
import json
from datetime import UTC, datetime
from typing import Any

from sendwhy.events import SenderUpdated, event_id_of
from webhook_ingest.elements import Delivery

APP, SECRET = "700100200300400", "the-app-secret-of-the-tests"
OTHER_APP, OTHER_SECRET = "700100200300499", "the-other-app-secret-of-the-tests"
NUMBER, WABA, WORKSPACE = "415566778899001", "301122334455667", "acme"
AT = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
PHONE, USER = "447700900142", "GB.70415520981637420011"
T0 = int(AT.timestamp()) - 60


def body(*values: dict[str, Any], field: str = "messages", waba: str = WABA) -> bytes:
    changes = [{"value": value, "field": field} for value in values]
    return json.dumps({"object": "whatsapp_business_account", "entry": [{"id": waba, "changes": changes}]}).encode()


def value(number: str | None = NUMBER, **arrays: Any) -> dict[str, Any]:
    metadata = {"metadata": {"display_phone_number": "15557010123", "phone_number_id": number}} if number else {}
    return {"messaging_product": "whatsapp", **metadata, **arrays}


def status(name: str, wamid: str = "wamid.A", **more: Any) -> dict[str, Any]:
    return {"id": wamid, "status": name, "timestamp": str(T0), "recipient_id": PHONE, **more}


def callback(message_id: str, workspace: str = WORKSPACE) -> dict[str, str]:
    return {"biz_opaque_callback_data": f"sw1:{workspace}:{message_id}"}


def statuses(*told: Any, number: str | None = NUMBER, waba: str = WABA) -> bytes:
    return body(value(number, statuses=list(told)), waba=waba)


def delivery(raw: bytes, offset: int = 0, signer: str = APP) -> Delivery:
    return Delivery("meta", signer, raw, AT, 0, offset)


def signature(raw: bytes, secret: str = SECRET) -> str:
    return "sha256=" + hmac.new(secret.encode(), raw, hashlib.sha256).hexdigest()


def sender(number: str, workspace: str = "acme") -> SenderUpdated:
    return SenderUpdated(
        event_id=event_id_of(number, "sender"),
        occurred_at=datetime.now(UTC),
        sender_id=number,
        workspace_id=workspace,
        version=1,
        waba_id=f"9{number}",
        app_id=APP,
        default=True,
        synced_at=datetime.now(UTC),
    )
