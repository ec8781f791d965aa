"""Options that many commands take, each group written once: a parameter that is annotated with a dataclass of options
becomes these options (`grouped`)."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

STATE_DIR = Path(".state")
WORKSPACE = "demo"

StateDir = Annotated[Path, typer.Option("--state-dir", help="The stack's directory.", show_default=True)]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, in the shape of the API.")]


@dataclass(frozen=True)
class Place:
    """Which installation, and whose things there."""

    state_dir: Annotated[
        Path | None, typer.Option("--state-dir", help="The directory of a local stack.", show_default=str(STATE_DIR))
    ] = None
    workspace: Annotated[str, typer.Option("--workspace", "-w", help="The workspace.", envvar="SENDWHY_WORKSPACE")] = (
        WORKSPACE
    )
    url: Annotated[
        str | None,
        typer.Option("--url", help="message-log's address elsewhere [env var: SENDWHY_URL]; needs SENDWHY_TOKEN."),
    ] = None

    def command(self, words: str, *values: str) -> str:
        """`sendwhy …` as it works for whoever copies it into a shell, whatever is in the values."""
        given = [f"sendwhy {words}", *(shlex.quote(value) for value in values)]
        if self.state_dir is not None and self.state_dir != STATE_DIR:
            given.append(f"--state-dir {shlex.quote(str(self.state_dir))}")
        if self.url is not None:
            given.append(f"--url {shlex.quote(self.url)}")
        if self.workspace != WORKSPACE:
            given.append(f"--workspace {shlex.quote(self.workspace)}")
        return " ".join(given)


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command with its dataclass parameters spread out into their options, for Typer to read."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, type] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if is_dataclass(kind) and isinstance(kind, type):
            groups[parameter.name] = kind
            parameters += _options_of(kind)
        else:
            parameters.append(parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))

    @wraps(command)
    def spread(**given: Any) -> None:
        made = {
            name: kind(**{each.name: given.pop(each.name) for each in fields(kind)}) for name, kind in groups.items()
        }
        command(**given, **made)

    spread.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return spread


def _options_of(group: type) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=hints[each.name])
        for each in fields(group)
    ]
