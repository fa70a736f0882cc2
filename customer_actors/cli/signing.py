"""What the verbs of triage share: who does it and why, whom it is about, dry runs, and bounded lists."""

import getpass
import time
from collections.abc import Callable
from typing import Final

import click

from customer_actors.cli.common import printable
from customer_actors.domain.envelope import UNSTORABLE
from customer_actors.domain.routing import ACTORS
from customer_actors.errors import RefusedError, UsageError
from customer_actors.storage import triage
from customer_actors.storage.database import Database
from customer_actors.storage.operators import Action

MOST_TEXT: Final = 500
"""Characters of a reason or an operator's name."""

Verb = Callable[..., None]

limit_option = click.option(
    "--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="Most lines printed."
)
actor_option = click.option("--actor", type=click.Choice(ACTORS), help="Only this actor's.")
error_option = click.option("--error", metavar="TEXT", help="Only errors with this text in them, written as they are.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Tell what would happen; change nothing.")


def signed(verb: Verb) -> Verb:
    """Who and why, for everything that changes something; both are recorded."""
    why = click.option("--reason", required=True, metavar="TEXT", help="Why; recorded with the action.")
    return why(operator_option(verb))


operator_option = click.option("--operator", metavar="NAME", help="Who does this.  [default: the login name]")


def operator_name(operator: str | None) -> str:
    """The name given, else the login name. Raises UsageError where there is none."""
    try:
        return getpass.getuser() if operator is None else operator
    except (OSError, KeyError):
        raise UsageError("there is no login name here; say who you are with --operator NAME") from None


def action_of(action: str, operator: str | None, reason: str) -> Action:
    """The record of an action to come. Raises UsageError for a blank or unstorable text."""
    return Action(_text("--operator", operator_name(operator)), action, _text("--reason", reason))


def _text(name: str, text: str) -> str:
    text = text.strip()
    if not text or len(text) > MOST_TEXT or UNSTORABLE.search(text):
        raise UsageError(f"{name} must be a text of 1 to {MOST_TEXT} characters")
    return text


def now_us() -> int:
    """Microseconds since the epoch by this host's clock."""
    return time.time_ns() // 1_000


def number_of(database: Database, organization_id: str, customer_id: str) -> int:
    """The customer's internal number. Raises RefusedError for one that nobody has heard of."""
    ids = organization_id + customer_id
    number = None if UNSTORABLE.search(ids) else triage.number_of_customer(database, organization_id, customer_id)
    if number is None:
        names = f"customer {printable(customer_id)} in organization {printable(organization_id)}"
        raise RefusedError(f"there is no {names}; another organization is named with --org")
    return number


def part_of_error(error: str | None) -> str | None:
    """What --error names. Raises UsageError for what no error can have in it."""
    if error is not None and (not error or UNSTORABLE.search(error)):
        raise UsageError("--error must be a part of an error's text, such as KeyError")
    return error
