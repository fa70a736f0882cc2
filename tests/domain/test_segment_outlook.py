"""What would move a customer to another segment [R1-R4], over all cells and against trying every size."""

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from customer_actors.domain.segment_outlook import Interval, Move, decay, intervals, upward
from customer_actors.domain.segmentation import HEALTH, Cuts, Scale, score, scores_of

CUTS = Cuts(1, (10, 20, 30, 40), (1, 2, 3, 4), (100, 200, 300, 400))
SCALE = Scale(CUTS, 2)
TODAY = date(2026, 3, 1)

inputs = st.tuples(st.integers(-3, 60), st.integers(1, 8), st.integers(0, 600))
scales = st.lists(st.integers(1, 50), min_size=4, max_size=4, unique=True).map(
    lambda cuts: Scale(Cuts(1, *(tuple(sorted(cuts)),) * 3), 2)  # type: ignore[arg-type]
)
CELLS = [
    (days, orders, total)
    for days in (5, 15, 25, 35, 45)
    for orders in range(1, 6)
    for total in (50, 150, 250, 350, 450)
]


def test_a_sale_today_makes_recent_and_counts_as_an_order() -> None:
    assert upward(SCALE, 35, 3, 450)[0] == Move("sale", 1, scores_of(5, 4, 5))
    assert scores_of(5, 4, 5).code == "champions"


def test_more_sales_and_more_money_are_told_where_they_lead_further() -> None:
    assert upward(SCALE, 45, 1, 150) == [
        Move("sale", 1, scores_of(5, 2, 2)),  # a potential loyalist
        Move("sales", 3, scores_of(5, 4, 2)),  # three more make four: loyal
    ]
    assert upward(SCALE, 5, 3, 350)[-1] == Move("sale", 1, scores_of(5, 4, 4))
    assert upward(SCALE, 5, 4, 250) == [Move("amount", 51, scores_of(5, 5, 4))]


def test_a_champion_has_nowhere_to_go() -> None:
    assert upward(SCALE, 0, 9, 900) == []


def test_recency_falls_first_where_it_changes_the_code() -> None:
    assert decay(SCALE, 5, 5, 450) == Move("days", 16, scores_of(3, 5, 5))  # on day 21; R 4 is a champion still
    assert decay(SCALE, 45, 5, 450) is None


def test_a_purchase_ahead_of_the_date_takes_longer_to_fall() -> None:
    assert decay(SCALE, -3, 5, 450) == Move("days", 24, scores_of(3, 5, 5))


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: "-".join(map(str, cell)))
def test_over_all_cells_a_move_changes_the_code_and_is_never_unhealthy(cell: tuple[int, int, int]) -> None:
    now = SCALE.scores(*cell)
    for move in upward(SCALE, *cell):
        assert HEALTH[move.scores.code] >= HEALTH[now.code]
        assert move.scores.code != now.code
    falls = decay(SCALE, *cell)
    assert (falls is None) == (now.code == SCALE.scores(10**6, *cell[1:]).code)
    if falls is not None:
        assert HEALTH[falls.scores.code] <= HEALTH[now.code]


@given(scales, inputs)
def test_every_move_is_the_smallest_that_does_it(scale: Scale, customer: tuple[int, int, int]) -> None:
    days, orders, total = customer
    now, one = scale.scores(max(0, days), orders, total), scale.scores(0, orders + 1, total)
    found: dict[str, Move] = {move.kind: move for move in upward(scale, *customer)}
    assert bool(found) == (now.code != "champions")
    both = found.get("both")
    if both is not None:
        assert len(found) == 1
        assert both.scores.code == "champions"
        for fewer, less in ((1, 0), (0, 1)):
            near = scale.scores(0, orders + both.size - fewer, total + both.amount_minor - less)
            assert near.code == one.code
    assert ("sale" in found) == (one.code != now.code)
    tried = {
        "sales": [scale.scores(0, orders + more, total) for more in range(2, 60)],
        "amount": [scale.scores(0, orders + 1, total + more) for more in range(1, 60)],
    }
    first = {"sales": 2, "amount": 1}
    for kind, results in tried.items():
        other = next((size for size, result in enumerate(results, first[kind]) if result.code != one.code), None)
        assert (found[kind].size if kind in found else None) == other
    fallen = [scale.scores(max(0, days + more), orders, total) for more in range(1, 120)]
    falls = decay(scale, *customer)
    assert (falls.size if falls else None) == next(
        (more for more, result in enumerate(fallen, 1) if result.code != now.code), None
    )


@given(scales, inputs)
def test_an_interval_holds_exactly_the_values_of_the_score(scale: Scale, customer: tuple[int, int, int]) -> None:
    days, orders, total = max(0, customer[0]), *customer[1:]
    scores = scale.scores(days, orders, total)
    recency, frequency, monetary = intervals(scale, scores)
    for value in range(130):
        assert (scale.scores(value, orders, total).recency == scores.recency) == _in(recency, value)
        assert (scale.scores(days, value, total).frequency == scores.frequency) == _in(frequency, value)
        assert (scale.scores(days, orders, value).monetary == scores.monetary) == _in(monetary, value)


def _in(interval: Interval, value: int) -> bool:
    return interval.lowest <= value and (interval.highest is None or value <= interval.highest)


def test_the_scale_and_the_score_agree() -> None:
    for cell in CELLS:
        assert SCALE.scores(*cell) == score(TODAY, TODAY - timedelta(cell[0]), *cell[1:], CUTS, 2)
