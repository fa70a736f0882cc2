"""A message whose data the database itself refuses is found in its batch and kept alone; the others are accepted."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from customer_actors.domain.envelope import DecodePolicy, Received
from customer_actors.domain.events import Outcome
from customer_actors.errors import Outage
from customer_actors.ingest.again import admit_again
from customer_actors.ingest.intake import Intake, Policies
from customer_actors.storage.append import AppendPolicy
from customer_actors.storage.bells import Bell
from customer_actors.storage.database import Database
from customer_actors.storage.operators import Action
from customer_actors.storage.postgresql import PostgresDatabase
from customer_actors.storage.quarantine import Filter
from customer_actors.storage.rules import number_of
from tests.cli.running import order
from tests.model.examples import DAY_US
from tests.servers import PrivatePostgres
from tests.storage.support import NOW_US, RULES, Storage, at_once, dump
from tests.storage.test_outage import end_connections

BATCH = 7
ARRIVED_US = NOW_US + 366 * DAY_US
"""After the time the lines say they are of."""


@contextmanager
def refusing(database: Database, *references: str) -> Iterator[None]:
    """The database refuses events with these references, as a constraint that admission does not know of would."""
    names = ", ".join(f"'{reference}'" for reference in references)
    if isinstance(database, PostgresDatabase):
        make = f"ALTER TABLE event ADD CONSTRAINT refused CHECK (reference NOT IN ({names})) NOT VALID"
        end = "ALTER TABLE event DROP CONSTRAINT refused"
    else:
        make = (
            f"CREATE TRIGGER refused BEFORE INSERT ON event WHEN NEW.reference IN ({names}) "
            "BEGIN SELECT RAISE(ABORT, 'refused'); END"
        )
        end = "DROP TRIGGER refused"
    database.execute(make)
    try:
        yield
    finally:
        database.execute(end)


def policies(storage: Storage) -> Policies:
    number = number_of(storage.database, RULES, ARRIVED_US)
    return Policies(DecodePolicy(2, "reject"), AppendPolicy(number, RULES.tiers[0].name, None))


def intake(storage: Storage, bells: list[Bell]) -> Intake:
    return Intake(storage.database, policies(storage), bells.append, lambda: ARRIVED_US)


def received(*numbers: int) -> list[Received]:
    return [Received(order(f"O-{n}", f"C{n % 2}").encode(), "order.completed", ARRIVED_US) for n in numbers]


def kept(storage: Storage) -> list[tuple[Any, ...]]:
    rows = storage.database.query("SELECT code, body, seen, resolved_us IS NULL FROM quarantine ORDER BY id")
    return [(code, bytes(body), seen, bool(waits)) for code, body, seen, waits in rows]


def accepted(storage: Storage) -> set[str]:
    return {row[0] for row in storage.database.query("SELECT reference FROM event")}


@pytest.mark.parametrize("refused", [(0,), (3,), (6,), (0, 6), (2, 3, 4), tuple(range(BATCH))], ids=str)
def test_the_one_message_is_quarantined_and_all_others_are_accepted(storage: Storage, refused: Sequence[int]) -> None:
    bells: list[Bell] = []
    with refusing(storage.database, *(f"O-{n}" for n in refused)):
        decisions = intake(storage, bells).take(received(*range(BATCH)))
    wanted = [Outcome.QUARANTINED if n in refused else Outcome.ACCEPTED for n in range(BATCH)]
    assert [decision.outcome for decision in decisions] == wanted
    assert accepted(storage) == {f"O-{n}" for n in range(BATCH) if n not in refused}
    assert sorted(kept(storage)) == sorted(("database_refused", received(n)[0].body, 1, True) for n in refused)
    for customer_id in {f"C{n % 2}" for n in range(BATCH) if n not in refused}:
        events = storage.events(customer_id, "default")
        assert [event.position for event in events] == [*range(1, len(events) + 1)]
        assert [event.reference for event in events] == sorted(event.reference for event in events)
    numbers = {row[0] for row in storage.database.query("SELECT DISTINCT customer FROM event")}
    assert len(bells) == 1  # for the whole batch
    assert {number for customers in bells[0].values() for number in customers} == numbers


def test_the_refused_one_leaves_no_trace_and_delivered_again_is_counted(storage: Storage) -> None:
    with refusing(storage.database, "O-1"):
        for _ in range(2):
            intake(storage, []).take(received(0, 1))
    assert kept(storage) == [("database_refused", received(1)[0].body, 2, True)]
    assert storage.customers() == [("default", "C0")]
    assert storage.value("SELECT count(*) FROM sale") == 1


def test_tried_again_while_refused_it_stays_and_the_others_go_on(storage: Storage) -> None:
    with refusing(storage.database, *(f"O-{n}" for n in range(4))):
        intake(storage, []).take(received(*range(4)))
    before = dump(storage.database)
    with refusing(storage.database, "O-2"):
        done = again(storage, dry_run=True)
        assert dump(storage.database) == before
        assert again(storage).outcomes == done.outcomes == {Outcome.ACCEPTED: 3, Outcome.QUARANTINED: 1}
    assert [(code, waits) for code, _, _, waits in kept(storage)].count(("database_refused", True)) == 1
    assert accepted(storage) == {"O-0", "O-1", "O-3"}
    assert again(storage).outcomes == {Outcome.ACCEPTED: 1}
    storage.settle()
    assert storage.value("SELECT sum(sales_order) FROM stats_state") == 4


def again(storage: Storage, *, dry_run: bool = False) -> Any:
    by = Action("op", "quarantine retry", "fixed")
    wanted = Filter(code="database_refused")
    return admit_again(
        storage.database,
        wanted,
        lambda: policies(storage),
        by,
        clock=lambda: ARRIVED_US,
        ring=lambda _: None,
        dry_run=dry_run,
    )


def test_an_outage_is_no_fault_of_the_message(postgres_storage: Storage, postgres: PrivatePostgres) -> None:
    storage = postgres_storage
    taking = intake(storage, [])
    storage.database.query("SELECT 1")
    end_connections(postgres)
    with pytest.raises(Outage):
        taking.take(received(0, 1))
    assert taking.take(received(0, 1))[0].outcome is Outcome.ACCEPTED
    assert kept(storage) == []


def test_retries_at_once_and_the_publisher_again_admit_everything_once(storage: Storage) -> None:
    numbers = range(40)
    with refusing(storage.database, *(f"O-{n}" for n in numbers)):
        intake(storage, []).take(received(*numbers))

    def deliver() -> None:
        intake(storage, []).take(received(*reversed(numbers)))

    assert at_once(storage.database, lambda: again(storage), deliver, lambda: again(storage)) == []
    assert len(accepted(storage)) == storage.value("SELECT count(*) FROM event") == len(numbers)
    assert storage.value("SELECT count(*) FROM quarantine WHERE resolved_us IS NULL") == 0
    assert storage.value("SELECT sum(seen) FROM quarantine") == len(numbers)  # a retry is no arrival
