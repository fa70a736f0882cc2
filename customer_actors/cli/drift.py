"""`credit drift`: what a nightly reconciliation found, and whom it suspended or lifted [C7, C8]."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import click

from customer_actors.cli.common import (
    OK,
    PROBLEMS,
    json_option,
    leave,
    opened,
    print_json,
    printable,
    settings_for_command,
)
from customer_actors.domain.telling import amount_text
from customer_actors.errors import UsageError
from customer_actors.storage.database import Database
from customer_actors.storage.drift import Aged, Found, Reconciliation, aged_by, drift_of, reconciliation

Line = TypeVar("Line", Found, Aged)
_NO_RUN = "no reconciliation has run yet; `python -m scheduler run credit` does one now"


@click.command("drift")
@click.option("--run", "number", type=click.IntRange(1), metavar="N", help="The run's number.  [default: the newest]")
@json_option
def credit_drift(number: int | None, as_json: bool) -> None:
    """What a nightly reconciliation found: customer, field, what was stored and what is right; dry runs too.

    Exit 0 if it found no difference, 1 if it did. Cached figures are repaired by the run that finds them; what says
    "not repaired" in a run that was not dry contradicts the ledger itself, which is never changed: look at `explain`.

    Example: customer-actors credit drift --run 12 --json
    """
    settings = settings_for_command()
    with opened(settings) as database:
        run = reconciliation(database, number)
        if run is None and number is not None:
            raise UsageError(f"there is no reconciliation {number}: {_known(database)}")
        if run is not None:
            (_print_json if as_json else _print_text)(database, run, settings.currency_decimals)
        elif as_json:
            print_json({"run": None})
        else:
            click.echo(_NO_RUN)
    leave(PROBLEMS if run is not None and run.drift else OK)


def _known(database: Database) -> str:
    newest = reconciliation(database, None)
    return _NO_RUN if newest is None else f"the newest is {newest.number}"


def _all(
    page: Callable[[Database, str, int], Sequence[Line]], database: Database, run: Reconciliation
) -> Iterator[Line]:
    after = 0
    while rows := page(database, run.slot, after):
        yield from rows
        after = rows[-1].id


def _print_json(database: Database, run: Reconciliation, decimals: int) -> None:
    print_json(
        {
            "run": run.number,
            "slot": run.slot,
            "as_of": run.as_of,
            "dry_run": run.dry_run,
            "finished": run.finished,
            "drift": [
                {
                    "organization_id": found.organization_id,
                    "customer_id": found.customer_id,
                    "field": found.field,
                    "stored": amount_text(found.stored, decimals),
                    "expected": amount_text(found.expected, decimals),
                    "repaired": found.repaired,
                }
                for found in _all(drift_of, database, run)
            ],
            "aged": [
                {
                    "organization_id": aged.organization_id,
                    "customer_id": aged.customer_id,
                    "action": aged.action,
                    "oldest_due_date": aged.oldest_due_date,
                }
                for aged in _all(aged_by, database, run)
            ],
        }
    )


def _print_text(database: Database, run: Reconciliation, decimals: int) -> None:
    kind = "dry run" if run.dry_run else "run"
    state = "" if run.finished else ", not finished"
    click.echo(printable(f"{kind} {run.number}, {run.slot}, as of {run.as_of}{state}: {run.drift} differences"))
    for found in _all(drift_of, database, run):
        stored, expected = (amount_text(minor, decimals) for minor in (found.stored, found.expected))
        done = "repaired" if found.repaired else "not repaired"
        who = f"{found.customer_id}  organization {found.organization_id}"
        click.echo(printable(f"  {who}  {found.field}  stored {stored}  expected {expected}  {done}"))
    for aged in _all(aged_by, database, run):
        would = "would be " if run.dry_run else ""
        done = {"suspend": "suspended", "lift": "lifted"}[aged.action]
        due = "" if aged.oldest_due_date is None else f"  oldest due {aged.oldest_due_date}"
        click.echo(printable(f"  {aged.customer_id}  organization {aged.organization_id}  {would}{done}{due}"))
