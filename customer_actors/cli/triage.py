"""`held`: what waits behind an event that failed; what a person does about it stands in `letting_go`."""

import shlex
from collections.abc import Sequence
from typing import Any, Final

import click

import customer_actors.cli.letting_go as letting_go
from customer_actors.cli.common import (
    json_option,
    opened,
    organization_option,
    print_json,
    printable,
    settings_for_command,
)
from customer_actors.cli.signing import actor_option, error_option, limit_option, number_of, part_of_error
from customer_actors.cli.summary import print_table
from customer_actors.domain.events import iso
from customer_actors.errors import RefusedError
from customer_actors.storage import triage
from customer_actors.storage.triage import HeldCustomer, HeldEvent, Wanted

_AFTER_A_FIX: Final = "after a fix: customer-actors held release"


@click.group()
def held() -> None:
    """Customers held at an event that failed for one actor: look, and after a fix let them go on.

    A held customer is tried again by itself, ten times with growing pauses; then it is parked and waits for a person.
    Everything behind the event waits, in order; nobody else does.

    Example: customer-actors held list
    """


@held.command("list")
@actor_option
@error_option
@click.option("--customers", is_flag=True, help="List every customer, the longest held first.")
@limit_option
@json_option
def held_list(actor: str | None, error: str | None, customers: bool, limit: int, as_json: bool) -> None:
    """What is held, by error: how many customers, since when, and how many events wait behind them.

    Example: customer-actors held list --actor loyalty --customers
    """
    wanted = Wanted(actor, part_of_error(error))
    with opened(settings_for_command()) as database:
        holds, errors = triage.held_totals(database, wanted)
        groups = triage.held_errors(database, wanted, limit)
        each = triage.held_customers(database, wanted, limit) if customers else []
    view: dict[str, Any] = {
        "held": holds,
        "errors": [
            {
                "actor": group.actor,
                "error": group.error,
                "customers": group.customers,
                "parked": group.parked,
                "since": _time(group.since_us),
                "events_waiting": group.waiting,
            }
            for group in groups
        ],
        "more_errors": errors - len(groups),
    }
    if customers:
        view |= {"customers": [_customer_figures(one) for one in each], "more_customers": holds - len(each)}
    if as_json:
        print_json(view)
    else:
        _print_list(view)


def _time(at_us: int | None) -> str | None:
    return None if at_us is None else iso(at_us)


def _customer_figures(one: HeldCustomer) -> dict[str, Any]:
    return {
        "organization_id": one.organization_id,
        "customer_id": one.customer_id,
        "actor": one.actor,
        "position": one.position,
        "status": "parked" if one.next_try_us is None else "held",
        "attempts": one.attempts,
        "next_try": _time(one.next_try_us),
        "since": _time(one.since_us),
        "events_waiting": one.waiting,
        "error": one.error,
    }


def _print_list(view: dict[str, Any]) -> None:
    if not view["held"]:
        click.echo("nothing is held")
        return
    names = ("actor", "customers", "parked", "since", "events_waiting", "error")
    _print_table("Held, by error", names, view["errors"], view["more_errors"])
    if "customers" in view:
        each = ("organization_id", "customer_id", "actor", "position", "status", "attempts", "since", "events_waiting")
        _print_table("Customers", (*each, "error"), view["customers"], view["more_customers"])
    whom = "held show CUSTOMER" if "customers" in view else "held list --customers"
    click.echo(f"\nlook: customer-actors {whom}; {_AFTER_A_FIX} --error TEXT --reason TEXT")


def _print_table(title: str, names: Sequence[str], rows: Sequence[dict[str, Any]], more: int) -> None:
    cells = [["-" if row[name] is None else row[name] for name in names] for row in rows]
    print_table(title, [name.replace("_", " ") for name in names], cells)
    if more:
        click.echo(f"and {more} more: see them with --limit")


@held.command("show")
@click.argument("customer_id", metavar="CUSTOMER")
@actor_option
@organization_option
@json_option
def held_show(customer_id: str, actor: str | None, organization_id: str, as_json: bool) -> None:
    """The event a customer is held at, how often it was tried, what waits behind, and the last traceback.

    Example: customer-actors held show C000042 --actor loyalty
    """
    with opened(settings_for_command()) as database:
        number = number_of(database, organization_id, customer_id)
        events = triage.held_events(database, number, actor)
    if as_json:
        print_json([_event_figures(event) for event in events])
    if not events:
        for_actor = "" if actor is None else f" for {actor}"
        raise RefusedError(f"customer {printable(customer_id)} is not held{for_actor}")
    if not as_json:
        for event in events:
            _print_event(event)


def _event_figures(event: HeldEvent) -> dict[str, Any]:
    figures = _customer_figures(event.held)
    told = {"type": event.type, "reference": event.reference, "occurred_at": iso(event.occurred_at_us)}
    return figures | {"event": told, "traceback": event.traceback}


def _print_event(event: HeldEvent) -> None:
    figures = _event_figures(event)
    parked = "parked: waits for a person" if figures["next_try"] is None else figures["next_try"]
    told = figures["event"]
    lines = {
        "customer": f"{figures['customer_id']}  organization {figures['organization_id']}",
        "actor": f"{figures['actor']} at position {figures['position']}",
        "event": f"{told['type']} {told['reference']}, occurred at {told['occurred_at']}",
        "attempts": str(figures["attempts"]),
        "next try": parked,
        "since": figures["since"] or "-",
        "waiting": f"{figures['events_waiting']} events behind it",
        "error": figures["error"],
    }
    for name, text in lines.items():
        click.echo(f"{name:<10}{printable(text)}")
    for line in figures["traceback"].splitlines():
        click.echo(f"    {printable(line)}")
    org = shlex.quote(printable(figures["organization_id"]))
    whose = f"{shlex.quote(printable(figures['customer_id']))} --org {org} --actor {figures['actor']}"
    click.echo(f"{_AFTER_A_FIX} {whose} --reason TEXT")


held.add_command(letting_go.release)
held.add_command(letting_go.skip)

VERBS = (held,)
