"""What the verbs of triage share: who does it and why, dry runs, and bounded lists."""

import getpass
import time
from collections.abc import Callable
from typing import Final

import click

from customer_actors.domain.envelope import UNSTORABLE
from customer_actors.errors import UsageError
from customer_actors.storage.operators import Action

MOST_TEXT: Final = 500
"""Characters of a reason or an operator's name."""

Verb = Callable[..., None]

limit_option = click.option(
    "--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="Most lines printed."
)
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
