"""From a bell to messages."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from customer_actors.actors.dispatcher import bundles, plan
from customer_actors.domain.routing import ROUTES, STREAM_ACTORS

customers = st.lists(st.integers(1, 300), unique=True).map(sorted)
bells = st.dictionaries(st.sampled_from(sorted(ROUTES)), customers)
sizes = st.integers(1, 50)


def test_a_small_bell_is_one_message_per_actor_that_is_concerned() -> None:
    bell = {
        "order.completed": [3, 5],
        "order.completed on credit": [4],
        "payment.received": [5, 9],
        "loyalty.redeemed": [7],
    }
    assert dict(plan(bell, 200)) == {"stats": [3, 4, 5], "loyalty": [3, 4, 5, 7], "credit": [4, 5, 9]}
    assert len(list(plan(bell, 200))) == 3


def test_a_bell_for_nobody_is_no_message() -> None:
    assert list(plan({}, 200)) == []
    assert list(plan({"order.completed": []}, 200)) == []


def test_a_bell_of_exactly_a_bundle_is_not_split_and_one_more_is() -> None:
    assert len(list(plan({"payment.received": list(range(200))}, 200))) == 1
    assert [len(bundle) for _, bundle in plan({"payment.received": list(range(201))}, 200)] == [200, 1]


@given(bells, sizes)
def test_each_actor_gets_each_of_its_customers_in_exactly_one_message(bell: dict[str, list[int]], size: int) -> None:
    messages = list(plan(bell, size))
    for actor in STREAM_ACTORS:
        concerned = {number for key, numbers in bell.items() if actor in ROUTES[key] for number in numbers}
        sent = [number for rung, bundle in messages if rung == actor for number in bundle]
        assert sent == sorted(concerned)
    assert all(actor in STREAM_ACTORS and 0 < len(bundle) <= size for actor, bundle in messages)


@given(bells, sizes)
def test_a_bell_that_went_through_json_means_the_same(bell: dict[str, list[int]], size: int) -> None:
    assert list(plan(json.loads(json.dumps(bell)), size)) == list(plan(bell, size))


@given(customers, sizes)
def test_bundles_are_disjoint_runs_that_cover_everybody(numbers: list[int], size: int) -> None:
    made = list(bundles(numbers, size))
    assert [number for bundle in made for number in bundle] == numbers
    assert all(len(bundle) == size for bundle in made[:-1])


@pytest.mark.parametrize("key", sorted(ROUTES))
def test_every_routing_key_rings_somebody(key: str) -> None:
    assert {actor for actor, _ in plan({key: [1]}, 200)} == set(ROUTES[key]) != set()
