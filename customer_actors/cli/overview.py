"""`status`: how the whole service is, in one look."""

import time
from collections.abc import Sequence
from typing import Any, Final

import click

from customer_actors.cli.common import (
    OK,
    PROBLEMS,
    json_option,
    leave,
    print_json,
    printable,
    require_file,
    settings_for_command,
)
from customer_actors.domain.telling import Figures
from customer_actors.storage.nights_view import FAILING, night_text
from customer_actors.storage.opening import open_database
from customer_actors.storage.overview import service_view
from customer_actors.storage.schema import pending
from customer_actors.telemetry import redact

BROKER_TIMEOUT_S: Final = 3
_NOT_OURS: Final = (404, 405)
"""Replies for a queue that is not there, and for one that another connection has for itself."""


@click.command()
@json_option
def status(as_json: bool) -> None:
    """Streams, how far every actor is, and what waits for a person: held, parked, quarantined, dead letters.

    "behind" counts customers whose newest events an actor has yet to fold, without those held; what stands at and
    behind a held event is counted under "held back". Of every nightly job the last run is shown. With RABBITMQ_URL the
    queues are counted too. This is information: the exit code is 0 whatever the figures are, 1 when migrations are
    pending, 4 when the database cannot be reached.

    Example: customer-actors status --json
    """
    settings = settings_for_command()
    require_file(settings)
    database = open_database(settings.database_url)
    try:
        missing = pending(database)
        view: Figures = {"pending_migrations": missing}
        if not missing:
            view |= service_view(database, time.time_ns() // 1_000)
    finally:
        database.release()
    view["broker"] = None if settings.rabbitmq_url is None else broker_view(settings.rabbitmq_url)
    if as_json:
        print_json(view)
    else:
        _print_status(view)
    leave(PROBLEMS if missing else OK)


def broker_view(url: str) -> Figures:
    """Messages ready in each of our queues (None: there is no such queue), or why the broker could not be asked."""
    import pika  # only who has a broker pays for the import
    from pika.exceptions import AMQPError

    from customer_actors.ingest.connection import parameters
    from customer_actors.ingest.topology import DEAD_LETTER_QUEUE, QUEUES, UNROUTED_QUEUE

    how = parameters(url, "customer-actors status")
    how.socket_timeout = how.stack_timeout = how.blocked_connection_timeout = BROKER_TIMEOUT_S
    how.connection_attempts = 1
    try:
        with pika.BlockingConnection(how) as connection:
            queues = {queue: _messages(connection, queue) for queue in (*QUEUES, DEAD_LETTER_QUEUE, UNROUTED_QUEUE)}
    except (AMQPError, OSError) as error:
        return {"reachable": False, "error": redact(f"{type(error).__name__} {error}".strip()), "queues": {}}
    return {"reachable": True, "error": None, "queues": queues}


def _messages(connection: Any, queue: str) -> int | None:
    from pika.exceptions import ChannelClosedByBroker

    try:
        count: int = connection.channel().queue_declare(queue, passive=True).method.message_count
    except ChannelClosedByBroker as refusal:
        if refusal.reply_code not in _NOT_OURS:
            raise
        return None
    return count


def _print_status(view: Figures) -> None:
    if view["pending_migrations"]:
        names = ", ".join(view["pending_migrations"])
        click.echo(f"the database schema is old (missing {names}): run `customer-actors migrate`")
    else:
        _print_service(view)
    broker = view["broker"]
    if broker is None:
        return
    if not broker["reachable"]:
        click.echo(click.style(printable(f"the broker cannot be reached: {broker['error']}"), fg="red"))
    for queue, messages in broker["queues"].items():
        click.echo(f"{queue:<28}{'not there yet' if messages is None else messages:>14}")


def _print_service(view: Figures) -> None:
    click.echo(f"customers: {view['customers']}, events in their streams: {view['events']}\n")
    columns = ("behind", "waiting", "oldest", "held", "parked", "held back")
    click.echo(click.style(_cells("", columns), bold=True))
    for actor, figures in view["actors"].items():
        behind, waiting, oldest_s, *held = figures.values()
        line = _cells(actor, (behind, waiting, "-" if oldest_s is None else f"{oldest_s} s", *held))
        click.echo(click.style(line, fg="red" if figures["parked"] else "yellow" if figures["held"] else None))
    quarantined = view["quarantined"]
    codes = ", ".join(f"{figures['distinct']} {printable(code)}" for code, figures in quarantined["codes"].items())
    text = f"\nquarantined: {quarantined['distinct']}, seen {quarantined['seen']} times"
    click.echo(click.style(f"{text} ({codes})" if codes else text, fg="yellow" if codes else None))
    bells = view["bells"]
    age = "" if bells["oldest_seconds"] is None else f", the oldest for {bells['oldest_seconds']} s"
    click.echo(f"unanswered bells: {bells['unanswered']}{age}")
    for job, night in view["nights"].items():
        text = f"night of {job} {night['slot']}: {night_text(night)}"
        click.echo(click.style(printable(text), fg="yellow" if night["state"] == FAILING else None))
    for each in view["processes"]:
        text = f"{each['process']}: {each['threads']} threads, seen {each['beat_seconds_ago']} s ago"
        problem = each["problem"]
        click.echo(click.style(printable(f"{text}, {problem}" if problem else text), fg="red" if problem else None))


def _cells(label: str, cells: Sequence[object]) -> str:
    return f"{label:<12}" + "".join(f"  {cell:>11}" for cell in cells)
