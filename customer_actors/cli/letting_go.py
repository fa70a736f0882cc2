"""`held release` and `held skip`: what a person does about customers that are held."""

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import click
from click.core import ParameterSource

from customer_actors.cli.common import (
    OK,
    PROBLEMS,
    json_option,
    leave,
    opened,
    organization_option,
    print_json,
    printable,
    settings_for_command,
)
from customer_actors.cli.signing import (
    Verb,
    action_of,
    actor_option,
    dry_run_option,
    error_option,
    now_us,
    number_of,
    part_of_error,
    signed,
)
from customer_actors.errors import RefusedError, UsageError
from customer_actors.settings import Settings
from customer_actors.storage import triage
from customer_actors.storage.actors import Stores
from customer_actors.storage.database import Database
from customer_actors.storage.draining import drain
from customer_actors.storage.operators import Action
from customer_actors.storage.overdue import forget_answered
from customer_actors.storage.triage import Wanted


def _of_one_or_many(verb: Verb) -> Verb:
    """Whom a verb that lets go is about, who does it and why, and how it answers."""
    options = (
        click.argument("customer_id", metavar="[CUSTOMER]", required=False),
        actor_option,
        click.option("--position", type=click.IntRange(1), metavar="P", help="Only if CUSTOMER is held there."),
        click.option("--all", "everybody", is_flag=True, help="Everybody held (with --actor: for that actor)."),
        error_option,
        organization_option,
        signed,
        dry_run_option,
        json_option,
    )
    for option in reversed(options):
        verb = option(verb)
    return verb


@click.command("release")
@_of_one_or_many
def release(
    customer_id: str | None,
    actor: str | None,
    position: int | None,
    everybody: bool,
    error: str | None,
    organization_id: str,
    reason: str,
    operator: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Let held customers go on, after a fix: in order, with everything that arrived meanwhile behind.

    One customer (CUSTOMER --actor A), those with a text in their error, those of an actor, or all. Attempts start anew.
    With RABBITMQ_URL the workers go on within seconds; without it they are advanced here, and exit 1 tells that some
    are held again.

    Example: customer-actors held release --error "KeyError: 'gold'" --reason "tier is back in the settings"
    """
    settings, by = settings_for_command(), action_of("release", operator, reason)
    wanted = Wanted(actor, part_of_error(error), position=position)
    if customer_id is None:
        _require_choice(
            bool(everybody or error or actor) and position is None,
            "name whom to release: CUSTOMER --actor A [--position P], --error TEXT, --actor A or --all",
        )
    elif actor is None or everybody or error is not None:
        raise UsageError("one customer is released with CUSTOMER --actor A [--position P] and nothing else")
    with opened(settings) as database:
        if customer_id is not None:
            number = number_of(database, organization_id, customer_id)
            wanted, by = wanted._replace(customer=number), by._replace(actor=actor, customer=number)
            place = triage.place_of(database, str(actor), number)
            if place.held_position is None or position not in (None, place.held_position):
                raise RefusedError(f"nothing was released: {_where(customer_id, str(actor), place)}")
            by = by._replace(position=place.held_position)
        view = _release(database, settings, wanted, by, dry_run)
    if as_json:
        print_json(view)
    else:
        _print_many(view, "release", "released", view["released"])
    leave(PROBLEMS if view["held_again"] else OK)


def _require_choice(chosen: bool, usage: str) -> None:
    """Raises UsageError unless it is said which of many are meant, and said in a way that counts."""
    if not chosen:
        raise UsageError(usage)
    if click.get_current_context().get_parameter_source("organization_id") is not ParameterSource.DEFAULT:
        raise UsageError("--org names the organization of one CUSTOMER; many are meant whatever their organization")


def _release(database: Database, settings: Settings, wanted: Wanted, by: Action, dry_run: bool) -> dict[str, Any]:
    """Release, and without workers advance here; returns what was done as figures."""
    counts = triage.count_wanted(database, wanted)
    if dry_run:
        return {"dry_run": True, "released": sum(counts.values())} | _NOT_YET
    by = by._replace(detail=_detail(counts, wanted))
    released, went = _go_on(database, settings, triage.release(database, wanted, by, now_us()))
    return {"dry_run": False, "released": released} | went


def _detail(counts: Mapping[str, int], wanted: Wanted) -> str:
    """In words: how many were meant, and by what."""
    text = "" if wanted.error is None else f"; error with {wanted.error!r}"
    return ", ".join(f"{count} of {actor}" for actor, count in counts.items()) + text


_NOT_YET: Final = {"drained": None, "held_again": 0}
"""How far those let go came: the workers see to it, or nothing was done."""


def _go_on(
    database: Database, settings: Settings, let_go: Iterable[tuple[str, list[int]]]
) -> tuple[int, dict[str, Any]]:
    """Let customers go, and where no workers are advance them here. Returns how many, and how far they came."""
    if settings.rabbitmq_url is not None:
        return sum(len(customers) for _, customers in let_go), _NOT_YET
    stores, many, again = Stores(database, settings.rules(), settings.round_events), 0, 0
    for actor, customers in let_go:
        many += len(customers)
        again += len({hold.group for by_actor, hold in drain(stores, actor, customers, now_us) if by_actor == actor})
    if many > again:
        forget_answered(stores, now_us())
    return many, {"drained": many - again, "held_again": again}


def _print_many(view: dict[str, Any], verb: str, done: str, many: int) -> None:
    if view["dry_run"]:
        click.echo(f"would {verb} {many}; nothing was changed")
    elif not many:
        click.echo(f"nothing was {done}: nobody held is meant; see `customer-actors held list --customers`")
    elif view["drained"] is None:
        click.echo(f"{done} {many}; the workers go on within seconds")
    else:
        click.echo(f"{done} {many}: {view['drained']} went on, {view['held_again']} are held again")


@click.command("skip")
@_of_one_or_many
def skip(
    customer_id: str | None,
    actor: str | None,
    position: int | None,
    everybody: bool,
    error: str | None,
    organization_id: str,
    reason: str,
    operator: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Let an actor step over the event it is held at, for good. What the event did for others stays.

    One customer (CUSTOMER --actor A --position P), or the one event each of many is held at: those with a text in their
    error, those of an actor, or all. Every skip is part of its customer's history, with name and reason; a cancellation
    of a skipped sale does nothing. If the actor is not held at that position any more, nothing changes (exit 1). Many
    go on as after a release: with RABBITMQ_URL by the workers, else here, and exit 1 tells that some are held again.

    Example: customer-actors held skip C000042 --actor loyalty --position 17 --reason "a test order"
    """
    settings, by = settings_for_command(), action_of("skip", operator, reason)
    if customer_id is None:
        _require_choice(
            bool(everybody or error or actor) and position is None,
            "name what to skip: CUSTOMER --actor A --position P, --error TEXT, --actor A or --all",
        )
        _skip_many(settings, Wanted(actor, part_of_error(error)), by, dry_run, as_json)
    elif actor is None or position is None or everybody or error is not None:
        raise UsageError("one event is skipped with CUSTOMER --actor A --position P and nothing else")
    else:
        _skip_one(settings, _Head(organization_id, customer_id, actor, position), by, dry_run, as_json)


def _skip_many(settings: Settings, wanted: Wanted, by: Action, dry_run: bool, as_json: bool) -> None:
    with opened(settings) as database:
        counts = triage.count_wanted(database, wanted)
        if dry_run:
            skipped, went = sum(counts.values()), _NOT_YET
        else:
            by = by._replace(detail=f"one of {_detail(counts, wanted)}")
            skipped, went = _go_on(database, settings, triage.skip_wanted(database, wanted, by, now_us()))
    view = {"dry_run": dry_run, "skipped_events": skipped} | went
    if as_json:
        print_json(view)
    else:
        _print_many(view, "skip", "skipped", skipped)
    leave(PROBLEMS if view["held_again"] else OK)


class _Head(NamedTuple):
    """Where an operator saw that a customer is held."""

    organization_id: str
    customer_id: str
    actor: str
    position: int


def _skip_one(settings: Settings, head: _Head, by: Action, dry_run: bool, as_json: bool) -> None:
    with opened(settings) as database:
        number = number_of(database, head.organization_id, head.customer_id)
        if dry_run:
            place = triage.place_of(database, head.actor, number)
            other: triage.Place | None = None if place.held_position == head.position else place
        else:
            other = triage.skip(database, head.actor, number, head.position, by, now_us())
        if other is not None:
            raise RefusedError(f"nothing was skipped: {_where(head.customer_id, head.actor, other)}")
        view = {"dry_run": dry_run, "skipped": head.position}
        view |= _after_skip(database, settings, head.actor, number, dry_run)
    if as_json:
        print_json(view)
    else:
        did, now = ("would skip", "nothing was changed") if dry_run else ("skipped", _went(view))
        click.echo(f"{did} position {head.position} of {printable(head.customer_id)} for {head.actor}; {now}")


def _after_skip(database: Database, settings: Settings, actor: str, number: int, dry_run: bool) -> dict[str, Any]:
    """Advance the customer here, also where workers are: then the answer tells how far it came."""
    if not dry_run:
        stores = Stores(database, settings.rules(), settings.round_events)
        drain(stores, actor, [number], now_us)
        if settings.rabbitmq_url is None:
            forget_answered(stores, now_us())
    return triage.place_of(database, actor, number)._asdict()


def _went(view: dict[str, Any]) -> str:
    if view["held_position"] is not None:
        return f"now held at position {view['held_position']}"
    return f"it stands at position {view['position']} now"


def _where(customer_id: str, actor: str, place: triage.Place) -> str:
    held_at = "not held" if place.held_position is None else f"held at position {place.held_position}"
    return f"{actor} stands at position {place.position} of {printable(customer_id)} and is {held_at}"
