"""`explain --segment`: why a customer has its segment, and what would change it."""

import time
from typing import Final

import click

from customer_actors.cli.common import (
    counted,
    print_json,
    printable,
)
from customer_actors.domain.rules import Rules
from customer_actors.domain.telling import Figures
from customer_actors.storage.database import Database
from customer_actors.storage.segment_view import segment_explanation

_WIDTH: Final = 12
_DIMENSIONS: Final = ("recency", "frequency", "monetary")


def explain_segment(database: Database, rules: Rules, organization_id: str, customer_id: str, *, as_json: bool) -> bool:
    """Print it; False for a customer nobody has heard of."""
    figures = segment_explanation(database, rules, organization_id, customer_id, time.time_ns() // 1_000)
    if figures is None:
        return False
    if as_json:
        print_json(figures)
    else:
        _print(figures)
    return True


def _print(figures: Figures) -> None:
    title = f"{printable(figures['customer_id'])}  organization {printable(figures['organization_id'])}"
    click.echo(click.style(title, bold=True) + f"  segment as of {figures['as_of']}")
    if figures["note"]:
        _row("note", figures["note"], "yellow")
    inputs = figures["inputs"]
    if inputs is not None:
        days = "today" if inputs["days"] == 0 else f"{counted(inputs['days'], 'day')} ago"
        spent = f"{counted(inputs['orders'], 'order')}, {inputs['total_spent']} spent"
        _row("inputs", f"last purchase {inputs['last_purchase_date']} ({days}), {spent}  [R1]")
    _row("cuts", _cuts_text(figures["cuts"]))
    for name in _DIMENSIONS:
        _row(name, _dimension_text(figures, name))
    if figures["code"] is None:
        return
    _row("segment", f"{figures['code']}, health {figures['health']} of 5  [R4]", bold=True)
    stored = figures["segment"]
    if stored and stored["code"] != figures["code"]:
        _row("", f"stored as {stored['code']}, calculated {stored['calculated_at']}: the next night corrects it  [R7]")
    for move in figures["moves"]:
        _row("moves up", f"{_move_text(move)} -> {_result(move)}")
    if figures["decay"] is None:
        _row("decays", "never: no number of days without a sale changes the code")
    else:
        falls = figures["decay"]
        wait = f"in {counted(falls['size'], 'day')} without a sale, on {falls['on']}"
        _row("decays", f"{wait} -> {_result(falls)}")


def _cuts_text(cuts: Figures) -> str:
    if cuts["number"] is None:
        return "the fixed cuts, for no night has taken a snapshot yet  [R3]"
    text = f"snapshot {cuts['number']} of {cuts['as_of']}  [R2]"
    fixed = ", ".join(cuts["fixed"])
    return f"{text}; fixed for {fixed}  [R3]" if fixed else text


def _dimension_text(figures: Figures, name: str) -> str:
    """The score with the interval the value lies in, and the cuts of the dimension."""
    cuts = ", ".join(str(cut) for cut in figures["cuts"][name])
    if figures["scores"] is None:
        return f"cuts {cuts}"
    score = figures["scores"][name]
    to = "or more" if score["to"] is None else f"to {score['to']}"
    return f"{score['score']}  for {score['from']} {to} {_UNITS[name]} (cuts {cuts})"


_UNITS: Final = {"recency": "days", "frequency": "orders", "monetary": "spent"}


def _move_text(move: Figures) -> str:
    if move["kind"] == "sale":
        return "a sale today, of any amount"
    if move["kind"] == "sales":
        return f"{counted(move['size'], 'more sale')}, the last one today"
    if move["kind"] == "both":
        return f"{counted(move['size'], 'more sale')} of {move['amount']} in all, the last one today"
    return f"a sale of {move['size']} today"


def _result(move: Figures) -> str:
    return f"R {move['recency']}, F {move['frequency']}, M {move['monetary']}: {move['code']}, health {move['health']}"


def _row(label: str, text: str, colour: str | None = None, *, bold: bool = False) -> None:
    click.echo(f"  {click.style(f'{label:<{_WIDTH}}', fg='cyan')}{click.style(printable(text), fg=colour, bold=bold)}")
