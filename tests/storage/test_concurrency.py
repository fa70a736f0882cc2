"""Several operating system processes on one PostgreSQL: nobody loses, doubles, deadlocks or strands anything."""

import multiprocessing
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from multiprocessing.context import SpawnProcess
from multiprocessing.queues import JoinableQueue
from multiprocessing.synchronize import Barrier
from random import Random
from threading import Thread

from customer_actors.actors.dispatcher import plan
from customer_actors.domain.events import SALE_TYPES, Event, EventType, Message, Outcome
from customer_actors.domain.routing import ACTORS, AFTER
from customer_actors.errors import CustomerActorsError
from customer_actors.storage.opening import open_database
from customer_actors.storage.overdue import all_behind
from tests.model.examples import cancellation, opened, order, payment, pos, redemption
from tests.model.reference import state_of_stream
from tests.storage.support import RULES, TODAY, Storage, stored_state

PROCESSES = 4
ORDERS = 400
"""Per racing history; every second one has a till twin, and a third is cancelled."""
TOGETHER = 25
"""Orders of the same ten customers."""
WINDOW, SHARE, BATCH = 300, 0.8, 60
"""All processes work on one window of the history at a time, each on a shuffled share of its own, in batches."""
QUIET_CUSTOMERS = 1_000
"""Each gets its last bell at some moment under load; nobody looks at it again."""
BLOCK, BURSTS = 5, 4
"""Customers per bell, and bells per customer."""
KEYS = 250
CROWDS, CROWD = 12, 200
"""Times that all processes make the same new customers, and how many these are."""

spawn = multiprocessing.get_context("spawn")


_at_once: list[Barrier] = []
"""Of this process; a barrier can only be handed over when a process starts."""


def meet_at(barrier: Barrier) -> None:
    _at_once.append(barrier)


# --- appending ----------------------------------------------------------------------------------------------------


def racing_history() -> list[Message]:
    """No two messages contradict each other, so that which of them comes first must not matter to any sale."""
    drawn = Random(1)
    history: list[Message] = []
    for number in range(ORDERS):
        if number % TOGETHER == 0:  # new customers all along, so that making them is raced for as well
            crowd = [f"c{number}-{n}" for n in range(10)]
            history += [opened("100000")._replace(customer_id=customer_id) for customer_id in crowd]
        name, customer_id, amount = str(number), drawn.choice(crowd), str(drawn.randint(1, 300))
        twin = f"t{number}" if number % 2 else None
        history.append(order(name, amount, customer_id=customer_id, twin=twin, on_credit=number % 5 == 0))
        if twin is not None:
            history.append(pos(twin, amount, customer_id=customer_id if number % 4 == 1 else None))
        if number % 3 == 0:
            history.append(cancellation(name))
        history.append(payment(name, amount, customer_id=customer_id))
        history.append(redemption(name, 1, customer_id=customer_id))
    return history


def append_share(url: str, seed: int) -> tuple[list[tuple[int, Outcome]], list[str]]:
    """(index of the message, outcome) of a share of the racing history, and every error."""
    history, drawn = list(enumerate(racing_history())), Random(seed)
    storage = Storage(open_database(url))
    outcomes: list[tuple[int, Outcome]] = []
    errors: list[str] = []
    for start in range(0, len(history), WINDOW):
        mine = [one for one in history[start : start + WINDOW] if takes(seed, *one, drawn)]
        drawn.shuffle(mine)
        _at_once[0].wait(30)
        for first in range(0, len(mine), BATCH):
            batch = mine[first : first + BATCH]
            try:
                done = storage.receive(*(message for _, message in batch))
            except CustomerActorsError as error:
                errors.append(str(error))
            else:
                outcomes += [(index, outcome) for (index, _), outcome in zip(batch, done, strict=True)]
    storage.database.release()
    return outcomes, errors


def takes(seed: int, index: int, message: Message, drawn: Random) -> bool:
    """Whether a process sends a message; `credit.opened` has no business key, so only one of them does."""
    return drawn.random() < SHARE if message.reference else index % PROCESSES == seed


def business_key(message: Message) -> tuple[str, str]:
    """An order and the till sale it names are one [A5]; an account is opened once per customer."""
    if message.type in SALE_TYPES:
        return "sale", message.reference.removeprefix("t")
    return message.type.value, message.reference or str(message.customer_id)


def test_racing_processes_admit_every_key_once_and_leave_no_cancelled_order_active(
    postgres_storage: Storage, migrated_url: str
) -> None:
    storage, history = postgres_storage, racing_history()
    shares = [(migrated_url, seed) for seed in range(PROCESSES)]
    with spawn.Pool(PROCESSES, meet_at, (spawn.Barrier(PROCESSES),)) as pool:
        results = pool.starmap_async(append_share, shares, chunksize=1).get(60)
    assert [errors for _, errors in results] == [[]] * PROCESSES

    outcomes: dict[tuple[str, str], Counter[Outcome]] = defaultdict(Counter)
    sent: set[int] = set()
    for index, outcome in (pair for pairs, _ in results for pair in pairs):
        outcomes[business_key(history[index])][outcome] += 1
        sent.add(index)
    assert len(sent) > 0.95 * len(history)
    assert all(counts[Outcome.ACCEPTED] <= 1 and not counts[Outcome.QUARANTINED] for counts in outcomes.values())
    once = {key: c[Outcome.ACCEPTED] + c[Outcome.SUPPRESSED] for key, c in outcomes.items() if key[0] != "sale"}
    assert set(once.values()) == {1}
    assert_positions_have_no_gaps(storage)

    streams = {key: storage.events(key[1]) for key in storage.customers()}
    sold = Counter(sale_key(e) for events in streams.values() for e in events if e.type in SALE_TYPES)
    named = {business_key(history[i])[1] for i in sent if history[i].type in SALE_TYPES and history[i].customer_id}
    assert sold == dict.fromkeys(named, 1)
    active = {sale_key(event) for events in streams.values() for event in active_sales(events)}
    cancelled = {m.reference for i, m in enumerate(history) if i in sent and m.type == EventType.ORDER_CANCELLED}
    assert len(active) > ORDERS // 2
    assert active & cancelled == set()

    storage.settle()
    for key, events in streams.items():
        assert stored_state(storage, *key) == state_of_stream(events, RULES, TODAY)


def sale_key(event: Event) -> str:
    return event.reference.removeprefix("t")


def active_sales(events: Sequence[Event]) -> list[Event]:
    undone = {event.sale_position for event in events}
    return [e for e in events if e.type in SALE_TYPES and not e.already_cancelled and e.position not in undone]


def assert_positions_have_no_gaps(storage: Storage) -> None:
    sql = (
        "SELECT c.id FROM customer c LEFT JOIN event e ON e.customer = c.id GROUP BY c.id, c.head "
        "HAVING count(*) <> c.head OR min(e.position) <> 1 OR max(e.position) <> c.head"
    )
    assert storage.database.query(sql) == []


def append_for_shared_customers(url: str, seed: int) -> list[Outcome]:
    """Orders of one's own, for new customers that every process meets at the same moment in an order of its own."""
    storage, drawn, outcomes = Storage(open_database(url)), Random(seed), []
    for number in range(CROWDS):
        crowd = [f"c{number}-{n}" for n in range(CROWD)]
        drawn.shuffle(crowd)
        _at_once[0].wait(30)
        outcomes += storage.receive(*(order(f"{customer}-{seed}", "10", customer_id=customer) for customer in crowd))
    storage.database.release()
    return outcomes


def test_processes_that_share_customers_but_no_order_do_not_deadlock(
    postgres_storage: Storage, migrated_url: str
) -> None:
    shares = [(migrated_url, seed) for seed in range(PROCESSES)]
    with spawn.Pool(PROCESSES, meet_at, (spawn.Barrier(PROCESSES),)) as pool:
        results = pool.starmap_async(append_for_shared_customers, shares, chunksize=1).get(60)
    assert results == [[Outcome.ACCEPTED] * CROWDS * CROWD] * PROCESSES
    assert_positions_have_no_gaps(postgres_storage)
    assert postgres_storage.value("SELECT count(*) FROM customer WHERE head = ?", PROCESSES) == CROWDS * CROWD


SINGLES: list[Callable[[str], Message]] = [
    lambda key: order(key, "10"),
    lambda key: pos(key, "10"),
    lambda key: pos(f"a{key}", "10", customer_id=None),
    lambda key: cancellation(f"c{key}"),
    lambda key: payment(key, "5"),
    lambda key: redemption(key, 5),
    lambda key: order(f"new{key}", "10", customer_id=f"customer-{key}"),
    lambda key: order(f"eur{key}", "10", currency="EUR", organization_id=f"org-{key}"),
]


def append_singles(url: str) -> list[list[Outcome]]:
    """Batches of one message per key and kind, each appended at the moment the other process does."""
    storage, outcomes = Storage(open_database(url)), []
    for number in range(KEYS):
        message = SINGLES[number % len(SINGLES)](str(number))
        _at_once[0].wait(30)
        outcomes.append(storage.receive(message))
    storage.database.release()
    return outcomes


def test_two_processes_with_one_key_at_the_same_moment_get_one_first_and_one_duplicate(
    postgres_storage: Storage, migrated_url: str
) -> None:
    with spawn.Pool(2, meet_at, (spawn.Barrier(2),)) as pool:
        first, second = pool.map_async(append_singles, [migrated_url] * 2, chunksize=1).get(60)
    for number, (one, other) in enumerate(zip(first, second, strict=True)):
        assert len(one) == len(other) == 1
        assert Counter(one + other)[Outcome.DUPLICATE] == 1, (number, one, other)
        assert Counter(one + other)[Outcome.QUARANTINED] == 0
    assert len({outcome[0] for outcome in first}) > 1
    assert_positions_have_no_gaps(postgres_storage)


# --- advancing ----------------------------------------------------------------------------------------------------

Bell = tuple[str, list[int]] | None
"""(actor, customers); None ends the process that takes it."""


def append_bursts(url: str, bells: "JoinableQueue[Bell]") -> None:
    """A few batches in a row for the same few customers, each ringing its own bell, then on to others for good.

    So the bell of one batch often finds the rows of its customers locked for the batch before.
    """
    storage = Storage(open_database(url))
    customers = [f"c{number}" for number in range(QUIET_CUSTOMERS)]
    for start in range(0, QUIET_CUSTOMERS, BLOCK):
        for burst in range(BURSTS):
            block = customers[start : start + BLOCK]
            bell = storage.append(order(f"{customer}-{burst}", "10", customer_id=customer) for customer in block).bell
            for message in plan(bell, BLOCK):
                bells.put(message)
    storage.database.release()


def advance_bells(url: str, bells: "JoinableQueue[Bell]") -> None:
    """Answer every message taken from the queue, once, and ring who comes next; no sweep looks after it."""
    storage = Storage(open_database(url))
    while message := bells.get():
        actor, customers = message
        report = storage.advance(actor, customers, round_events=64)
        for following in AFTER.get(actor, ()):
            bells.put((following, sorted(report.moved)))
        bells.task_done()
    bells.task_done()
    storage.database.release()


def test_a_thousand_quiet_moments_strand_nobody(postgres_storage: Storage, migrated_url: str) -> None:
    bells: JoinableQueue[Bell] = spawn.JoinableQueue()
    appender = spawn.Process(target=append_bursts, args=(migrated_url, bells))
    advancers = [spawn.Process(target=advance_bells, args=(migrated_url, bells)) for _ in range(PROCESSES)]
    try:
        for process in (appender, *advancers):
            process.start()
        end_well([appender])
        answered = Thread(target=bells.join, daemon=True)
        answered.start()
        answered.join(60)
        assert not answered.is_alive()
        for _ in advancers:
            bells.put(None)
        end_well(advancers)
    finally:
        for process in (appender, *advancers):
            process.kill()
    storage = postgres_storage
    assert storage.value("SELECT count(*) FROM customer") == QUIET_CUSTOMERS
    assert all_behind(storage.stores()) == {actor: [] for actor in ACTORS}
    assert storage.value("SELECT sum(sales_order) FROM stats_state") == QUIET_CUSTOMERS * BURSTS


def end_well(processes: Sequence[SpawnProcess]) -> None:
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
