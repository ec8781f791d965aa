"""billing's settings: those that every service has."""

from sendwhy.settings import ServiceSettings


class BillingSettings(ServiceSettings):
    """Nothing of its own: prices and credits are data, set over HTTP."""
