"""Servers for the faults, the seed, and the closing table."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path
from typing import Final

import pytest

from tests.faults.stage import Stage, make_template, stage
from tests.faults.table import ROWS, SEED, table
from tests.servers import PrivatePostgres, PrivateRabbitMQ, RabbitMQ, ServerMissingError
from tests.servers.left_out import without_server

ALL: Final = os.environ.get("FAULTS") == "all"
"""All faults, not only the short ones."""
TEMPLATE: Final = "faults_template"

_numbers = count(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`make test` has five minutes for faults; the long ones are for `make faults`."""
    left_out = [] if ALL else [item for item in items if item.get_closest_marker("long_fault")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def template(stoppable_postgres: PrivatePostgres) -> str:
    make_template(stoppable_postgres, TEMPLATE)
    return TEMPLATE


@pytest.fixture(scope="session")
def private_rabbitmq(rabbitmq: RabbitMQ) -> Iterator[PrivateRabbitMQ]:
    """The tests' broker, or one of our own where the tests were given one that is not ours to kill."""
    if isinstance(rabbitmq, PrivateRabbitMQ):
        yield rabbitmq
        return
    try:
        with PrivateRabbitMQ() as own:
            yield own
    except ServerMissingError as error:
        without_server(str(error))


@pytest.fixture
def open_stage(
    stoppable_postgres: PrivatePostgres, private_rabbitmq: PrivateRabbitMQ, template: str, tmp_path: Path
) -> Iterator[Callable[[Mapping[str, str]], AbstractContextManager[Stage]]]:
    """Opens a stage with these settings; shows the processes' last words when the test fails."""

    def open_(env: Mapping[str, str]) -> AbstractContextManager[Stage]:
        print(f"replay: make faults SEED={SEED}")
        return stage(stoppable_postgres, private_rabbitmq, tmp_path, f"fault_{next(_numbers)}", template, env)

    yield open_
    for log in sorted(tmp_path.glob("*/output.log")):
        print(f"--- {log.parent.name} ---\n{log.read_text(errors='replace')[-3000:]}")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """pika warns of every connection that a fault ends."""
    logger = logging.getLogger("pika")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if ROWS:
        lines = table(ROWS, SEED)
        terminalreporter.section("faults")
        terminalreporter.write_line("\n".join(lines))
        report = os.environ.get("FAULTS_TABLE")
        if report:
            Path(report).parent.mkdir(exist_ok=True)
            Path(report).write_text("\n".join(lines) + "\n")
