"""The verbs that read: one customer's states, what made them so, and how the whole service is."""

import json
import shlex
import time
from collections.abc import Sequence
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
    organization_option,
    print_json,
    printable,
    settings_for_command,
    value_text,
)
from customer_actors.cli.overview import status
from customer_actors.cli.segment import explain_segment
from customer_actors.domain.credit import usage_status
from customer_actors.domain.credit_book import Usage
from customer_actors.domain.events import Event, business_date, iso
from customer_actors.domain.routing import CREDIT, LOYALTY, SEGMENTATION, STATS
from customer_actors.domain.rules import Rules
from customer_actors.domain.story import Difference, Effect, Story
from customer_actors.domain.telling import FAILED, REFUSED, SKIPPED, WAITS, Figures, amount_text, event_amount
from customer_actors.errors import RefusedError
from customer_actors.storage import views
from customer_actors.storage.database import Database
from customer_actors.storage.refolding import WINDOW
from customer_actors.storage.rules import RulesBook
from customer_actors.storage.scratch import scratch_for
from customer_actors.storage.segment_check import segment_differences
from customer_actors.storage.views import Basis, Stored

MOST_USAGES: Final = 20
_MINUTE_US: Final = 60_000_000
_LABEL_WIDTH: Final = 12
_COLOURS: Final = {REFUSED: "yellow", SKIPPED: "yellow", WAITS: "yellow", FAILED: "red"}
_USAGE_COLOURS: Final = {"overdue": "red", "pending": "yellow"}


@click.command()
@click.argument("customer_id", metavar="CUSTOMER")
@organization_option
@json_option
def show(customer_id: str, organization_id: str, as_json: bool) -> None:
    """The four states of a customer: statistics, points, segment and credit, and what is held.

    Figures are those the actors have come to; POSITION is the end of the customer's stream. With credit the usages are
    listed too, open ones first.

    Example: customer-actors show C000042 --org default
    """
    settings = settings_for_command()
    rules = settings.rules()
    with opened(settings) as database:
        stored = views.stored_customer(database, organization_id, customer_id)
        if stored is None:
            raise _unknown(database, organization_id, customer_id)
        view = views.view_of(stored, rules, organization_id, customer_id)
        if as_json:
            print_json(view)
        else:
            usages, total = views.usages(database, stored.number, MOST_USAGES)
            _print_card(view, usages, total, rules)


def _unknown(database: Database, organization_id: str, customer_id: str) -> RefusedError:
    known = views.organizations_of(database, customer_id)
    if organization_id in known:
        whose = f"{shlex.quote(printable(customer_id))} --org {shlex.quote(printable(organization_id))}"
        return RefusedError(
            f"customer {printable(customer_id)} lacks a state row: `customer-actors audit {whose}` names the actor, "
            f"`customer-actors rebuild ACTOR --customer {whose} --reason TEXT` makes it again"
        )
    text = f"no customer {printable(customer_id)} in organization {printable(organization_id)}"
    if known:
        names = ", ".join(map(printable, known))
        text += f"; that id exists in organization {names}: add --org {shlex.quote(printable(known[0]))}"
    return RefusedError(text)


def _print_card(view: Figures, usages: Sequence[Usage], total: int, rules: Rules) -> None:
    title = f"{printable(view['customer_id'])}  organization {printable(view['organization_id'])}"
    _line(click.style(title, bold=True), f"  position {view['position']}")
    figures = view["stats"]
    channels = ", ".join(f"{count} {channel}" for channel, count in figures["by_channel"].items())
    spent = f"{figures['total_spent']} spent, {figures['average_order_value']} on average"
    _row("statistics", f"{counted(figures['orders'], 'order')} ({channels}), {spent}")
    if figures["orders"]:
        _row("", f"first purchase {figures['first_purchase_at']}, last {figures['last_purchase_at']}")
    if figures["cancelled_orders"]:
        _row("", f"{figures['cancelled_orders']} cancelled")
    _row("loyalty", f"{_points(view['loyalty'])}, {view['loyalty']['lifetime_points']} lifetime points")
    segment = view["segment"]
    scores = segment and f"R {segment['recency']}  F {segment['frequency']}  M {segment['monetary']}"
    _row("segment", f"{segment['code']}  {scores}  calculated {segment['calculated_at']}" if segment else "none")
    _row("credit", "none" if view["credit"] is None else _account(view["credit"]))
    _print_usages(usages, total, rules)
    for held in view["held"]:
        where = f"{held['actor']} at position {held['position']}, attempts: {held['attempts']}"
        _row(held["status"], f"{where}: {held['error']}", colour="red")


def _print_usages(usages: Sequence[Usage], total: int, rules: Rules) -> None:
    today, decimals = business_date(time.time_ns() // 1_000, rules.zone), rules.currency_decimals
    for usage in usages:
        status = usage_status(usage, today)
        outstanding, amount = (amount_text(minor, decimals) for minor in (usage.outstanding_minor, usage.amount_minor))
        flags = ", over the limit" * usage.over_limit + ", without an account" * usage.no_account
        owed = f"{status:<9}  due {usage.due_date}  {outstanding:>10} of {amount:>10}"
        _row("", f"{owed}  {usage.channel} {usage.reference}{flags}", colour=_USAGE_COLOURS.get(status))
    if total > len(usages):
        _row("", f"and {total - len(usages)} more usages")


def _row(label: str, text: str, colour: str | None = None) -> None:
    """One line of the card; the text may hold what came from outside."""
    _line("  ", click.style(f"{label:<{_LABEL_WIDTH}}", fg="cyan"), click.style(printable(text), fg=colour))


def _line(*parts: str) -> None:
    click.echo("".join(parts))


def _points(figures: Figures) -> str:
    debt = f", owes {figures['points_debt']}" if figures["points_debt"] else ""
    return f"{figures['points_balance']} points{debt}, {figures['tier']}"


def _account(figures: Figures) -> str:
    if figures["status"] is None:
        return f"no account, {figures['used']} used, {figures['suspense']} in suspense"
    limits = f"limit {figures['limit']}, {figures['used']} used, {figures['available']} available"
    return f"{figures['status']}, {limits}, {figures['unapplied']} unapplied"


# --- explain -----------------------------------------------------------------------------------------------------


@click.command()
@click.argument("customer_id", metavar="CUSTOMER")
@organization_option
@click.option("--last", type=click.IntRange(min=1), metavar="N", help="Show the last N events only; all are checked.")
@click.option("--segment", "only_segment", is_flag=True, help="The segment alone: why it is what it is.")
@json_option
def explain(customer_id: str, organization_id: str, last: int | None, only_segment: bool, as_json: bool) -> None:
    """Every event of a customer and what each actor made of it: the rule, the effect, the figures after it.

    The stream is folded again from the start, each actor as far as it has come. The last line compares the result with
    what is stored; exit code 1 on any difference.

    With --segment instead: the inputs of the segment, the cuts in force, the scores, and what would change the code.

    Example: customer-actors explain C000042 --last 20
    """
    settings = settings_for_command()
    rules = settings.rules()
    with opened(settings) as database:
        if only_segment:
            if not explain_segment(database, rules, organization_id, customer_id, as_json=as_json):
                raise _unknown(database, organization_id, customer_id)
            return
        basis = views.explain_basis(database, rules, organization_id, customer_id)
        if basis is None:
            raise _unknown(database, organization_id, customer_id)
        printer = (_JsonPrinter if as_json else TextPrinter)(organization_id, customer_id, rules.currency_decimals)
        differences = print_explanation(database, rules, basis, printer, last)
    leave(PROBLEMS if differences else OK)


def print_explanation(
    database: Database, rules: Rules, basis: Basis, printer: "TextPrinter | _JsonPrinter", last: int | None
) -> list[Difference]:
    stored = basis.stored
    number, head = stored.number, stored.head
    scratch = scratch_for(head, WINDOW)
    undone = views.undone_sales(database, number, head, scratch)
    story = Story(RulesBook(database), stored.standings, undone, rules.currency_decimals, basis.skips, scratch)
    first_shown = 1 if last is None else max(1, head - last + 1)
    printer.begin(head, first_shown)
    with database.reading():
        for event in views.events(database, number, head):
            effects = story.take(event)
            if event.position >= first_shown:
                printer.event(event, effects)
    differences = story.differences(basis.figures) + _segment_differences(database, rules, basis)
    printer.end(stored, story, differences)
    return differences


def _segment_differences(database: Database, rules: Rules, basis: Basis) -> list[Difference]:
    skipped = (SEGMENTATION, basis.stored.standings[SEGMENTATION].position) in basis.skips
    return segment_differences(database, rules, basis.stored, skipped=skipped)


class TextPrinter:
    def __init__(self, organization_id: str, customer_id: str, decimals: int) -> None:
        self._title = f"{printable(customer_id)}  organization {printable(organization_id)}"
        self._decimals = decimals

    def begin(self, head: int, first_shown: int) -> None:
        _line(click.style(self._title, bold=True), f"  {counted(head, 'event')}")
        if first_shown > 1:
            click.echo(f"positions 1 to {first_shown - 1} are folded, not shown")

    def event(self, event: Event, effects: Sequence[Effect]) -> None:
        click.echo("\n".join([self._event(event), *map(_effect_line, effects)]))

    def _event(self, event: Event) -> str:
        occurred = iso(event.occurred_at_us)
        amount = event_amount(event, self._decimals)
        figure = "" if amount is None else f"  {amount} points" if isinstance(amount, int) else f"  {amount}"
        text = f"{event.position:>6}  {occurred}  {event.type}  {event.reference}{figure}"
        if abs(event.received_at_us - event.occurred_at_us) > _MINUTE_US:
            text += f"  (received {iso(event.received_at_us)})"
        claimed = _claimed_time(event)
        return click.style(printable(text if claimed is None else f"{text}  (clamped, sent as {claimed})"), bold=True)

    def end(self, stored: Stored, story: Story, differences: Sequence[Difference]) -> None:
        _line(_segment_line(stored))
        if not differences:
            reached = ", ".join(f"{actor} up to position {one.position}" for actor, one in story.waiting.items())
            equal = f", stored state equals the refold of {counted(story.events, 'event')}"
            _line(click.style("check: ok", fg="green"), equal, f" ({reached})" if reached else "")
            return
        _line(click.style(f"check: {counted(len(differences), 'difference')}", fg="red"))
        for actor, field, has, wanted in differences:
            click.echo(printable(f"  {actor} {field}: stored {value_text(has)}, expected {value_text(wanted)}"))


def _effect_line(effect: Effect) -> str:
    told = effect.told
    after = f" -> {_BALANCES[effect.actor](effect.balance)}" if effect.balance else ""
    line = f"{'':8}{effect.actor:<7}  {told.rule or told.outcome:<8}  {printable(told.effect + after)}"
    return click.style(line, fg=_COLOURS.get(told.outcome))


def _stats_after(figures: Figures) -> str:
    cancelled = f", {figures['cancelled_orders']} cancelled" if figures["cancelled_orders"] else ""
    return f"{counted(figures['orders'], 'order')}, {figures['total_spent']} spent{cancelled}"


_BALANCES: Final = {STATS: _stats_after, LOYALTY: _points, CREDIT: _account}


def _segment_line(stored: Stored) -> str:
    """The segment, which no single event decides."""
    row, standings = stored.segment, stored.standings
    text = "not calculated" if stored.stats.orders else "no active sale, no segment"
    if row.code is not None:
        scores = f"R {row.recency}, F {row.frequency}, M {row.monetary} -> {row.code}"
        cuts = "the fixed cuts" if row.cuts is None else f"cuts {row.cuts}"
        text = f"{scores}, by {cuts}, {counted(row.orders, 'order')}, last purchase {row.last_purchase_date}"
    if standings[SEGMENTATION].position < standings[STATS].position:
        text += f"; waits at position {standings[SEGMENTATION].position}"
    return f"{'':8}{SEGMENTATION}  R6  {printable(text)}"


def _claimed_time(event: Event) -> str | None:
    """The time a publisher sent, where it was ahead and therefore clamped [A7]."""
    detail = json.loads(event.detail) if event.detail else {}
    claimed: str | None = detail.get("occurred_at")
    return claimed


class _JsonPrinter:
    """One JSON document, written event by event: a long stream is never in memory as a whole."""

    def __init__(self, organization_id: str, customer_id: str, decimals: int) -> None:
        self._names = {"organization_id": organization_id, "customer_id": customer_id}
        self._decimals = decimals
        self._separator = ""

    def begin(self, head: int, first_shown: int) -> None:
        click.echo(f'{json_text(self._names)[:-1]}, "events": [', nl=False)

    def event(self, event: Event, effects: Sequence[Effect]) -> None:
        click.echo(f"{self._separator}\n{json_text(self._figures(event, effects))}", nl=False)
        self._separator = ","

    def _figures(self, event: Event, effects: Sequence[Effect]) -> Figures:
        claimed = _claimed_time(event)
        told = [{"actor": one.actor, **one.told._asdict(), "balance": one.balance or None} for one in effects]
        return {
            "position": event.position,
            "type": event.type,
            "reference": event.reference,
            "amount": event_amount(event, self._decimals),
            "occurred_at": iso(event.occurred_at_us),
            **({} if claimed is None else {"sent_as": claimed}),
            "received_at": iso(event.received_at_us),
            "rules": event.rules,
            "effects": told,
        }

    def end(self, stored: Stored, story: Story, differences: Sequence[Difference]) -> None:
        check = {"ok": not differences, "differences": [difference._asdict() for difference in differences]}
        click.echo(f'\n], "check": {json_text(check)}}}')


VERBS = (show, explain, status)
