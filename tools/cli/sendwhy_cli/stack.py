"""Where a running stack is: DIR/stack.json, as `sendwhy up` writes it."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ValidationError

from sendwhy_cli.errors import CommandError, Exit


class RunningStack(BaseModel):
    kafka: str
    services: dict[str, str]
    admin_token: str


def find_stack(state_dir: Path) -> RunningStack:
    path = state_dir / "stack.json"
    try:
        return RunningStack.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise CommandError(
            Exit.UNREACHABLE, f"no stack runs in {state_dir}; start one with: sendwhy up --state-dir {state_dir}"
        ) from None
    except (OSError, ValidationError) as error:
        raise CommandError(Exit.UNREACHABLE, f"{path} can't be read: {str(error).splitlines()[0]}") from error
