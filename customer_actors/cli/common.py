"""What every verb shares: errors become exit codes; settings, database and JSON are handled in one way."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from customer_actors.errors import DataFault, Outage, RefusedError, UsageError
from customer_actors.settings import Settings, load_settings
from customer_actors.storage.database import Database
from customer_actors.storage.opening import open_database, sqlite_file
from customer_actors.storage.rules import require_same_decimals
from customer_actors.storage.schema import require_current
from customer_actors.telemetry import configure_logging, redact

OK, PROBLEMS, USAGE, CANNOT_CONNECT = 0, 1, 2, 4

_EXIT_CODES: tuple[tuple[type[Exception], int], ...] = (
    (UsageError, USAGE),
    (RefusedError, PROBLEMS),
    (DataFault, PROBLEMS),
    (Outage, CANNOT_CONNECT),
    (OSError, PROBLEMS),  # a full disk or pipe
)


class ErrorsToExitCodes(click.Group):
    """A known error is one line on standard error that names the fix, and the exit code of its kind."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # whoever read, such as `head`, had enough: click ends quietly with 1
        except tuple(kind for kind, _ in _EXIT_CODES) as error:
            click.echo(redact(f"customer-actors: {error}"), err=True)
            ctx.exit(next(code for kind, code in _EXIT_CODES if isinstance(error, kind)))


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
organization_option = click.option(
    "--org", "organization_id", default="default", show_default=True, metavar="ORG", help="The customer's organization."
)


def settings_for_command() -> Settings:
    """The settings, with logging set up for a command that talks to a person (warnings and worse)."""
    settings = load_settings()
    configure_logging("WARNING" if settings.log_level == "INFO" else settings.log_level)
    return settings


def require_file(settings: Settings) -> None:
    """Refuse to make an empty database where none is. Raises UsageError."""
    file = sqlite_file(settings.database_url)
    try:
        there = file is None or file.exists()
    except OSError as error:
        raise UsageError(f"the database {file} cannot be looked at: {error.strerror}") from None
    if not there:
        raise UsageError(f"there is no database {file}: run `customer-actors migrate`, or name another in DATABASE_URL")


@contextmanager
def opened(settings: Settings) -> Iterator[Database]:
    """The database of these settings with a current schema; its connection is closed afterwards.

    Raises:
        UsageError: there is no such SQLite file, the schema is not current, or the database could forget what is
            committed. Outage: it is away.
    """
    require_file(settings)
    database = open_database(settings.database_url)
    try:
        require_current(database)
        database.require_durable()
        require_same_decimals(database, settings.rules())
        yield database
    finally:
        database.release()


def print_json(value: object) -> None:
    """One JSON document, indented on a terminal and on one line in a pipe."""
    click.echo(json_text(value, indent=2 if sys.stdout.isatty() else None))


def json_text(value: object, indent: int | None = None) -> str:
    """JSON with every character that does not print escaped, so that it can be shown on any terminal."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def printable(text: str) -> str:
    """Text from outside as it may be shown: control characters (newlines, ANSI escapes) are escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def counted(count: int, noun: str) -> str:
    """`1 event`, `2 events`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def value_text(value: object) -> str:
    """A stored or expected figure in a sentence."""
    return "nothing" if value is None else str(value)


def leave(code: int) -> NoReturn:
    """End the verb with an exit code."""
    raise click.exceptions.Exit(code)
