"""Logs are readable by machines and persons, and hold no secret [G23]."""

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest
import structlog

from customer_actors.telemetry import configure_logging, redact


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, configuration = root.handlers[:], root.level, structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**configuration)


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("amqp://somebody:s3cret@mq.example:5672/shop", "amqp://***@mq.example:5672/shop"),
        ("postgresql://somebody:p@ss/w#rd@db.example/shop", "postgresql://***@db.example/shop"),
        ("neither postgres://a:s3cret@one nor amqps://b:s3cret@two", "neither postgres://***@one nor amqps://***@two"),
        ("postgresql://db/shop?password=s3cret&sslmode=require", "postgresql://db/shop?password=***&sslmode=require"),
        ("host=db.example password='s3 cret' dbname=shop", "host=db.example password=*** dbname=shop"),
        ('{"url": "amqp://a:s3cret@mq", "mail": "a@b.example"}', '{"url": "amqp://***@mq", "mail": "a@b.example"}'),
        ("sqlite:////data/file.db", "sqlite:////data/file.db"),
        ("write amqp://user:password@host:5672/vhost; or", "write amqp://user:password@host:5672/vhost; or"),
        ("amqp://user:password@host.example.org@mq/shop", "amqp://***@mq/shop"),
        ("amqp://user:password@mq/shop", "amqp://***@mq/shop"),
        ("https://example.org/path, or write to a@b.example", "https://example.org/path, or write to a@b.example"),
    ],
)
def test_credentials_are_removed_and_nothing_else(text: str, redacted: str) -> None:
    assert redact(text) == redacted


def test_a_pipe_gets_one_json_object_per_line() -> None:
    stream = io.StringIO()
    configure_logging("INFO", stream)
    structlog.get_logger("customer_actors.test").info("batch committed", events=3, note="two\nlines")
    logging.getLogger("dramatiq.worker").warning("lost %s", "connection")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["event"], first["level"], first["events"]) == ("batch committed", "info", 3)
    assert first["note"] == "two\nlines"
    assert (second["event"], second["level"], second["logger"]) == ("lost connection", "warning", "dramatiq.worker")
    assert first["time"].endswith("Z")


def test_a_terminal_gets_lines_for_a_person_that_cannot_move_its_cursor() -> None:
    stream = Terminal()
    configure_logging("INFO", stream)
    structlog.get_logger().info("refused", reference="a\x1b[2Jb\nc")
    assert "refused" in stream.getvalue()
    assert "\\x1b[2Jb\\nc" in stream.getvalue()
    assert stream.getvalue().count("\n") == 1


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["pipe", "terminal"])
def test_no_secret_is_logged_wherever_it_hides(stream: io.StringIO) -> None:
    configure_logging("DEBUG", stream)
    url = "amqp://somebody:s3cret@mq.example/"
    log = structlog.get_logger()
    log.info(f"connecting to {url}", url=url, nested={"urls": [url], url: {url}}, error=ConnectionError(url))
    logging.getLogger("dramatiq").error("cannot reach %s", url)
    try:
        raise ConnectionError(url)
    except ConnectionError:
        log.exception("failed")
        logging.getLogger("somebody").exception("failed as well")
    assert stream.getvalue().count("***@mq.example") >= 8
    assert "s3cret" not in stream.getvalue()


def test_the_level_is_the_least_severe_that_is_logged() -> None:
    stream = io.StringIO()
    configure_logging("WARNING", stream)
    log = structlog.get_logger("customer_actors.test")
    log.info("small")
    log.warning("large")
    logging.getLogger("dramatiq").info("small")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["large"]


def test_configuring_twice_prints_once() -> None:
    stream = io.StringIO()
    configure_logging("INFO", stream)
    configure_logging("INFO", stream)
    structlog.get_logger().info("once")
    assert stream.getvalue().count("once") == 1


def test_logs_go_to_standard_error() -> None:
    code = (
        "import structlog; from customer_actors.telemetry import configure_logging; "
        "configure_logging(); structlog.get_logger().info('hi')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert json.loads(done.stderr)["event"] == "hi"
