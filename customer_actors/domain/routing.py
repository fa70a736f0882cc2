"""The routing table: which actors an event concerns. The one place to add an actor."""

from typing import Final

from customer_actors.domain.events import EventType

STATS: Final = "stats"
LOYALTY: Final = "loyalty"
CREDIT: Final = "credit"
SEGMENTATION: Final = "segmentation"

STREAM_ACTORS: Final = (STATS, LOYALTY, CREDIT)
"""Actors that fold the stream."""

AFTER: Final = {STATS: (SEGMENTATION,)}
"""Actors rung by another actor once it has committed: segmentation is a function of statistics [R6]."""

ACTORS: Final = (STATS, LOYALTY, SEGMENTATION, CREDIT)

BIT: Final = {STATS: 1, LOYALTY: 2, CREDIT: 4}
"""Bit of each actor in `Event.concerns`."""

ON_CREDIT: Final = " on credit"
"""Suffix of the routing key of a sale sold on credit (or charged to the account) and of its cancellation: only such a
sale concerns the credit actor."""

ROUTES: Final[dict[str, tuple[str, ...]]] = {
    EventType.ORDER_COMPLETED: (STATS, LOYALTY),
    EventType.ORDER_COMPLETED + ON_CREDIT: (STATS, LOYALTY, CREDIT),
    EventType.POS_COMPLETED: (STATS, LOYALTY),
    EventType.POS_COMPLETED + ON_CREDIT: (STATS, LOYALTY, CREDIT),
    EventType.ORDER_CANCELLED: (STATS, LOYALTY),
    EventType.ORDER_CANCELLED + ON_CREDIT: (STATS, LOYALTY, CREDIT),
    EventType.PAYMENT_RECEIVED: (CREDIT,),
    EventType.CREDIT_OPENED: (CREDIT,),
    EventType.CREDIT_CHARGED: (CREDIT,),
    EventType.CREDIT_LIMIT_CHANGED: (CREDIT,),
    EventType.CREDIT_SUSPENDED: (CREDIT,),
    EventType.CREDIT_LIFTED: (CREDIT,),
    EventType.LOYALTY_REDEEMED: (LOYALTY,),
}


def route(type_: str, on_credit: bool) -> str:
    """The routing key of an event: its type, marked when it was sold on credit."""
    return type_ + ON_CREDIT if on_credit else type_


WAKES: Final[dict[str, str]] = {
    STATS: EventType.ORDER_COMPLETED,
    LOYALTY: EventType.LOYALTY_REDEEMED,
    CREDIT: EventType.PAYMENT_RECEIVED,
    SEGMENTATION: EventType.ORDER_COMPLETED,
}
"""Actor -> a routing key that rings it, and as few others as there are: for a group that may go on."""

CONCERNS: Final = {key: sum(BIT[actor] for actor in actors) for key, actors in ROUTES.items()}
"""Routing key -> bit mask."""
