"""The simulated time, which may run faster than the real one."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


class Clock:
    """`now` is in simulated seconds since the start. A new scale holds for what is planned from then on."""

    def __init__(self) -> None:
        self._scale = 1.0
        self._real = time.monotonic()
        self._simulated = 0.0

    def now(self) -> float:
        return self._simulated + (time.monotonic() - self._real) * self._scale

    def real(self, seconds: float) -> float:
        """How long so many simulated seconds take."""
        return seconds / self._scale

    def rescale(self, scale: float) -> None:
        self._simulated, self._real = self.now(), time.monotonic()
        self._scale = scale

    def later(self, seconds: float, call: Callable[[_T], object], argument: _T, *, real: float = 0) -> None:
        """Call in so many simulated seconds, and `real` ones on top."""
        asyncio.get_running_loop().call_later(seconds / self._scale + real, call, argument)
