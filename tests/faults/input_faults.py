"""Faults of what arrives, of what the folds make of it, and of the clock."""

import json
import random
import sys
from typing import Any, Final

from tests.faults.entry import CLOCK_FILE
from tests.faults.faults import fault
from tests.faults.stage import COMMANDS, INGEST, WORKER, Stage

ENTRY: Final = (sys.executable, "-m", "tests.faults.entry")
DAY_S: Final = 86_400


def _line(type_: str, **data: object) -> str:
    return json.dumps({"event": type_, "data": data})


@fault("input: a fifth twice, all of it shuffled", "repeated", short=True, events=2_500, shuffled=True)
def shuffled_duplicates(stage: Stage, rng: random.Random) -> int:
    """Cancellations before their completion, payments before sales, everything that can be out of order."""
    stage.more(800)
    assert stage.publisher is not None
    return stage.publisher.repeated


@fault("input: cancellation before completion", "orders", events=600)
def cancelled_first(stage: Stage, rng: random.Random) -> int:
    assert stage.publisher is not None
    orders = [f"early-{number}" for number in range(200)]
    stage.publisher.send([_line("order.cancelled", order_id=order) for order in orders])
    stage.until(lambda: not stage.missing())
    rng.shuffle(orders)
    completions = [
        _line("order.completed", order_id=order, customer_id=f"E{number % 40}", total_amount=number + 0.5)
        for number, order in enumerate(orders)
    ]
    stage.publisher.send(completions)
    stage.until(lambda: not stage.missing())
    ((counted,),) = stage.sql("SELECT count(*) FROM event WHERE already_cancelled AND reference LIKE 'early-%'")
    assert counted == len(orders)
    return len(orders)


@fault("input: payment before the account", "payments", events=600)
def paid_first(stage: Stage, rng: random.Random) -> int:
    """Money waits in suspense until the account is opened [C3]."""
    assert stage.publisher is not None
    customers = [f"P{number}" for number in range(8)]
    payments = [
        _line("payment.received", customer_id=each, amount=rng.randrange(1, 50), payment_reference=f"early-{each}-{n}")
        for each in customers
        for n in range(5)
    ]
    stage.publisher.send(payments)
    stage.until(lambda: not stage.missing())
    sales = [
        _line("order.completed", order_id=f"c-{each}", customer_id=each, total_amount=99.99, payment_method="credit")
        for each in customers
    ]
    stage.publisher.send(sales)
    for customer in customers[:4]:
        stage.command("credit", "open", customer, "--limit", "500.00")
    return len(payments)


_REFUSE: Final = """
CREATE FUNCTION refuse_customer() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'made by the fault suite' USING ERRCODE = 'check_violation';
END $$;
CREATE TRIGGER refuse_customer BEFORE UPDATE ON loyalty_state FOR EACH ROW
    WHEN (NEW.customer = {customer} AND NEW.position > OLD.position) EXECUTE FUNCTION refuse_customer();
"""


def _busiest(stage: Stage) -> int:
    ((customer,),) = stage.sql("SELECT id FROM customer ORDER BY head_loyalty DESC, id LIMIT 1")
    return int(customer)


def _held(stage: Stage, customer: int) -> bool:
    held = stage.sql("SELECT customer FROM held_group WHERE actor = 'loyalty'")
    return (customer,) in held


def _others_go_on(stage: Stage, customer: int) -> None:
    """While one is held, everybody else is served [G6]."""
    assert stage.publisher is not None
    marker = _line("order.completed", order_id=f"beside-{customer}", customer_id="beside", total_amount=7)
    stage.publisher.send([marker])
    reached = (
        "SELECT 1 FROM customer c JOIN loyalty_state s ON s.customer = c.id "
        "WHERE c.customer_id = 'beside' AND s.position = c.head_loyalty"
    )
    stage.until(lambda: stage.sql(reached) == [(1,)], 10)
    assert _held(stage, customer)


@fault("input: the database refuses one customer", "customer", short=True, holds=True)
def refused_customer(stage: Stage, rng: random.Random) -> int:
    """A check violation in the bundle: halved until the one is found; the rest of the bundle is kept."""
    stage.more(rng.randrange(50, 200))
    customer = _busiest(stage)
    stage.sql(_REFUSE.format(customer=customer))
    stage.until(lambda: _held(stage, customer))
    _others_go_on(stage, customer)
    stage.sql("DROP FUNCTION refuse_customer CASCADE")
    return 1


@fault("input: one customer's events raise in the fold", "customer", holds=True)
def raising_customer(stage: Stage, rng: random.Random) -> int:
    """Its events name business rules that do not exist; repaired later, they are applied in order."""
    stage.more(rng.randrange(50, 200))
    customer = _busiest(stage)
    stage.sql(
        "CREATE FUNCTION spoil_rules() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN NEW.rules = 987654; RETURN NEW; END $$"
    )
    stage.sql(
        f"CREATE TRIGGER spoil_rules BEFORE INSERT ON event FOR EACH ROW WHEN (NEW.customer = {customer}) "
        "EXECUTE FUNCTION spoil_rules()"
    )
    stage.until(lambda: _held(stage, customer))
    _others_go_on(stage, customer)
    stage.sql("DROP FUNCTION spoil_rules CASCADE")
    # Events never change, so the rules they name are made: the same rules, written a little differently.
    stage.sql(
        "INSERT INTO rules (number, content, created_at_us) OVERRIDING SYSTEM VALUE "
        "SELECT 987654, content || ' ', created_at_us FROM rules ORDER BY number LIMIT 1"
    )
    return 1


def _patched(stage: Stage, fault_name: str, *names: str, **env: str) -> None:
    stage.env.update({"FAULT": fault_name, **env})
    for name in names:
        _, *arguments = COMMANDS[name]
        stage.commands[name] = (*ENTRY, *(["dramatiq"] if name == WORKER else []), *arguments)


@fault("input: a bad deploy, every fold raises", "deploys", events=800, recovers_s=60, ends_processes=True, holds=True)
def bad_deploy(stage: Stage, rng: random.Random) -> int:
    """Held customers lose nothing, not even their order, and go on after the good version is back."""
    stage.more(rng.randrange(20, 100))
    _patched(stage, "folds", WORKER)
    stage.processes[WORKER].kill()
    stage.supervise()
    stage.until(lambda: stage.sql("SELECT count(*) FROM held_group")[0][0] > 20)
    stage.until(lambda: "mass failure" in stage.red(), 30)
    stage.commands[WORKER] = COMMANDS[WORKER]
    stage.processes[WORKER].kill()
    return 1


def _with_wrong_clock(stage: Stage) -> None:
    path = stage.folder / "clock"
    path.write_text("0")
    _patched(stage, "clock", INGEST, WORKER, **{CLOCK_FILE: str(path)})


@fault("clock: jumps of a day, forth and back", "jumps", prepare=_with_wrong_clock)
def clock_jumps(stage: Stage, rng: random.Random) -> int:
    """Only the timing of retries may notice [G16]."""
    jumps: list[Any] = [DAY_S, 0, -DAY_S, 0]
    for off_s in jumps:
        stage.more(rng.randrange(20, 150))
        (stage.folder / "clock").write_text(str(off_s))
    ((before_s, after_s),) = stage.sql(
        "SELECT s.now - min(received_at_us) / 1000000, max(received_at_us) / 1000000 - s.now "
        "FROM event, (SELECT extract(epoch FROM now()) AS now) s GROUP BY s.now"
    )
    assert min(before_s, after_s) > DAY_S - 600, "ingest did not notice that its clock was wrong"
    return len(jumps)
