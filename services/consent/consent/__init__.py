"""Consent: who may be written to, and at which number."""
