"""A broker that has our topology."""

from collections.abc import Callable

import pika
import pytest

from customer_actors.ingest.connection import parameters
from customer_actors.ingest.topology import declare
from tests.servers.rabbitmq import RabbitMQ


@pytest.fixture
def url(rabbitmq_url: str) -> str:
    """Of a broker that has our topology."""
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        declare(connection)
    return rabbitmq_url


@pytest.fixture
def close_connections(rabbitmq: RabbitMQ, url: str) -> Callable[[], None]:
    """Makes the broker close all connections to this test's virtual host."""

    def close() -> None:
        rabbitmq.ctl("close_all_connections", "--vhost", parameters(url, "").virtual_host, "closed by the test")

    close()  # not for the first time in another thread, which could not skip the test on a broker that is not ours
    return close
