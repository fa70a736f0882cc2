"""Verbs that make and send events: a first demonstration, files and pipes in one process, files to the broker."""

import errno
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import IO, Any

import click
from dotenv import dotenv_values

from customer_actors.cli.common import OK, PROBLEMS, json_option, leave, print_json, printable
from customer_actors.cli.demo import demo
from customer_actors.cli.progress import display, shown
from customer_actors.cli.summary import print_run, run_summary
from customer_actors.domain.envelope import MAX_BODY_BYTES, Received
from customer_actors.embedded import Embedded, embedded
from customer_actors.errors import Outage, RefusedError, UsageError
from customer_actors.ingest.files import numbered_lines, received_lines
from customer_actors.ingest.publish import exchange_for
from customer_actors.ingest.publish import publish as publish_messages
from customer_actors.process import stopping_on_signals
from customer_actors.settings import Settings, load_settings
from customer_actors.simulate import ShopPlan
from customer_actors.simulate import simulate as simulated
from customer_actors.storage.summary import held_customers
from customer_actors.telemetry import configure_logging

STANDARD_INPUT = "-"
_LINES_AT_ONCE = 1_000

FileName = click.Path(exists=True, dir_okay=False, readable=True, allow_dash=True)
"""Checked before anything else is done."""


class UnreadableError(Exception):
    """A file that could be opened at the start cannot be read any further."""


@click.command()
@click.argument("files", nargs=-1, required=True, type=FileName, metavar="FILE...|-")
@json_option
def run(files: tuple[str, ...], as_json: bool) -> None:
    """Process JSON-lines files, or standard input as it arrives, in this process.

    Works on the database of DATABASE_URL (without it: the SQLite file customer_actors.db here), whose schema is brought
    up to date first. RABBITMQ_URL is ignored: nothing leaves this process. Ends when every customer is at the end of
    its stream or held. Ctrl-C keeps what was committed; the same command goes on from there, for lines seen before are
    duplicates without effect.

    Exit code 1 if this run quarantined a line or if a customer was held or parked.

    Example: customer-actors simulate --events 5000 | customer-actors run -
    """
    settings = _settings({"RABBITMQ_URL": ""})
    with stopping_on_signals() as stop:
        try:
            with embedded(settings, stop) as service:
                problems = _run(service, files, as_json)
        except Outage:
            if not stop.asked:
                raise
            problems = True
    if stop.signal is not None:
        click.echo(
            f"stopped by {stop.signal.name}: what was committed stays, the same command goes on from there", err=True
        )
        leave(stop.exit_code)
    leave(PROBLEMS if problems else OK)


def _run(service: Embedded, files: tuple[str, ...], as_json: bool) -> bool:
    """Feed and drain, print the summary; whether there was a problem."""
    started = time.monotonic()
    unreadable: UnreadableError | None = None
    with shown(service) as watch:
        try:
            service.feed_messages(_messages(files, service.pipeline.clock), watch)
        except UnreadableError as error:
            unreadable = error
        service.drain(watch)
    held = [one for one in held_customers(service.database) if one not in service.held_before]
    seconds = time.monotonic() - started
    summary = run_summary(seconds, service.intake.outcomes, service.quarantined, service.reasons, held)
    if as_json:
        print_json(summary)
    else:
        print_run(summary)
    if unreadable is not None:
        click.echo(f"customer-actors: {unreadable}; what was read before is committed", err=True)
    return bool(service.quarantined or held or unreadable)


def _messages(files: tuple[str, ...], clock: Callable[[], int]) -> Iterator[Received]:
    """The lines of all files, one file after the other."""
    for name in files:
        try:
            with _opened(name) as lines:
                yield from received_lines(lines, clock)
        except OSError as error:
            raise UnreadableError(f"{_shown_name(name)} cannot be read: {error.strerror}") from error


def _shown_name(name: str) -> str:
    return "standard input" if name == STANDARD_INPUT else printable(name)


def _opened(name: str) -> IO[bytes]:
    if name != STANDARD_INPUT:
        return open(name, "rb")
    if sys.stdin is None:
        raise OSError(errno.EBADF, "it is closed")
    try:
        # A reader of its own: the interpreter could not end while a thread waits in its standard one.
        return open(os.dup(sys.stdin.fileno()), "rb")
    except OSError:  # no file at all, as in tests
        return sys.stdin.buffer


@click.command()
@click.argument("file", type=FileName, metavar="FILE|-")
@json_option
def publish(file: str, as_json: bool) -> None:
    """Send the lines of a JSON-lines file, or of standard input as they arrive, to the broker's exchanges.

    Each line is an envelope, sent as it is; its field "event" is the routing key and decides the exchange. A line that
    names no such event is reported and not sent. Needs RABBITMQ_URL, and no database.

    Exit code 1 if a line was not sent or the broker did not take a message.

    Example: customer-actors simulate --events 1000 | customer-actors publish -
    """
    url = _broker_url()
    bad: list[int] = []
    try:
        with display() as show, _opened(file) as lines:
            report = publish_messages(
                url, _addressed(lines, bad), progress=lambda confirmed: show(f"{confirmed:,} messages confirmed")
            )
    except OSError as error:
        raise RefusedError(f"{_shown_name(file)} cannot be read: {error.strerror}; what came before is sent") from None
    counts = {**report._asdict(), "bad_lines": len(bad)}
    if as_json:
        print_json(counts)
    else:
        click.echo(
            f"{report.confirmed:,} confirmed, {report.returned:,} returned (no queue takes them), "
            f"{report.nacked:,} refused by the broker, {len(bad):,} bad lines not sent"
        )
    leave(PROBLEMS if report.returned or report.nacked or bad else OK)


def _broker_url() -> str:
    settings = _settings({"DATABASE_URL": "postgresql:///not_used"})
    if settings.rabbitmq_url is None:
        raise UsageError("RABBITMQ_URL is not set: name the broker, such as amqp://user:password@host:5672/vhost")
    return settings.rabbitmq_url


def _settings(instead: Mapping[str, str]) -> Settings:
    """The settings but for a variable the verb does not use: together with an SQLite file a broker would be refused."""
    given = {name: value for name, value in {**dotenv_values(".env"), **os.environ}.items() if value is not None}
    settings = load_settings({**given, **instead})
    configure_logging("WARNING" if settings.log_level == "INFO" else settings.log_level)
    return settings


def _addressed(lines: IO[bytes], bad: list[int]) -> Iterator[tuple[str, bytes]]:
    """Routing key and body of every line; what has none is reported and its number noted in `bad`."""
    for number, body in numbered_lines(lines):
        try:
            yield routing_key_of(body), body
        except ValueError as error:
            bad.append(number)
            click.echo(f"line {number}: {printable(str(error))}", err=True)


def routing_key_of(body: bytes) -> str:
    """The event type an envelope names. Raises ValueError, with what is wrong, when no exchange could take it."""
    if len(body) > MAX_BODY_BYTES:
        raise ValueError(f"longer than {MAX_BODY_BYTES} bytes")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("not one JSON document") from None
    event = document.get("event") if isinstance(document, dict) else None
    if not isinstance(event, str):
        raise ValueError('no JSON object with a text "event"')
    try:
        exchange_for(event)
    except UsageError as error:
        raise ValueError(str(error)) from None
    return event


_Positive = click.IntRange(min=1)
_Share = click.FloatRange(0, 1)


@click.command()
@click.option("--customers", type=_Positive, default=1_000, show_default=True, help="Size of the customer base.")
@click.option("--events", type=_Positive, default=10_000, show_default=True, help="Number of lines.")
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed writes the same bytes.")
@click.option("--organizations", type=_Positive, default=1, show_default=True, help="Shops that share no customers.")
@click.option("--days", type=_Positive, default=365, show_default=True, help="Length of the time simulated.")
@click.option("--duplicates", type=_Share, default=0.03, show_default=True, help="Share of lines sent again.")
@click.option("--malformed", type=_Share, default=0.005, show_default=True, help="Share of lines nobody can use.")
@click.option("--now", is_flag=True, help="End the time simulated now, not on a fixed day; the bytes differ then.")
def simulate(now: bool, **plan: Any) -> None:
    """Write the events of a seeded, realistic shop as JSON lines.

    Orders, till sales (some anonymous), cancellations before and after, credit sales, payments, duplicates, late and
    malformed events, as the publishers would send them.

    Example: customer-actors simulate --customers 500 --events 5000 --seed 7 > events.jsonl
    """
    shop = ShopPlan(**plan)
    lines = simulated(shop._replace(end_at=datetime.now(UTC)) if now else shop)
    out = sys.stdout.buffer
    try:
        while text := "".join(line + "\n" for line in islice(lines, _LINES_AT_ONCE)):
            out.write(text.encode())
        out.flush()
    except BrokenPipeError:
        # Whoever read had enough. Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


VERBS = (demo, run, publish, simulate)
