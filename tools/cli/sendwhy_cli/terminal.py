"""What goes to the terminal: data to stdout, talk to stderr, and nothing that came from outside ever as an escape
sequence or as markup. Rich is imported when a table is shown."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from sendwhy_cli.errors import CommandError, Exit

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

# As wide as a line may become where no terminal shows it: `grep` finds a message on one line.
PIPE_WIDTH = 1000
MINUTES = "%Y-%m-%d %H:%M"
# Status to its tick and colour. The word stands beside: nothing is told by colour alone.
MARKS = {
    "sending": ("⏳", ""),
    "waiting": ("⏸", "yellow"),
    "sent": ("✓", ""),
    "delivered": ("✓✓", ""),
    "read": ("✓✓", "blue"),
    "failed": ("❌", ""),
}
# C0 and C1 controls, what turns the direction of writing, line separators, and halves of a character.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
# What json.dumps leaves as it is and a terminal would act on.
_UNESCAPED = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def plain(text: str) -> str:
    """The text with whatever a terminal would act on made visible. Line ends become spaces."""
    return _UNPRINTABLE.sub(_visible, re.sub(r"\r?\n|\t", " ", text))


def _visible(found: re.Match[str]) -> str:
    code = ord(found[0])
    return chr(0x2400 + code) if code < 0x20 else "\N{REPLACEMENT CHARACTER}"


def cleaned(value: Any) -> Any:
    """An answer with every text in it made plain."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, Mapping):
        return {plain(str(name)): cleaned(one) for name, one in value.items()}
    return [cleaned(one) for one in value] if isinstance(value, list) else value


def json_text(value: Any) -> str:
    """On one line; equal to what came, with the characters that a terminal would act on escaped."""
    text = json.dumps(value, ensure_ascii=False)
    return _UNESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def say(text: str) -> None:
    """To stderr, line by line."""
    for line in text.split("\n"):
        print(plain(line), file=sys.stderr)


def put(text: str) -> None:
    """One line of data."""
    print(plain(text))


def confirm(question: str, wanted: str) -> None:
    """Lets a person type what is at stake. Raises CommandError, also where no person is there."""
    if not sys.stdin.isatty():
        raise CommandError(Exit.USAGE, "nobody is there to confirm this: add --yes")
    print(f"{plain(question)} {plain(wanted)}: ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip() != wanted:
        raise CommandError(Exit.BAD_ANSWER, "not confirmed; nothing was done")


def fail(error: CommandError, *, as_json: bool = False) -> NoReturn:
    if as_json:
        print(json_text(error.problem), file=sys.stderr)
    else:
        say(f"sendwhy: {error}")
    raise typer.Exit(error.code)


@contextmanager
def command_errors(*, as_json: bool = False) -> Iterator[None]:
    try:
        yield
    except CommandError as error:
        fail(error, as_json=as_json)
    except BrokenPipeError:
        # What is still buffered would fail again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(Exit.PIPE_CLOSED) from None


def show(answer: Any, render: Callable[[Any], None], *, as_json: bool) -> None:
    """The answer as JSON, or for people. Raises CommandError where the answer isn't what this version knows."""
    if as_json:
        print(json_text(answer))
    else:
        try:
            render(cleaned(answer))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise unknown_shape(error) from error
    sys.stdout.flush()


def unknown_shape(error: Exception) -> CommandError:
    return CommandError(
        Exit.UNREACHABLE,
        f"the answer has another shape than this command knows ({type(error).__name__}: {error});"
        " is the service of another version? --json shows the answer as it is",
    )


def console(*, stderr: bool = False) -> Console:
    """Prints no markup, no highlighting; breaks lines on a terminal only, and colours them there without NO_COLOR."""
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    made = Plain(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not made.is_terminal:
        made.width = PIPE_WIDTH
    return made


def width() -> int:
    """How many columns a table may take."""
    return console().width


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Sequence[str] = ()) -> None:
    """Rows under headings. Cells are plain text or Rich's; a heading in `right` is of numbers. Times aren't broken."""
    from rich.table import Table

    made = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for column in columns:
        is_number = column in right
        made.add_column(
            column, justify="right" if is_number else "left", overflow="fold", no_wrap=is_number or "UTC" in column
        )
    for row in rows:
        made.add_row(*map(_cell, row))
    draw(console(), made)


def facts(pairs: Mapping[str, Any]) -> None:
    """Names with their values, below each other; what is None or empty is left out."""
    from rich.table import Table

    made = Table(box=None, padding=(0, 2, 0, 0), show_header=False, pad_edge=False)
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs.items():
        if value is not None and value != "":
            made.add_row(_cell(name), _cell(value))
    draw(console(), made)


def draw(out: Console, made: RenderableType) -> None:
    """Rich fills a table's last column, and what is indented, up with blanks: noise in a file and in `less -S`."""
    with out.capture() as drawn:
        out.print(made)
    out.file.write(re.sub(" +$", "", drawn.get(), flags=re.MULTILINE))


def _cell(value: Any) -> Text:
    from rich.text import Text

    if isinstance(value, Text):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return Text(f"{value:,}")
    return Text("–" if value is None else str(value))


def status(word: str) -> Text:
    from rich.text import Text

    mark, style = MARKS.get(word, ("?", ""))
    return Text.assemble((mark, style), " " * (3 - Text(mark).cell_len), word)


def moment(told: str | None, form: str = "%Y-%m-%d %H:%M:%S") -> str | None:
    """A time as `2026-11-26 13:05:07`; whoever shows it says that it is UTC."""
    return None if told is None else f"{datetime.fromisoformat(told).astimezone(UTC):{form}}"


def utc(told: str | None) -> str | None:
    """A time that stands alone."""
    return None if told is None else f"{moment(told)} UTC"


def waits_for(waiting: Mapping[str, Any]) -> str:
    """A pause, and a message that our own code failed on, have no code of their own: their cause is what the message
    would end with, the former without an end."""
    if waiting.get("scheduled"):
        return "waits for its own time"
    if waiting["cause"] == "EXPIRED_BEFORE_SENDING":
        return "put aside, to be tried again," if waiting["until"] else "paused"
    return f"waits for {waiting['cause']}"


def open_end(waiting: Mapping[str, Any]) -> str:
    """What ends a wait that has no `until`."""
    return f"somebody resumes {'its number or campaign' if waits_for(waiting) == 'paused' else 'or repairs it'}"
