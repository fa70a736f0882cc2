"""What a fold keeps in a file is what it would keep in memory, and memory does not grow with the stream."""

import tracemalloc
from collections.abc import Callable
from itertools import chain

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from customer_actors.cli.reading import TextPrinter, print_explanation
from customer_actors.domain.refold import CreditRefold
from customer_actors.domain.scratch import IN_MEMORY, Scratch
from customer_actors.storage import views
from customer_actors.storage.audit import Audit, Scope
from customer_actors.storage.scratch import FileScratch, Spool
from tests.domain.test_credit_properties import RULES, STEPS, Model, Step
from tests.model.examples import cancellation, opened, order, payment
from tests.storage.support import Storage
from tests.tampering import tamper


@pytest.mark.parametrize("made_by", [Scratch, FileScratch])
@given(steps=st.lists(st.tuples(st.integers(0, 40), st.none() | st.integers(-(2**40), 2**40))))
def test_numbers_are_a_dictionary(made_by: type[Scratch], steps: list[tuple[int, int | None]]) -> None:
    scratch = made_by()
    numbers, others, plain = scratch.numbers(), scratch.numbers(), dict[int, int]()
    for position, value in steps:
        if value is not None:
            numbers[position] = plain[position] = value
        else:
            assert numbers.pop(position, None) == plain.pop(position, None)
    assert dict(numbers) == plain
    assert len(numbers) == len(plain)
    assert numbers.bounds() == ((min(plain.values()), max(plain.values())) if plain else (None, None))
    assert (numbers.get(41), len(others)) == (None, 0)


@given(STEPS, st.integers(1, 4))
def test_credit_folded_with_a_file_is_credit_folded_in_memory(steps: list[Step], window: int) -> None:
    model, in_memory, in_file = Model(), CreditRefold(IN_MEMORY), CreditRefold(FileScratch())
    for position, step in enumerate(steps, 1):
        event = model.event(step, position)
        if event is None:
            continue
        for refold in (in_memory, in_file):
            refold.take(event, {event.rules: RULES})
        assert in_file.state() == in_memory.state()
        assert in_file.made() == in_memory.made()
    assert in_file.failure == in_memory.failure
    for after in range(0, len(steps), window):
        assert in_file.kept(after, after + window) == in_memory.kept(after, after + window)


def filled(scratch: FileScratch) -> None:
    scratch._file.rows("PRAGMA max_page_count = 1")


FULL = r"no temporary file .*full.*: make room, or name another folder in TMPDIR"


def test_a_full_disk_is_not_blamed_on_an_event() -> None:
    scratch = FileScratch()
    refold = CreditRefold(scratch)
    filled(scratch)
    event = Model().event(Step("order", 1, 5, 0), 1)
    assert event is not None
    with pytest.raises(OSError, match=FULL):
        refold.take(event._replace(reference="long " * 5_000), {event.rules: RULES})
    assert refold.failure is None


def test_a_full_disk_is_not_told_as_a_difference(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.settle(*(order(f"{n}{'x' * 200}", "5", on_credit=True) for n in range(100)))
    scratch = FileScratch()
    facts = scratch.credit_facts()
    filled(scratch)
    monkeypatch.setattr(scratch, "credit_facts", lambda: facts)
    monkeypatch.setattr("customer_actors.cli.reading.scratch_for", lambda *_: scratch)
    monkeypatch.setattr(scratch, "numbers", IN_MEMORY.numbers)
    monkeypatch.setattr(click, "echo", lambda *_, **__: None)
    with pytest.raises(OSError, match=FULL):
        explanation_of(storage)


def test_a_spool_gives_back_what_it_was_given_in_order() -> None:
    spool = Spool[tuple[int, str]]()
    for number in range(3000):
        spool.add((number % 2, -(number % 3)), (number, "long " * 200))
    assert [number for number, _ in spool] == sorted(range(3000), key=lambda n: (n % 2, -(n % 3)))


def audit_of(storage: Storage) -> None:
    """Every usage differs, so that what is told is many too."""
    found = Audit(storage.database, storage.rules, window=50).run(Scope())
    assert sum(1 for _ in found) >= storage.value("SELECT count(*) FROM credit_usage")


def explanation_of(storage: Storage) -> None:
    basis = views.explain_basis(storage.database, storage.rules, "org-1", "c1")
    assert basis is not None
    printer = TextPrinter("org-1", "c1", 2)
    assert print_explanation(storage.database, storage.rules, basis, printer, 1) == []


@pytest.mark.parametrize("told", [audit_of, explanation_of])
def test_memory_does_not_grow_with_a_stream(
    storage: Storage, told: Callable[[Storage], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ten times as many sales, payments and cancellations.

    Python keeps freed tuples for reuse, up to as much again; kept in memory it would be seven times as much.
    """
    monkeypatch.setattr("customer_actors.cli.reading.WINDOW", 50)
    monkeypatch.setattr(views, "_CHUNK", 50)
    monkeypatch.setattr(click, "echo", lambda *_, **__: None)
    storage.settle(opened("100"))
    peaks = []
    for numbers in (range(100), range(100, 1_000)):
        sales = ([order(f"O-{n}", "5", on_credit=True), payment(f"P-{n}", "5")] for n in numbers)
        storage.settle(*chain.from_iterable(sales), *(cancellation(f"O-{n}") for n in numbers))
        tamper(storage.database, "UPDATE credit_usage SET no_account = (1 = 1)")
        told(storage)
        tracemalloc.start()
        told(storage)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 3 * peaks[0], peaks
