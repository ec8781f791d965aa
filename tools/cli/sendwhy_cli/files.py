"""Files that a command reads or writes; `-` is stdin or stdout."""

from __future__ import annotations

import os
import sys
from codecs import BOM_UTF8
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from sendwhy_cli.errors import CommandError, Exit


@contextmanager
def opened(file: Path) -> Iterator[tuple[IO[bytes], int | None]]:
    """The file, and its size in bytes where it is known."""
    if str(file) == "-":
        yield sys.stdin.buffer, None
        return
    try:
        found = file.open("rb")
    except OSError as error:
        raise CommandError(Exit.USAGE, f"{file}: {error.strerror}") from error
    with found:
        # Windows' editors begin a file with a byte order mark, which is no part of its first line.
        if found.peek(len(BOM_UTF8)).startswith(BOM_UTF8):
            found.read(len(BOM_UTF8))
        yield found, os.fstat(found.fileno()).st_size or None


@contextmanager
def written(file: Path, option: str = "") -> Iterator[IO[bytes]]:
    """The file for what is downloaded; it is there only when all of it is. Raises CommandError."""
    if str(file) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    part = file.with_name(f".{file.name}.part")
    try:
        with part.open("wb") as out:
            yield out
        part.replace(file)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise CommandError(Exit.USAGE, f"{option}{file} can't be written: {error.strerror}") from error
        raise
