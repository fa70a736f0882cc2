"""Amounts of money, from the text a publisher wrote to an integer number of minor units, never through a float [A6]."""

import re
from decimal import ROUND_HALF_EVEN, ROUND_UP, Context, Decimal, DecimalException

MAX_INTEGER_DIGITS = 12
TOLERANCE = Decimal("0.000001")
"""In units of currency: how far the binary noise of a publisher's float may push an amount off its minor unit."""

_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")

_CONTEXT = Context(prec=28, rounding=ROUND_UP, traps=[])
"""Rounding away from zero keeps the comparison with the tolerance exact, however many digits the amount has."""


def minor_units(value: object, decimals: int) -> int:
    """The amount in minor units (0 or more, below 10 ** (12 + decimals)) that a JSON value stands for [A6].

    `value` is an `int` or `Decimal` (a JSON number) or a `str` in JSON's number grammar; `decimals` is the number of
    decimal places of the currency. Raises ValueError, with what a publisher has to change, for everything else, for
    negative amounts (minus zero too), for amounts finer than a minor unit and for more than 12 integer digits.
    """
    amount = value if isinstance(value, Decimal) else _decimal(value)
    if not amount.is_finite():
        raise ValueError("must be a finite number")
    if amount.is_signed():
        raise ValueError("must not be negative, nor minus zero")
    # Before any arithmetic, so that 1e400 never becomes an integer of 400 digits.
    if amount.adjusted() >= MAX_INTEGER_DIGITS and amount:
        raise ValueError(f"must have at most {MAX_INTEGER_DIGITS} digits before the decimal point")
    scaled = amount.scaleb(decimals, _CONTEXT)
    minor = int(scaled.to_integral_value(ROUND_HALF_EVEN))
    return minor if minor == scaled else _snapped(amount, minor, decimals)


def _snapped(amount: Decimal, minor: int, decimals: int) -> int:
    """`minor`, if `amount` is near enough to it to be meant."""
    if _CONTEXT.subtract(amount, Decimal(minor).scaleb(-decimals, _CONTEXT)).copy_abs() > TOLERANCE:
        raise ValueError(f"must have at most {decimals} decimal places; round it before sending")
    if minor >= 10 ** (MAX_INTEGER_DIGITS + decimals):
        raise ValueError(f"must have at most {MAX_INTEGER_DIGITS} digits before the decimal point, also when rounded")
    return minor


def _decimal(value: object) -> Decimal:
    """The number that an integer or a string stands for, exactly; raises ValueError when it stands for none."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError("must be a number, or a string that holds one")
    if isinstance(value, str) and _JSON_NUMBER.fullmatch(value) is None:
        raise ValueError("must be written as a plain number such as 1234.50: digits, a point, no separators, no spaces")
    try:
        return Decimal(value)
    except DecimalException:
        raise ValueError("must have an exponent of a sensible size") from None
