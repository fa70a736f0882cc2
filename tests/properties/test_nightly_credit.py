"""Over any history: the night finds nothing, and of a figure made wrong it reports exactly that and repairs it [C8]."""

from datetime import date

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from customer_actors.domain.events import Message
from customer_actors.domain.segmentation import day_start_us
from customer_actors.storage import job_runs
from customer_actors.storage.drift import aged_by, drift_of
from customer_actors.storage.job_runs import Run
from customer_actors.storage.nightly_credit import NightlyCredit
from tests.model.strategies import messages
from tests.model.stream import AFTER_ALL, BEFORE_ALL, state_of_stream
from tests.properties.service import NOW_US, TODAY, Service
from tests.properties.test_against_model import RULES, service
from tests.storage.support import Dump, dump

_NIGHTS = ("job_run", "job_chunk", "credit_drift", "credit_ageing")
_FIGURES = (
    ("credit_state", "used_minor", "used", None),
    ("credit_usage", "outstanding_minor", "usage[{}].outstanding", "amount_minor"),
    ("credit_payment", "unapplied_minor", "payment[{}].unapplied", "amount_minor"),
)

generous = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def night(real: Service, slot: str, as_of: date = TODAY) -> tuple[int, list[tuple[object, ...]], int]:
    """Rows changed, (customer_id, field, stored, expected, repaired) of every drift, and how many were aged."""
    run, job = Run("credit", slot, as_of), NightlyCredit(real.stores, 2)
    now_us = max(NOW_US, day_start_us(as_of, real.rules.zone))
    job_runs.claim(real.database, run, now_us)
    assert job_runs.plan(real.database, job, run, now_us)
    for number in job_runs.open_chunks(real.database, run):
        assert job_runs.work(real.database, job, run, number, now_us)
    assert job_runs.finish(real.database, job, run, now_us)
    progress = job_runs.progress_of(real.database, "credit", slot)
    assert progress is not None
    return progress.changed, [d[2:] for d in drift_of(real.database, slot)], len(aged_by(real.database, slot))


def data(real: Service) -> Dump:
    return {table: rows for table, rows in dump(real.database).items() if table not in _NIGHTS}


@generous
@given(messages(), st.data())
def test_any_figure_made_wrong_is_told_exactly_and_repaired(history: list[Message], choice: st.DataObject) -> None:
    with service() as real:
        real.receive(history)
        night(real, "ageing")  # a history may hold automatic suspensions of its own
        before = data(real)
        assert night(real, "healthy") == (0, [], 0)
        assert data(real) == before
        table, column, name, most = choice.draw(st.sampled_from(_FIGURES))
        place = "position" if most else "0"
        limit = most or "1000000"
        cancelled = " AND t.cancelled_position IS NULL" * (table == "credit_usage")
        rows = real.database.query(
            f"SELECT t.customer, c.customer_id, {place}, {column}, {limit} FROM {table} t "
            f"JOIN customer c ON c.id = t.customer WHERE {limit} > 0{cancelled} ORDER BY 1, 3"
        )
        if not rows:
            return
        customer, customer_id, position, right, highest = choice.draw(st.sampled_from(rows))
        wrong = choice.draw(st.integers(0, highest).filter(lambda amount: amount != right))
        where = " AND position = ?" if most else " AND 0 = ?"
        with real.database.transaction():
            sql = f"UPDATE {table} SET {column} = ? WHERE customer = ?{where}"
            real.database.execute(sql, (wrong, customer, position))
        assert night(real, "wrong") == (1, [(customer_id, name.format(position), wrong, right, True)], 0)
        assert data(real) == before
        assert night(real, "again") == (0, [], 0)


@generous
@given(messages(), messages())
def test_with_nights_in_between_everything_is_still_what_the_plain_model_makes_of_the_stream(
    one: list[Message], other: list[Message]
) -> None:
    """The closed form of C1 among it: used and unapplied are what was used less what was paid, whatever came when.

    A night long ago lifts whom the history suspended, one far ahead suspends whoever owes; done again, both do nothing.
    """
    with service() as real:
        for number, (history, as_of) in enumerate(((one, BEFORE_ALL), (other, AFTER_ALL))):
            real.receive(history)
            changed, drift, aged = night(real, f"{number}", as_of)
            assert (changed, drift) == (aged, [])
            before = data(real)
            assert night(real, f"{number} again", as_of) == (0, [], 0)
            assert data(real) == before
            for key in real.customers():
                stored = state_of_stream(real.stream(*key), RULES, TODAY)
                assert real.state(*key) == {"organization_id": key[0], "customer_id": key[1], **stored}
        owing = real.database.query(
            "SELECT DISTINCT status FROM credit_state WHERE status IS NOT NULL AND used_minor > 0"
        )
        assert owing in ([], [("suspended",)])
