"""Where Sendwhy is: a local stack by DIR/stack.json, as `sendwhy up` writes it, or an installation elsewhere by the
environment (SENDWHY_URL, SENDWHY_TOKEN and, for what other services do, SENDWHY_BILLING_URL and the like)."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ValidationError

from sendwhy_cli.errors import CommandError, Exit
from sendwhy_cli.options import STATE_DIR, Place
from sendwhy_cli.services import MESSAGE_LOG, SERVICES


class RunningStack(BaseModel):
    """`kafka`, `postgres` and `pids` are empty for an installation elsewhere."""

    kafka: str = ""
    postgres: str = ""
    services: dict[str, str]
    admin_token: str
    pids: dict[str, list[int]] = {}


def find_stack(state_dir: Path) -> RunningStack:
    path = state_dir / "stack.json"
    try:
        stack = RunningStack.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        demo = state_dir / "demo"
        todo = (
            f"the demo runs: add --state-dir {demo}"
            if (demo / "stack.json").exists()
            else f"start one with: sendwhy up --state-dir {state_dir}"
        )
        raise CommandError(Exit.UNREACHABLE, f"no stack runs in {state_dir}; {todo}") from None
    except (OSError, ValidationError) as error:
        raise CommandError(Exit.UNREACHABLE, f"{path} can't be read: {str(error).splitlines()[0]}") from error
    if not stack.kafka:
        raise CommandError(Exit.UNREACHABLE, f"{path} can't be read: it names no kafka")
    return stack


def find(place: Place) -> RunningStack:
    """The installation that is meant: what is said on the command line, else in the environment, else here.

    Raises CommandError.
    """
    if place.url is not None and place.state_dir is not None:
        raise CommandError(Exit.USAGE, "--url and --state-dir name two installations: leave one out")
    url = place.url or ("" if place.state_dir else os.environ.get("SENDWHY_URL", ""))
    return _elsewhere(url) if url else find_stack(place.state_dir or STATE_DIR)


def setting_of(service: str) -> str:
    """As message-log's own settings call the other services' addresses."""
    return "SENDWHY_URL" if service == MESSAGE_LOG else f"SENDWHY_{service.upper().replace('-', '_')}_URL"


def _elsewhere(url: str) -> RunningStack:
    named = {**os.environ, setting_of(MESSAGE_LOG): url}
    services = {
        one: _address(setting_of(one), named[setting_of(one)]) for one in SERVICES if named.get(setting_of(one))
    }
    return RunningStack(services=services, admin_token=_token())


def _address(name: str, url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise CommandError(Exit.USAGE, f"{name} must be an address that begins with http:// or https://")
    return url.rstrip("/")


def _token() -> str:
    token, file = os.environ.get("SENDWHY_TOKEN", ""), os.environ.get("SENDWHY_TOKEN_FILE", "")
    if not token and file:
        try:
            token = Path(file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(Exit.USAGE, f"SENDWHY_TOKEN_FILE {file} can't be read: {error}") from error
    if not token:
        raise CommandError(Exit.USAGE, "no token: set SENDWHY_TOKEN, or SENDWHY_TOKEN_FILE to a file that holds it")
    if not (token.isascii() and token.isprintable()):
        raise CommandError(Exit.USAGE, "SENDWHY_TOKEN holds characters that no token has")
    return token
