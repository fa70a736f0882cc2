"""How every process connects to RabbitMQ: a heartbeat, and a limit for a connection that the broker blocks."""

from typing import Final
from urllib.parse import parse_qs, urlsplit

HEARTBEAT_S: Final = 30
BLOCKED_CONNECTION_TIMEOUT_S: Final = 60


def bounded(url: str) -> str:
    """The URL with both, unless it names its own: no publish may hang for ever (docs/guarantees.md M4)."""
    given = parse_qs(urlsplit(url).query)
    wanted = {"heartbeat": HEARTBEAT_S, "blocked_connection_timeout": BLOCKED_CONNECTION_TIMEOUT_S}
    missing = "&".join(f"{name}={value}" for name, value in wanted.items() if name not in given)
    if not missing:
        return url
    return url + ("&" if urlsplit(url).query else "?") + missing
