"""Verbs that compare what is stored with the streams folded again, and put right what a refold can."""

import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Final

import click

from customer_actors.cli.common import (
    OK,
    PROBLEMS,
    counted,
    json_option,
    json_text,
    leave,
    opened,
    printable,
    settings_for_command,
    value_text,
)
from customer_actors.cli.signing import action_of, dry_run_option, now_us, signed
from customer_actors.domain.routing import ACTORS
from customer_actors.errors import UsageError
from customer_actors.storage import views
from customer_actors.storage.audit import Audit, Checked, Difference, Scope, count_customers
from customer_actors.storage.database import Database
from customer_actors.storage.rebuild import Outcome, Rebuild, Rebuilt

MOST_SHOWN: Final = 20
"""Differences shown of one customer; JSON has them all."""

_customer_option = click.option("--customer", "customer_id", metavar="CUSTOMER", help="This customer only.")
_org_option = click.option(
    "--org", "organization_id", metavar="ORG", help="This organization only; of a customer: default."
)


@click.command()
@click.argument("customer_id", metavar="[CUSTOMER]", required=False)
@_org_option
@click.option("--actor", type=click.Choice(ACTORS), help="What this actor stores only.")
@json_option
def audit(customer_id: str | None, organization_id: str | None, actor: str | None, as_json: bool) -> None:
    """Compare everything stored with the streams folded again, and name every difference.

    States, positions, ledgers, sums, holds and segments. Runs while events flow and changes nothing. Exit code 1 on any
    difference. Memory does not grow with a customer's stream: what it needs of a long one goes to a temporary file.

    Example: customer-actors audit C000042 --org default
    """
    settings = settings_for_command()
    with opened(settings) as database:
        scope = _scope(database, organization_id, customer_id)
        running = Audit(database, settings.rules(), ACTORS if actor is None else (actor,))
        differences = running.run(scope, _progress("audit", count_customers(database, scope)))
        count = (_print_json if as_json else _print_text)(differences, running.checked)
    leave(PROBLEMS if count else OK)


def _scope(database: Database, organization_id: str | None, customer_id: str | None) -> Scope:
    """Raises UsageError for a customer or an organization that nobody has heard of."""
    if customer_id is None:
        scope = Scope(organization_id)
        if organization_id is not None and not (views.storable(organization_id) and count_customers(database, scope)):
            raise UsageError(f"no organization {printable(organization_id)} has customers; check --org")
        return scope
    scope = Scope(organization_id or "default", customer_id)
    if not views.storable(f"{organization_id}{customer_id}") or not count_customers(database, scope):
        text = f"no customer {printable(customer_id)} in organization {printable(scope.organization_id or '')}"
        known = views.organizations_of(database, customer_id)
        hint = f"; that id exists: add --org {shlex.quote(printable(known[0]))}" if known else ""
        raise UsageError(text + hint)
    return scope


def _progress(verb: str, total: int) -> Callable[[int], None]:
    """Tells on a terminal how far it has come, at most five times a second."""
    if not sys.stderr.isatty():
        return lambda _: None
    shown = [0.0]

    def show(done: int) -> None:
        now = time.monotonic()
        if now - shown[0] > 0.2 or done >= total:
            shown[0] = now
            click.echo(f"\r{verb}: {done} of {total} customers", err=True, nl=done >= total)

    return show


def _print_text(differences: Iterable[Difference], checked: Checked) -> int:
    """Differences by customer, at most MOST_SHOWN of each; returns how many there are."""
    count, actors = 0, set[str]()

    def line(each: Difference) -> tuple[str, str, object, object]:
        actors.add(each.actor)
        return each.actor, each.field, each.stored, each.expected

    for (organization_id, customer_id), found in groupby(differences, key=lambda each: each[:2]):
        click.secho(f"{printable(customer_id)}  organization {printable(organization_id) or 'unknown'}", bold=True)
        count += _print_lines(map(line, found), MOST_SHOWN)
    sizes = f"{counted(checked.customers, 'customer')}, {counted(checked.events, 'event')}"
    figures = f"{sizes} and {counted(checked.ledger_rows, 'ledger row')} compared"
    if count:
        click.echo(click.style(f"audit: {counted(count, 'difference')}", fg="red") + f", {figures}")
        for actor in (actor for actor in ACTORS if actor in actors):
            click.echo(f"next: customer-actors rebuild {actor} --dry-run --reason TEXT")
    else:
        click.echo(click.style("audit: ok", fg="green") + f", no difference, {figures}")
    return count


def _print_lines(lines: Iterable[tuple[str, str, object, object]], most: int) -> int:
    count = 0
    for actor, field, stored, expected in lines:
        count += 1
        if count <= most:
            text = f"  {actor:<12}  {field:<28}  stored {value_text(stored)}, expected {value_text(expected)}"
            click.echo(printable(text))
    if count > most:
        click.echo(f"  and {count - most} more; --json has them all")
    return count


def _print_json(differences: Iterable[Difference], checked: Checked) -> int:
    """One document, written difference by difference."""
    count = 0
    click.echo('{"differences": [', nl=False)
    for difference in differences:
        click.echo(f"{',' * bool(count)}\n{json_text(difference._asdict())}", nl=False)
        count += 1
    click.echo(f'\n], "ok": {json_text(not count)}, "checked": {json_text(vars(checked))}}}')
    return count


# --- rebuild -----------------------------------------------------------------------------------------------------


@click.command()
@click.argument("actor", type=click.Choice(ACTORS))
@_customer_option
@_org_option
@signed
@dry_run_option
@json_option
def rebuild(
    actor: str,
    customer_id: str | None,
    organization_id: str | None,
    reason: str,
    operator: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Fold an actor's streams again and put its states right, at the positions where they stand.

    Missing rows are inserted and cached figures corrected. Ledger rows that should not be there, or say
    something else, are reported and never touched: exit code 1 then. What waits stays waiting, what is held stays held.

    Example: customer-actors rebuild loyalty --customer C000042 --reason "restored an old backup"
    """
    by = action_of("rebuild", operator, reason)
    settings = settings_for_command()
    with opened(settings) as database:
        scope = _scope(database, organization_id, customer_id)
        running = Rebuild(database, settings.rules(), actor, dry_run=dry_run)
        done = running.run(scope, by, now_us, _progress("rebuild", count_customers(database, scope)))
        failed = (_rebuilt_json if as_json else _rebuilt_text)(done, running.rebuilt, dry_run)
    leave(PROBLEMS if failed else OK)


def _rebuilt_text(done: Iterator[Outcome], rebuilt: Rebuilt, dry_run: bool) -> bool:
    for (organization_id, customer_id), found in groupby(done, key=lambda each: each[:2]):
        click.secho(f"{printable(customer_id)}  organization {printable(organization_id)}", bold=True)
        shown = 0
        for shown, each in enumerate(found, start=1):
            if shown <= MOST_SHOWN:
                figures = f"stored {value_text(each.stored)}, expected {value_text(each.expected)}"
                colour = "red" if each.what == "reported" else None
                click.secho(printable(f"  {each.what:<9}  {each.field:<28}  {figures}"), fg=colour)
        if shown > MOST_SHOWN:
            click.echo(f"  and {shown - MOST_SHOWN} more; --json has them all")
    would = "would be " if dry_run else ""
    text = f"{counted(rebuilt.customers, 'customer')}, {counted(rebuilt.events, 'event')}; "
    text += f"{counted(rebuilt.repaired, 'figure')} {would}put right, "
    text += f"{counted(rebuilt.inserted, 'row')} {would}inserted, {rebuilt.reported} only reported"
    click.echo(f"rebuild: {text}")
    return rebuilt.failed(dry_run=dry_run)


def _rebuilt_json(done: Iterator[Outcome], rebuilt: Rebuilt, dry_run: bool) -> bool:
    separator = ""
    click.echo('{"findings": [', nl=False)
    for each in done:
        click.echo(f"{separator}\n{json_text(each._asdict())}", nl=False)
        separator = ","
    failed = rebuilt.failed(dry_run=dry_run)
    click.echo(f'\n], "ok": {json_text(not failed)}, "dry_run": {json_text(dry_run)}, "done": ', nl=False)
    click.echo(f"{json_text(vars(rebuilt))}}}")
    return failed


VERBS = (audit, rebuild)
