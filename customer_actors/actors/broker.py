"""Which broker carries the bells, with the middleware listed one by one.

Dramatiq's default set holds TimeLimit and ShutdownNotifications, whose asynchronous exceptions inside a commit leave
the interrupted work to be committed by the next message (GUARANTEES M9), and a Prometheus server on all interfaces.
None of them is here: statement, lock and idle timeouts bound the work instead.
"""

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Retries
from pika import URLParameters

MIN_BACKOFF_MS = 500
MAX_BACKOFF_MS = 30_000
"""Backoff of a bundle that met an outage; it is tried for ever, for the sweep would ring it again anyway."""


def _middleware() -> list[dramatiq.Middleware]:
    return [Retries(max_retries=None, min_backoff=MIN_BACKOFF_MS, max_backoff=MAX_BACKOFF_MS)]  # type: ignore[arg-type]


def make_broker(rabbitmq_url: str | None) -> dramatiq.Broker:
    """A RabbitMQ broker with publisher confirms, or the in-process one without a URL. Connects on first use."""
    if rabbitmq_url is None:
        return StubBroker(middleware=_middleware())
    return RabbitmqBroker(url=bounded(rabbitmq_url), confirm_delivery=True, middleware=_middleware())


def bounded(url: str) -> str:
    """The URL with heartbeat and blocked-connection timeout unless it names its own: no publish may hang for ever."""
    parameters = URLParameters(url)
    missing = []
    if "heartbeat=" not in url:
        missing.append("heartbeat=30")
    if "blocked_connection_timeout=" not in url:
        missing.append("blocked_connection_timeout=30")
    if not missing or not parameters.host:
        return url
    return url + ("&" if "?" in url else "?") + "&".join(missing)
