"""Real servers for the tests: private ones on 127.0.0.1, on free ports, in folders of their own, gone afterwards."""

from tests.servers.postgres import PrivatePostgres, SharedPostgres
from tests.servers.process import ServerMissingError
from tests.servers.rabbitmq import GivenRabbitMQ, PrivateRabbitMQ, RabbitMQ, open_rabbitmq

__all__ = [
    "GivenRabbitMQ",
    "PrivatePostgres",
    "PrivateRabbitMQ",
    "RabbitMQ",
    "ServerMissingError",
    "SharedPostgres",
    "open_rabbitmq",
]
