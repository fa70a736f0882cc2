"""`demo`: one command to a first result, on a database of its own."""

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Final

import click

from customer_actors.cli import reading
from customer_actors.cli.common import leave
from customer_actors.cli.progress import shown
from customer_actors.cli.summary import print_line, print_outcomes, print_quarantined, print_table
from customer_actors.commands import Service, open_credit, redeem_points
from customer_actors.domain.envelope import DEFAULT_ORGANIZATION, Received
from customer_actors.domain.rules import Rules
from customer_actors.domain.segmentation import HEALTH
from customer_actors.domain.telling import amount_text
from customer_actors.embedded import Embedded, Watch, embedded
from customer_actors.errors import UsageError
from customer_actors.process import stopping_on_signals
from customer_actors.settings import load_settings
from customer_actors.simulate import ShopPlan, simulate
from customer_actors.storage.database import Database
from customer_actors.storage.summary import credit_totals, segment_counts, tier_totals
from customer_actors.storage.views import explain_basis
from customer_actors.telemetry import configure_logging

FILE: Final = "customer_actors_demo.db"
PLAN: Final = ShopPlan(customers=600, events=6_000, seed=7, malformed=0.008)
ACCOUNTS: Final = 12
LIMIT_MINOR: Final = 500_00
TERMS_DAYS: Final = 30


@click.command()
def demo() -> None:
    """Show what this service does, in seconds and without any preparation.

    A simulated shop of some 6,000 events runs through everything, in this process: duplicates, cancellations before and
    after the order, anonymous and late sales, malformed lines, payments, credit accounts, redemptions. Then the results
    are shown, and one customer is explained event by event.

    The database is the file customer_actors_demo.db here, made anew each time. DATABASE_URL, RABBITMQ_URL and all other
    settings are ignored.

    Example: customer-actors demo
    """
    print_line(f"A simulated shop on {FILE}, a database of its own.")
    settings = load_settings({"DATABASE_URL": f"sqlite:///{_fresh_file()}"})
    configure_logging("WARNING")
    with stopping_on_signals() as stop, embedded(settings, stop, nights=False) as service:
        started = time.monotonic()
        with shown(service) as watch:
            act = _Act(service)
            act.play(watch)
        if not stop.asked:
            _show(act, time.monotonic() - started)
    leave(stop.exit_code)


def _fresh_file() -> str:
    if not os.access(".", os.W_OK):
        raise UsageError(f"{FILE} cannot be made here; run the demo in a folder you may write to")
    try:
        for name in (FILE, f"{FILE}-wal", f"{FILE}-shm"):
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{FILE} cannot be replaced ({error.strerror}); remove it or use another folder") from None
    return FILE


class _Act:
    """The shop's year; half-way through, accounts are opened, and in the end points are redeemed."""

    def __init__(self, service: Embedded) -> None:
        self.service = service
        self.asked: Counter[tuple[str, str]] = Counter()
        """Commands by (verb, outcome)."""
        self.customer_id = ""
        """The one to explain."""
        self._asking = Service(service.intake, service.stores, service.pipeline.clock)

    def play(self, watch: Watch) -> None:
        service = self.service
        lines = simulate(PLAN._replace(end_at=datetime.now(UTC)))
        service.feed_messages(self._received(islice(lines, PLAN.events // 2)), watch)
        service.drain(watch)
        holders = [customer_id for (customer_id,) in service.database.query(_BUYS_ON_CREDIT)]
        for customer_id in holders:
            result = open_credit(self._asking, DEFAULT_ORGANIZATION, customer_id, LIMIT_MINOR, TERMS_DAYS)
            self.asked["credit open", result.outcome] += 1
        service.feed_messages(self._received(lines), watch)
        service.drain(watch)
        for (self.customer_id,) in service.database.query(_WORTH_READING):
            self._redeem_points([self.customer_id, *(holder for holder in holders if holder != self.customer_id)][:3])
        service.drain(watch)  # the bells of the commands are answered too

    def _received(self, lines: Iterable[str]) -> Iterator[Received]:
        return (Received(line.encode(), None, self.service.pipeline.clock()) for line in lines)

    def _redeem_points(self, customer_ids: Iterable[str]) -> None:
        for number, customer_id in enumerate(customer_ids, start=1):
            voucher = f"VOUCHER-{number}"
            # Asked, asked again by mistake, asked beyond the balance.
            for points, reference in ((100, voucher), (100, voucher), (1_000_000, f"{voucher}-ALL")):
                result = redeem_points(self._asking, DEFAULT_ORGANIZATION, customer_id, points, reference)
                self.asked["loyalty redeem", result.outcome] += 1


_HAS: Final = "EXISTS (SELECT 1 FROM event e WHERE e.customer = c.id AND e.type = '{type}')"
_CANCELLED: Final = _HAS.format(type="order.cancelled")
"""Not the count of cancelled orders: an order cancelled before it arrives [A4] has no event of its cancellation."""
_ORDERED: Final = _HAS.format(type="order.completed")
"""Who bought at the till [A5] may cancel without it."""
_BUYS_ON_CREDIT: Final = (
    "SELECT c.customer_id FROM customer c JOIN credit_state a ON a.customer = c.id "
    f"WHERE a.used_minor > 0 AND c.head <= 12 ORDER BY {_CANCELLED} DESC, a.used_minor DESC, c.customer_id "
    f"LIMIT {ACCOUNTS}"
)
"""Customers who bought on credit without an account, few times enough to be read about; who cancelled comes first."""
_WORTH_READING: Final = (
    "SELECT c.customer_id FROM customer c JOIN loyalty_state l ON l.customer = c.id "
    "JOIN credit_state a ON a.customer = c.id WHERE a.status IS NOT NULL "
    f"ORDER BY {_CANCELLED} AND {_ORDERED} DESC, c.head BETWEEN 6 AND 16 DESC, l.points >= 100 DESC, "
    "EXISTS (SELECT 1 FROM credit_payment p WHERE p.customer = c.id) DESC, c.head, c.customer_id LIMIT 1"
)
"""The account holder to explain: a cancelled order, not too many events, points to redeem, a payment."""


def _show(act: _Act, seconds: float) -> None:
    service, outcomes = act.service, act.service.intake.outcomes
    print_line(f"{outcomes.total():,} lines in {seconds:.1f} s, every customer up to date.")
    print_outcomes(outcomes)
    codes = sorted(service.quarantined.items(), key=lambda each: -each[1])
    print_quarantined([(code, count, service.reasons[code]) for code, count in codes])
    print_table("Commands", ("command", "outcome", "times"), [(*key, count) for key, count in act.asked.items()])
    counts = segment_counts(service.database)
    print_table("Segments", ("segment", "customers", "health"), [(c, counts.get(c, 0), h) for c, h in HEALTH.items()])
    tiers, rules = tier_totals(service.database), service.stores.current_rules
    rows = [(tier.name, *tiers[tier.name]) for tier in rules.tiers if tier.name in tiers]
    print_table("Tiers", ("tier", "customers", "points balance", "points debt"), rows)
    _show_credit(service.database, rules.currency_decimals)
    print_line()
    _explain(service.database, rules, act.customer_id)
    _show_next(act.customer_id)


def _show_credit(database: Database, decimals: int) -> None:
    totals = credit_totals(database)
    amounts = (
        ("limits of all accounts", totals.limit_minor),
        ("used of them", totals.used_minor),
        ("paid but not used yet", totals.unapplied_minor),
        ("sold on credit without an account", totals.used_without_account_minor),
        ("paid, waiting for an account", totals.suspense_minor),
    )
    rows = [(what, amount_text(minor, decimals)) for what, minor in amounts]
    print_table(f"Credit ({totals.accounts} accounts)", ("amount of", "total"), rows)


def _explain(database: Database, rules: Rules, customer_id: str) -> None:
    basis = explain_basis(database, rules, DEFAULT_ORGANIZATION, customer_id)
    assert basis is not None
    printer = reading.TextPrinter(DEFAULT_ORGANIZATION, customer_id, rules.currency_decimals)
    reading.print_explanation(database, rules, basis, printer, None)


def _show_next(customer_id: str) -> None:
    print_line()
    print_line("What to type next:")
    if os.environ.get("RABBITMQ_URL") or Path(".env").exists():
        print_line("  export RABBITMQ_URL=")  # with a broker set, an SQLite file is refused
    print_line(f"  export DATABASE_URL=sqlite:///{FILE}")
    for verb in (f"show {customer_id}", f"explain {customer_id}", "status"):
        print_line(f"  customer-actors {verb}")
