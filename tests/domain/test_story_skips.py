"""What an operator skipped, as a story tells it."""

from customer_actors.domain.routing import CREDIT, LOYALTY, STATS, STREAM_ACTORS
from customer_actors.domain.story import Skips, Standing
from customer_actors.domain.telling import SKIPPED, WAITS, Skip, Told
from tests.domain.test_story import cancel, sale, story_of

BY = Skip("anna", "sent twice")


def skipping(*positions: int) -> Skips:
    return {(actor, position): BY for actor in STREAM_ACTORS for position in positions}


def test_a_skipped_event_tells_who_and_why_and_changes_nothing() -> None:
    _, effects = story_of([sale("A", 5000), sale("B", 700)], {(LOYALTY, 2): BY})
    stats, loyalty = effects[1]
    assert stats.balance["orders"] == 2
    assert loyalty.told == Told("", SKIPPED, "skipped by anna: sent twice")
    assert loyalty.balance == effects[0][1].balance


def test_a_cancellation_whose_sale_was_skipped_does_nothing() -> None:
    first = sale("A", 5000, on_credit=True)
    story, effects = story_of([first, sale("B", 700, day=1), cancel(first, 1)], skipping(1))
    assert [effect.told.outcome for effect in effects[2]] == ["none", "none", "none"]
    assert effects[2][0].told.effect == "no sale to undo: position 1 was skipped"
    bounds = {"first_purchase_at": "1970-01-02T00:00:00Z", "last_purchase_at": "1970-01-02T00:00:00Z"}
    figures = {"position": 3, "orders": 1, "cancelled_orders": 0, **bounds}
    assert story.differences({STATS: figures, CREDIT: {"position": 3, "used": "0.00"}}) == []


def test_a_sale_whose_cancellation_was_skipped_stays_counted() -> None:
    first = sale("A", 5000)
    story, _ = story_of([first, sale("B", 700, day=1), cancel(first, 1)], skipping(3))
    bounds = {"first_purchase_at": "1970-01-01T00:00:00Z", "last_purchase_at": "1970-01-02T00:00:00Z"}
    figures = {"position": 3, "orders": 2, "cancelled_orders": 0, **bounds}
    assert story.differences({STATS: figures, LOYALTY: {"position": 3, "points_balance": 57}}) == []


def test_a_skip_the_actor_has_not_come_to_waits_like_the_rest() -> None:
    _, effects = story_of([sale("A", 5000), sale("B", 700)], skipping(2), loyalty=Standing(1))
    assert [effect.told.outcome for effect in effects[1]] == [SKIPPED, WAITS]
