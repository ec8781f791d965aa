"""The services by name; `sendwhy.reasons` has them too, and costs a start of the command what Tab mustn't cost."""

from __future__ import annotations

CONSENT = "consent"
BILLING = "billing"
DISPATCHER = "dispatcher"
INGEST = "webhook-ingest"
MESSAGE_LOG = "message-log"
SERVICES = (CONSENT, BILLING, DISPATCHER, INGEST, MESSAGE_LOG)
