"""The message log's own settings, beside those that every service has."""

from pydantic import Field, HttpUrl
from sendwhy.settings import PrivacySettings


class MessageLogSettings(PrivacySettings):
    """Addresses are those of the other services, for pages that act on them; `public_url` is this service's own, as
    people reach it (for the links in API answers, and `https` there makes the session cookie Secure)."""

    event_retention_days: int = Field(default=90, ge=1, le=3650)
    # Raw deliveries hold what people wrote: they go when Kafka's own copy goes.
    webhook_retention_days: int = Field(default=14, ge=1, le=3650)
    public_url: HttpUrl | None = None
    consent_url: HttpUrl | None = None
    billing_url: HttpUrl | None = None
    dispatcher_url: HttpUrl | None = None
    webhook_ingest_url: HttpUrl | None = None
