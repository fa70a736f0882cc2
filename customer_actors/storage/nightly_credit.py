"""The night of the credit accounts: cached figures against the rows beneath them, then ageing [C6, C7, C8].

A chunk looks without any lock, each look being one statement and so one moment: on a healthy database that is all.
Only customers that differ are locked, in number order, and looked at again under the lock, so that an event that
arrives meanwhile is never taken for a drift. What is found is reported in the transaction that repairs it. Ageing comes
after the repairs: suspensions and liftings are appended as events and folded like any other, without a lock held.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Final, TypeVar

import structlog

from customer_actors.domain.credit import settle_idle, suspension_cutoff
from customer_actors.domain.credit_book import Account, Ledger, Result
from customer_actors.domain.events import EventType, Message, iso
from customer_actors.domain.routing import CREDIT
from customer_actors.storage.actors import Stores
from customer_actors.storage.append import AppendPolicy, Incoming, append
from customer_actors.storage.credit import ALLOCATION, PAYMENT_CHANGES, STATE, take_reached
from customer_actors.storage.database import Row, columns
from customer_actors.storage.draining import drain
from customer_actors.storage.drift import JOB, SUSPEND, reconciliation_of, report_ageing, report_drift
from customer_actors.storage.job_runs import Chunk, Done, Run, later_began, require_begun
from customer_actors.storage.reconcile import Aged, Checked, aged, check, chunks, examined, suspects
from customer_actors.storage.rules import number_of

log = structlog.get_logger(__name__)

CHUNK_CUSTOMERS: Final = 10_000
BATCH: Final = 200
"""Customers locked, or events appended, in one transaction: nobody waits long for these."""
NIGHTLY: Final = "nightly"
"""Who suspends and lifts automatically."""

_SUMS = columns("credit_state", "customer bigint", "used_minor bigint, unapplied_minor bigint, suspense_minor bigint")
_OUTSTANDING = columns("credit_usage", "customer bigint, position bigint", "outstanding_minor bigint")
_PAIR = columns("credit_allocation", "customer bigint, usage_position bigint, payment_position bigint")
_LOWEST = (
    "SELECT customer, usage_position, payment_position, min(position) FROM credit_allocation "
    "WHERE customer = {customer} AND usage_position = {usage_position} AND payment_position = {payment_position} "
    "GROUP BY customer, usage_position, payment_position"
)


class NightlyCredit:
    """The job `credit` [C8]."""

    name = JOB

    def __init__(self, stores: Stores, chunk_customers: int = CHUNK_CUSTOMERS) -> None:
        self.stores = stores
        self.database = stores.database
        self._chunk_customers = chunk_customers

    def plan(self, run: Run, now_us: int) -> Sequence[Chunk]:
        """The credit customers of every organization, in chunks.

        Raises:
            UsageError: the date lies ahead: accounts would be suspended early.
        """
        require_begun(run, now_us, self.stores.current_rules.zone)
        return chunks(self.database, self._chunk_customers)

    def work(self, run: Run, chunk: Chunk, now_us: int, done: Done) -> None:
        """Reconcile one chunk, then suspend and lift.

        After a kill in between, what was repaired is right and reported, who was suspended is, and the rest is done;
        only the count of changed rows is then that of the second attempt.
        """
        count, changed = examined(self.database, chunk), 0
        found = suspects(self.database, chunk)
        for batch in _batches(found):
            changed += self._reconcile(run, chunk, batch, now_us)
        changed += self._age(run, chunk, now_us)
        with self.database.transaction():
            done(count, changed)

    def finish(self, run: Run, now_us: int) -> None:
        """Say what came of it."""
        result = reconciliation_of(self.database, run.slot)
        if result is not None:
            figures = result._asdict()
            log.info("credit reconciled", slot=run.slot, **{name: figures[name] for name in _TOLD})

    # --- figures -------------------------------------------------------------------------------------------------

    def _reconcile(self, run: Run, chunk: Chunk, customers: Sequence[int], now_us: int) -> int:
        """Look again under the lock, report, repair, settle; returns how many rows changed."""
        with self.database.transaction():
            keys = [(customer,) for customer in customers]
            rows = self.database.lock(STATE, keys, "t.customer")
            checked = check(self.database, customers, repaired=not run.dry_run)
            report_drift(self.database, run, chunk.organization_id, checked.drift, now_us)
            changed = 0 if run.dry_run else self._repair(rows, checked)
        if not run.dry_run:
            drain(self.stores, CREDIT, customers, lambda: now_us)  # whoever met our locks left them to us
        return changed

    def _repair(self, rows: Iterable[Row], checked: Checked) -> int:
        self.database.update(_OUTSTANDING, checked.usages)
        self.database.update(PAYMENT_CHANGES, checked.payments)
        self.database.update(_SUMS, [(customer, *checked.sums[customer]) for customer in checked.wrong])
        accounts = {row[0]: Account(*row[2:]) for row in rows if row[0] in checked.unsettled}
        settled = self._settle(
            {
                customer: account._replace(
                    used_minor=checked.sums[customer].used,
                    unapplied_minor=checked.sums[customer].unapplied,
                    suspense_minor=0,
                )
                for customer, account in accounts.items()
            }
        )
        return len(checked.usages) + len(checked.payments) + len(checked.wrong) + settled

    def _settle(self, accounts: dict[int, Account]) -> int:
        """Let money that lies idle beside open usages pay them [C2]; returns how many rows changed."""
        ledgers = {customer: Ledger() for customer in accounts}
        money = {customer: account.unapplied_minor for customer, account in accounts.items()}
        use = {customer: account.used_minor for customer, account in accounts.items()}
        take_reached(self.database, ledgers, money, use)
        results = {customer: settle_idle(account, 0, ledgers[customer]) for customer, account in accounts.items()}
        usages = [(c, u.position, u.outstanding_minor) for c, result in results.items() for u in result.usages]
        payments = [(c, p.position, p.unapplied_minor) for c, result in results.items() for p in result.payments]
        sums = [(c, a.used_minor, a.unapplied_minor, a.suspense_minor) for c, (a, *_) in results.items()]
        moves = self._moves(results)
        self.database.update(_OUTSTANDING, usages)
        self.database.update(PAYMENT_CHANGES, payments)
        self.database.insert(ALLOCATION, moves)
        self.database.update(_SUMS, sums)
        return len(usages) + len(payments) + len(moves) + len(sums)

    def _moves(self, results: dict[int, Result]) -> list[Row]:
        """Allocations by no event: they stand at position 0, or before, where such a one is already."""
        moves = {
            (customer, move.usage_position, move.payment_position): move.amount_minor
            for customer, result in results.items()
            for move in result.allocations
        }
        lowest = {row[:3]: row[3] for row in self.database.for_each(_PAIR, _LOWEST, sorted(moves))}
        return [(*pair, min(0, lowest.get(pair, 1) - 1), amount) for pair, amount in sorted(moves.items())]

    # --- ageing --------------------------------------------------------------------------------------------------

    def _age(self, run: Run, chunk: Chunk, now_us: int) -> int:
        """Suspend and lift by events [C7]; returns how many were appended.

        Nothing is done about a customer with events that wait behind others' locks: the next night looks again. Nor
        about anybody by a run that comes too late, as it would lift whom a later date's has suspended.
        """
        if later_began(self.database, run):
            return 0
        look = partial(aged, self.database, chunk, suspension_cutoff(run.as_of, self.stores.current_rules))
        found = look()
        behind = [one.customer for one in found if not one.at_head]
        if behind:
            drain(self.stores, CREDIT, behind, lambda: now_us)
            found = look()
        found = [one for one in found if one.at_head]
        for batch in _batches(found):
            with self.database.transaction():
                report_ageing(self.database, run, chunk.organization_id, [one.ageing for one in batch])
            if not run.dry_run:
                self._append(run, chunk, batch, now_us)
                drain(self.stores, CREDIT, [one.customer for one in batch], lambda: now_us)
        return 0 if run.dry_run else len(found)

    def _append(self, run: Run, chunk: Chunk, batch: Sequence[Aged], now_us: int) -> None:
        rules = self.stores.current_rules
        policy = AppendPolicy(number_of(self.database, rules, now_us), rules.tiers[0].name)
        messages = [_message(run, chunk.organization_id, one, now_us) for one in batch]
        append(self.database, [Incoming(None, message) for message in messages], policy, now_us)


_TOLD: Final = ("drift", "unrepaired", "suspended", "lifted", "dry_run")


def _message(run: Run, organization_id: str, one: Aged, now_us: int) -> Message:
    type_ = EventType.CREDIT_SUSPENDED if one.ageing.action == SUSPEND else EventType.CREDIT_LIFTED
    detail = {"automatic": True, "as_of": run.as_of.isoformat(), "by": NIGHTLY}
    body = {"event": type_, "timestamp": iso(now_us), "data": {"customer_id": one.customer_id, **detail}}
    return Message(
        type=type_,
        organization_id=organization_id,
        customer_id=one.customer_id,
        reference="",
        amount_minor=0,
        currency=None,
        occurred_at_us=now_us,
        received_at_us=now_us,
        payload=json.dumps(body),
        detail=json.dumps(detail),
    )


T = TypeVar("T")


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]
