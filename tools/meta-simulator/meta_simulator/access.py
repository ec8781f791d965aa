"""Who may see what: tokens, and the proof that their bearer knows the app's secret."""

import hashlib
import hmac
from dataclasses import dataclass
from urllib.parse import parse_qs

from starlette.requests import Request

from meta_simulator.errors import Refusal
from meta_simulator.world import World

BAD_TOKEN = Refusal(190, message="Invalid OAuth access token - Cannot parse access token")
_BAD_PROOF = "Invalid appsecret_proof provided in the API argument"
_NO_PROOF = "API calls from the server require an appsecret_proof argument"


@dataclass(frozen=True, slots=True)
class Credentials:
    token: str | None
    proof: str | None = None


def credentials(request: Request) -> Credentials:
    """Of the header Authorization, else of the query; the proof is always a query parameter."""
    given = next((value for name, value in request.scope["headers"] if name == b"authorization"), b"").decode("latin-1")
    scheme, _, token = given.partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else None
    if not request.scope["query_string"]:
        return Credentials(bearer)
    query = parse_qs(request.scope["query_string"].decode("latin-1"), keep_blank_values=True)
    return Credentials(bearer or query.get("access_token", [None])[0], query.get("appsecret_proof", [None])[0])


def proof_of(token: str, secret: str) -> str:
    return hmac.digest(secret.encode(), token.encode(), hashlib.sha256).hex()


def check_proof(world: World, who: Credentials, waba_id: str) -> Refusal | None:
    """Given, it must be right for one of the account's apps; a number may need it."""
    numbers = [line.number for line in world.lines_of(waba_id)]
    if who.proof is None:
        needed = any(number.require_appsecret_proof for number in numbers)
        return Refusal(100, type="GraphMethodException", message=_NO_PROOF, bare=True) if needed else None
    right = {proof_of(who.token or "", number.app_secret) for number in numbers if number.app_secret}
    if any(hmac.compare_digest(who.proof.encode(), proof.encode()) for proof in right):
        return None
    return Refusal(100, type="GraphMethodException", message=_BAD_PROOF, bare=True)
