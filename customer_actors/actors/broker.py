"""Which broker carries the bells, with the middleware listed one by one.

Dramatiq's default set holds TimeLimit and ShutdownNotifications, whose asynchronous exceptions inside a commit leave
the interrupted work to be committed by the next message (docs/guarantees.md M9), and a Prometheus server on all
interfaces. None of them is here: statement, lock and idle timeouts bound the work instead.
"""

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Retries

from customer_actors.amqp import bounded
from customer_actors.errors import Outage

MIN_BACKOFF_MS = 500
MAX_BACKOFF_MS = 30_000
"""Backoff of a bundle that met an outage; it is tried for ever, for the sweep would ring it again anyway."""


MOST_RETRIES = 10
"""Of a message that fails for another reason: it is malformed or meets a bug. The sweep rings its customers anew."""


def _again(retries: int, error: BaseException) -> bool:
    return retries < MOST_RETRIES or isinstance(error, Outage | dramatiq.Retry)


def _middleware() -> list[dramatiq.Middleware]:
    return [Retries(retry_when=_again, min_backoff=MIN_BACKOFF_MS, max_backoff=MAX_BACKOFF_MS)]


def make_broker(rabbitmq_url: str | None) -> dramatiq.Broker:
    """A RabbitMQ broker with publisher confirms, or the in-process one without a URL. Connects on first use."""
    if rabbitmq_url is None:
        return StubBroker(middleware=_middleware())
    return RabbitmqBroker(url=bounded(rabbitmq_url), confirm_delivery=True, middleware=_middleware())
