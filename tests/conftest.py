"""What every test can ask for: real servers, a fresh database, a fresh broker."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import count
from typing import TypeVar

import hypothesis
import pytest

from customer_actors.settings import PREFIX
from tests.servers import PrivatePostgres, RabbitMQ, ServerMissingError, SharedPostgres, left_out, open_rabbitmq
from tests.servers.rabbitmq import is_for_tests

Server = TypeVar("Server")

GIVEN_RABBITMQ_URL = os.environ.get("RABBITMQ_URL")
NOT_FOR_TESTS = 'RABBITMQ_URL IS NOT USED, for its virtual host lacks "test" in its name: tests start a private broker.'
NEEDS_SERVERS = frozenset(
    {"postgres", "postgres_url", "stoppable_postgres", "stoppable_url", "rabbitmq", "rabbitmq_url"}
)

_numbers = count(1)

# The same everywhere, and every failure printed so that it can be replayed from the log alone. A shared machine makes
# deadlines lie.
for _profile in ("default", "ci"):
    hypothesis.settings.register_profile(_profile, deadline=None, derandomize=False, print_blob=True)
hypothesis.settings.load_profile("ci" if left_out.ON_CI else "default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if NEEDS_SERVERS.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("services")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for reason in left_out.reasons(terminalreporter.getreports("skipped")):
        terminalreporter.write_line(f"TESTS WERE LEFT OUT. {reason}", red=True, bold=True)
    if GIVEN_RABBITMQ_URL and not is_for_tests(GIVEN_RABBITMQ_URL):
        terminalreporter.write_line(NOT_FOR_TESTS, red=True, bold=True)


@pytest.fixture(scope="session", autouse=True)
def _own_environment() -> Iterator[None]:
    """No test sees the settings of whoever runs it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [*os.environ]:
            if name in ("DATABASE_URL", "RABBITMQ_URL") or name.startswith(PREFIX):
                patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def postgres() -> Iterator[PrivatePostgres]:
    """The PostgreSQL of every test that lets it run."""
    yield from _served(SharedPostgres())


@pytest.fixture
def postgres_url(postgres: PrivatePostgres) -> str:
    """The URL of an empty database."""
    return _empty_database(postgres)


@pytest.fixture(scope="session")
def stoppable_postgres() -> Iterator[PrivatePostgres]:
    """A PostgreSQL that a test may stop and kill; `stoppable_url` starts it again.

    It is another one than `postgres`, so that it has few databases: all that a server has been given lately is replayed
    after a kill, and every file it has is synced.
    """
    yield from _served(PrivatePostgres())


@pytest.fixture
def stoppable_url(stoppable_postgres: PrivatePostgres) -> str:
    """The URL of an empty database on the server that may be stopped."""
    return _empty_database(stoppable_postgres)


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQ]:
    """A RabbitMQ that a test may stop and kill; `rabbitmq_url` starts it again."""
    yield from _served(open_rabbitmq(GIVEN_RABBITMQ_URL))


@pytest.fixture
def rabbitmq_url(rabbitmq: RabbitMQ) -> str:
    """The URL of a virtual host without queues."""
    rabbitmq.serve()
    return rabbitmq.new_vhost()


def _empty_database(server: PrivatePostgres) -> str:
    server.serve()
    # Dropping one takes three times as long as making it; they all go with the server.
    return server.create_database(f"test_{next(_numbers)}")


def _served(server: AbstractContextManager[Server]) -> Iterator[Server]:
    try:
        with server as running:
            yield running
    except ServerMissingError as error:
        left_out.without_server(str(error))
