"""Scores, cuts and codes [R1-R4], each against a second, plainer reading of the rule."""

import math
from datetime import date, timedelta
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from customer_actors.domain.segmentation import HEALTH, Cuts, code_of, quintile_cuts, score

TODAY = date(2026, 3, 1)
FIVE = range(1, 6)
CUBE = list(product(FIVE, FIVE, FIVE))


@pytest.mark.parametrize(
    ("days", "expected"), [(0, 5), (30, 5), (31, 4), (60, 4), (61, 3), (90, 3), (91, 2), (180, 2), (181, 1), (9999, 1)]
)
def test_fixed_recency(days: int, expected: int) -> None:
    assert score(TODAY, TODAY - timedelta(days), 1, 0, Cuts(), 2).recency == expected


def test_a_purchase_after_the_as_of_date_is_zero_days_ago() -> None:
    cuts = Cuts(1, recency=(0, 1, 2, 3))
    assert score(TODAY, TODAY + timedelta(1), 1, 0, cuts, 2) == score(TODAY, TODAY, 1, 0, cuts, 2)
    assert score(TODAY, TODAY + timedelta(1), 1, 0, cuts, 2).recency == 5


@pytest.mark.parametrize(("orders", "expected"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (9, 4), (10, 5), (999, 5)])
def test_fixed_frequency(orders: int, expected: int) -> None:
    assert score(TODAY, TODAY, orders, 0, Cuts(), 2).frequency == expected


@pytest.mark.parametrize("decimals", [0, 2, 4])
@pytest.mark.parametrize(
    ("units", "minor", "expected"),
    [
        (0, 0, 1),
        (100, -1, 1),
        (100, 0, 2),
        (500, -1, 2),
        (500, 0, 3),
        (1000, -1, 3),
        (1000, 0, 4),
        (5000, -1, 4),
        (5000, 0, 5),
    ],
)
def test_fixed_monetary_is_in_units_whatever_the_decimals(units: int, minor: int, expected: int, decimals: int) -> None:
    assert score(TODAY, TODAY, 1, units * 10**decimals + minor, Cuts(), decimals).monetary == expected


@pytest.mark.parametrize(
    ("value", "low_is_good", "high_is_good"), [(9, 5, 1), (10, 5, 1), (11, 4, 2), (40, 2, 4), (41, 1, 5)]
)
def test_a_value_on_a_cut_is_on_the_lower_side(value: int, low_is_good: int, high_is_good: int) -> None:
    cuts = (10, 20, 30, 40)
    scores = score(TODAY, TODAY - timedelta(value), value, value, Cuts(7, cuts, cuts, cuts), 2)
    assert scores[:3] == (low_is_good, high_is_good, high_is_good)
    assert scores.code == code_of(*scores[:3])


def test_one_dimension_can_fall_back_alone() -> None:
    scores = score(TODAY, TODAY - timedelta(31), 10, 600, Cuts(7, monetary=(1, 2, 3, 4)), 2)
    assert scores[:3] == (4, 5, 5)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (range(1, 101), (20, 40, 60, 80)),
        (range(1, 102), (21, 41, 61, 81)),
        (range(1, 105), (21, 42, 63, 84)),
        (range(1, 100), None),  # 99 are too few
        ([], None),
        ([*range(1, 61), *[61] * 40], (20, 40, 60, 61)),
        ([*range(1, 60), *[61] * 41], None),  # the third and fourth cut are equal
        ([7] * 500, None),
    ],
)
def test_cuts(values: list[int], expected: tuple[int, ...] | None) -> None:
    assert quintile_cuts(values) == expected


@st.composite
def populations(draw: st.DrawFn) -> list[int]:
    """Values of 100 to 160 customers, from many ties to nearly none."""
    highest = draw(st.sampled_from([3, 8, 50, 10_000]))
    return draw(st.lists(st.integers(0, highest), min_size=100, max_size=160))


@settings(deadline=None, max_examples=60)
@given(populations())
def test_cuts_agree_with_counting(values: list[int]) -> None:
    """The value at position p is the smallest one that at least p customers do not exceed."""
    smallest = []
    for k in (1, 2, 3, 4):
        needed = math.ceil(k * len(values) / 5)
        smallest.append(min(v for v in values if sum(other <= v for other in values) >= needed))
    cuts = quintile_cuts(sorted(values))
    assert cuts == (tuple(smallest) if len(set(smallest)) == 4 else None)


@settings(deadline=None, max_examples=60)
@given(populations())
def test_scores_from_cuts_agree_with_counting_ties_are_equal_and_order_is_kept(values: list[int]) -> None:
    cuts = quintile_cuts(sorted(values)) or (10, 20, 30, 40)
    by_value: dict[int, tuple[int, int, int]] = {}
    for value in values:
        scores = score(TODAY, TODAY - timedelta(value), value, value, Cuts(1, cuts, cuts, cuts), 2)
        below = sum(cut < value for cut in cuts)
        assert scores[:3] == (5 - below, 1 + below, 1 + below)
        assert by_value.setdefault(value, scores[:3]) == scores[:3]
    ascending = [by_value[value] for value in sorted(by_value)]
    assert [s[1] for s in ascending] == sorted(s[1] for s in ascending)
    assert [s[0] for s in ascending] == sorted((s[0] for s in ascending), reverse=True)


@pytest.mark.parametrize(
    ("scores", "code"),
    [
        ("555", "champions"),
        ("444", "champions"),
        ("344", "loyal"),  # not recent enough for a champion
        ("543", "loyal"),  # too little money for a champion
        ("541", "loyal"),  # F>=4 needs no money
        ("333", "loyal"),
        ("535", "loyal"),
        ("332", "potential_loyalist"),  # F=3 needs M>=3
        ("525", "potential_loyalist"),
        ("411", "new"),
        ("515", "new"),  # new comes before potential_loyalist
        ("311", "potential_loyalist"),  # not recent enough to be new
        ("231", "at_risk"),
        ("213", "at_risk"),
        ("222", "lost"),
        ("141", "at_risk"),
        ("114", "at_risk"),
        ("133", "lost"),
        ("111", "lost"),
    ],
)
def test_code_at_the_boundaries_of_every_line(scores: str, code: str) -> None:
    assert code_of(*map(int, scores)) == code


def test_every_combination_has_a_code_with_a_health_and_every_code_occurs() -> None:
    assert {code_of(*scores) for scores in CUBE} == set(HEALTH)
    assert HEALTH == {"champions": 5, "loyal": 4, "potential_loyalist": 3, "new": 3, "at_risk": 2, "lost": 1}


@pytest.mark.parametrize("dimension", [0, 1, 2], ids=["recency", "frequency", "monetary"])
def test_raising_one_score_never_lowers_health(dimension: int) -> None:
    lowered = []
    for scores in CUBE:
        raised = list(scores)
        raised[dimension] += 1
        if raised[dimension] <= 5 and HEALTH[code_of(*raised)] < HEALTH[code_of(*scores)]:
            lowered.append((scores, tuple(raised)))
    assert lowered == []
