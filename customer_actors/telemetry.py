"""Logs: JSON lines, or a readable console when standard error is a terminal; never a secret [G23].

Every record passes through here, also those of Dramatiq, pika and APScheduler, so one place removes URL credentials.
"""

import logging
import re
import sys
import traceback
from collections.abc import Mapping, MutableMapping
from types import TracebackType
from typing import Any, Final, TextIO

import structlog

HIDDEN: Final = "***"

_EXAMPLE: Final = r"""(?!user:password@host[^\s"'<>@]*(?:[\s"'<>]|$))"""
"""What our own messages tell people to write stays as it is."""
_USERINFO = re.compile(rf"""(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]*://){_EXAMPLE}[^\s"'<>]*@""")
"""Greedy up to the last "@": a password may hold an unescaped "@", "/" or "#", and hiding too much is the safe side."""

_PASSWORD = re.compile(r"""(?P<name>\b(?:ssl)?(?:password|passwd|pwd)=)(?:'[^']*'|[^\s"'&]+)""", re.IGNORECASE)
"""As libpq writes it: in a URL's query or in a key=value connection string."""

_QUIET: Final = {
    "apscheduler": logging.WARNING,
    "asyncio": logging.WARNING,
    "peewee": logging.WARNING,
    "pika": logging.CRITICAL,
}
"""Libraries that tell about themselves only. What matters of pika is raised, or logged by who uses it: its own errors
are idle connections that the broker closed, and its tracebacks can show message headers; peewee's DEBUG shows the
parameters of statements [G23]."""


_SEVERAL_LINES: Final = frozenset({"exception", "stack"})
"""Fields that are tracebacks."""


def redact(text: str) -> str:
    """The text without URL credentials and connection-string passwords; everything else as it was."""
    text = _USERINFO.sub(rf"\g<scheme>{HIDDEN}@", text)
    return _PASSWORD.sub(rf"\g<name>{HIDDEN}", text)


def redact_event(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """structlog processor: `redact` for every value of an event, however deeply nested and of whatever type."""
    return {key: _redacted(value) for key, value in event.items()}


def configure_logging(level: str = "INFO", stream: TextIO | None = None) -> None:
    """Send this process's logs to `stream` (default: standard error), from `level` on.

    Replaces whatever handlers the process had, so calling it twice prints nothing twice. The format follows the stream:
    coloured lines on a terminal, one JSON object per line anywhere else.
    """
    stream = stream if stream is not None else sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_shared_processors(),
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_last_processors(stream)],
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    sys.excepthook = _log_uncaught
    for name, least in _QUIET.items():
        logging.getLogger(name).setLevel(least)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_shared_processors(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _log_uncaught(kind: type[BaseException], _: BaseException, where: TracebackType | None) -> None:
    """Where an exception came from, without its text: psycopg2 reports a connection lost in a COPY here, with data."""
    if not issubclass(kind, KeyboardInterrupt):
        places = "".join(traceback.format_tb(where))
        structlog.get_logger(__name__).critical("uncaught", error=kind.__name__, where=places)


def _shared_processors() -> list[structlog.typing.Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.StackInfoRenderer(),
        # Tracebacks become plain text before redaction: a renderer doing it would print local variables too.
        structlog.processors.format_exc_info,
    ]


def _last_processors(stream: TextIO) -> list[structlog.typing.Processor]:
    if not stream.isatty():
        return [redact_event, structlog.processors.JSONRenderer()]
    console = structlog.dev.ConsoleRenderer(timestamp_key="time", exception_formatter=structlog.dev.plain_traceback)
    return [redact_event, _escape_event, console]


def _redacted(value: Any) -> Any:
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            return redact(value)
        case Mapping():
            return {_redacted(key): _redacted(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_redacted(item) for item in value]
        case _:
            return redact(repr(value))


def _escape_event(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What came from outside must not move a terminal's cursor, colour it, or look like a second line."""
    return {key: _escaped(value, keep="\n" * (key in _SEVERAL_LINES)) for key, value in event.items()}


def _escaped(value: Any, keep: str) -> Any:
    if not isinstance(value, str):
        return value
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in value)
