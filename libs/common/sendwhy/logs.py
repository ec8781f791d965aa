"""Structured logs: one JSON object a line on stderr, through one sink, without personal data.

Callers log counts, ids of ours, topics and codes. What slips in all the same (digits like a phone number, a token)
is masked here; exceptions are told by their types and places, since drivers put row values into their messages.
"""

import logging
import re
import sys
import time
import traceback
from collections.abc import Callable, MutableMapping
from typing import Any

import structlog

_PHONE = re.compile(r"(?<![\w.\-])\+?\d[\d \-()]{6,16}\d(?![\w\-])")
_SECRET = re.compile(
    r"(?i)(bearer\s+|access_token=|appsecret_proof=|hub\.verify_token=|\bsha256=|://[^/\s:@]+:|\bswk_|\bEAA)[A-Za-z0-9._~+/=\-]+"
)
_QUIET = ("httpx", "aiokafka", "asyncio", "faststream", "aiohttp", "uvicorn.access")
# While a broker is away each of their clients says so several times a second.
_REPETITIVE = frozenset({"aiokafka", "faststream"})
SELDOM_SECONDS = 10.0
_KEPT = frozenset({"level", "timestamp", "service", "replica", "topic", "partition", "offset", "sender"})


def mask(text: str) -> str:
    """`text` without anything that looks like a phone number (all but its last two digits) or a secret."""
    without_secrets = _SECRET.sub(lambda match: f"{match.group(1)}***", text)
    return _PHONE.sub(lambda match: f"***{match.group()[-2:]}", without_secrets)


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        return {key: _masked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(item) for item in value]
    return value if isinstance(value, bool | float | type(None)) or _is_small(value) else mask(str(value))


def _is_small(value: Any) -> bool:
    return isinstance(value, int) and abs(value) < 10**8


def _redact(_logger: Any, _method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    error = entry.pop("exc_info", None)
    if error:
        failure = error if isinstance(error, BaseException) else sys.exc_info()[1]
        if failure is not None:
            entry["error"] = describe(failure)
            entry["where"] = [
                f"{frame.name}:{frame.lineno}" for frame in traceback.extract_tb(failure.__traceback__)[-6:]
            ]
    return {key: value if key in _KEPT else _masked(value) for key, value in entry.items()}


def describe(error: BaseException) -> str:
    """An exception as its types, outermost first: no message, since messages carry values."""
    names: list[str] = []
    current: BaseException | None = error
    while current is not None and len(names) < 4:
        names.append(type(current).__name__)
        current = current.__cause__
    return " < ".join(names)


class Seldom(logging.Filter):
    """Lets the same line of a repetitive library through once in a while, with how often it was said since."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._told: dict[tuple[object, ...], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] not in _REPETITIVE:
            return True
        # By the kinds of its arguments: another error in the same line is another line.
        arguments = record.args if isinstance(record.args, tuple) else ()
        same = (record.name, record.levelno, record.msg, *map(type, arguments))
        now = self._clock()
        since, unsaid = self._told.get(same, (-SELDOM_SECONDS, 0))
        if now - since < SELDOM_SECONDS:
            self._told[same] = (since, unsaid + 1)
            return False
        self._told[same] = (now, 0)
        if unsaid:
            record.msg = f"{record.msg} [said {unsaid + 1} times in {now - since:.0f} s]"
        return True


def set_up(service: str, replica: str = "0") -> structlog.stdlib.BoundLogger:
    """Route structlog and the standard library's loggers through the redacting sink; returns the service's logger."""
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.PositionalArgumentsFormatter()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _redact,
                structlog.processors.JSONRenderer(ensure_ascii=False),
            ],
        )
    )
    handler.addFilter(Seldom())
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    logger: structlog.stdlib.BoundLogger = structlog.get_logger("sendwhy").bind(service=service, replica=replica)
    # Python's own way would tell an error that nobody caught with all its words.
    sys.excepthook = lambda _kind, error, _trace: logger.critical("the process ends by an error", exc_info=error)
    return logger
