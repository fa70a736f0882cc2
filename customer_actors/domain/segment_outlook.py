"""What would move a customer to another segment: sales that raise its scores, days that lower them [R1-R4]."""

from typing import Literal, NamedTuple

from customer_actors.domain.segmentation import Quintiles, Scale, Scores


class Interval(NamedTuple):
    """The values with the same score as a customer's value, both ends included; None where there is no end."""

    lowest: int
    highest: int | None


class Move(NamedTuple):
    """The smallest change of its kind that leads to another code."""

    kind: Literal["sale", "sales", "amount", "both", "days"]
    """One sale today of any amount; more sales, the last of them today; spending in one sale today; more sales and
    spending in them together; days without a sale."""
    size: int
    """Sales, minor units (`amount`) or days."""
    scores: Scores
    """After it, by the same cuts."""
    amount_minor: int = 0
    """What is spent in the sales of `both`."""


def intervals(scale: Scale, scores: Scores) -> tuple[Interval, Interval, Interval]:
    """The days, orders and totals (in minor units) that have these scores."""
    return (
        _interval(scale.recency, 5 - scores.recency),
        _interval(scale.frequency, scores.frequency - 1),
        _interval(scale.monetary, scores.monetary - 1),
    )


def _interval(cuts: Quintiles, below: int) -> Interval:
    return Interval(cuts[below - 1] + 1 if below else 0, cuts[below] if below < len(cuts) else None)


def upward(scale: Scale, days: int, orders: int, total_spent_minor: int) -> list[Move]:
    """What a customer could do today to get another code, which is never a less healthy one.

    A sale also makes the customer recent and counts as an order. So more sales, or more money, are told only where they
    lead further than one sale of any amount does, and both together where neither alone leads anywhere.
    """
    now = scale.scores(max(0, days), orders, total_spent_minor)
    one = scale.scores(0, orders + 1, total_spent_minor)
    moves = [] if one.code == now.code else [Move("sale", 1, one)]
    for score in range(one.frequency + 1, 6):
        more = scale.frequency[score - 2] + 1 - orders
        after = scale.scores(0, orders + more, total_spent_minor)
        if after.code != one.code:
            moves.append(Move("sales", more, after))
            break
    for score in range(one.monetary + 1, 6):
        more = scale.monetary[score - 2] + 1 - total_spent_minor
        after = scale.scores(0, orders + 1, total_spent_minor + more)
        if after.code != one.code:
            moves.append(Move("amount", more, after))
            break
    if not moves and now.code != "champions":  # frequency and money are both one short of what a champion needs [R4]
        more, spent = scale.frequency[2] + 1 - orders, scale.monetary[2] + 1 - total_spent_minor
        moves.append(Move("both", more, scale.scores(0, orders + more, total_spent_minor + spent), spent))
    return moves


def decay(scale: Scale, days: int, orders: int, total_spent_minor: int) -> Move | None:
    """After how many more days without a sale the code changes; None when it never does.

    `days` since the last purchase are negative for one that lies ahead of the as-of date.
    """
    now = scale.scores(max(0, days), orders, total_spent_minor)
    for score in range(now.recency - 1, 0, -1):
        more = scale.recency[4 - score] + 1 - days
        after = scale.scores(days + more, orders, total_spent_minor)
        if after.code != now.code:
            return Move("days", more, after)
    return None
