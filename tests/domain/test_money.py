"""Amounts of money [A6]."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from customer_actors.domain.money import TOLERANCE, minor_units


@pytest.mark.parametrize(
    ("value", "decimals", "minor"),
    [
        (Decimal("129.90"), 2, 12990),
        (Decimal("0.30000000000000004"), 2, 30),
        (Decimal("0.1000000000000000055511151231257827021181583404541015625"), 2, 10),
        (Decimal("19.999999999999998"), 2, 2000),
        (Decimal("10.000001"), 2, 1000),
        (Decimal("9.999999"), 2, 1000),
        ("12.30", 2, 1230),
        ("0", 2, 0),
        ("1E2", 2, 10000),
        ("1e+2", 2, 10000),
        ("12300e-2", 2, 12300),
        ("12.3000000000000000000000000000000000000000000000000000", 2, 1230),
        (0, 2, 0),
        (7, 2, 700),
        (Decimal("0e999999999"), 2, 0),
        (Decimal("1e-999999999"), 2, 0),
        (999_999_999_999, 2, 99_999_999_999_900),
        ("999999999999.99", 2, 99_999_999_999_999),
        (Decimal("1e11"), 2, 10_000_000_000_000),
        (Decimal("12.00"), 0, 12),
        ("12.0000001", 0, 12),
        (Decimal("0.005"), 3, 5),
        ("999999999999.999", 3, 999_999_999_999_999),
        ("0.0001", 4, 1),
    ],
)
def test_an_amount_becomes_the_minor_units_it_was_meant_to_be(value: object, decimals: int, minor: int) -> None:
    assert minor_units(value, decimals) == minor


@pytest.mark.parametrize(
    ("value", "decimals", "reason"),
    [
        (Decimal("0.005"), 2, "2 decimal places"),
        ("12.301", 2, "2 decimal places"),
        (Decimal("10.0000011"), 2, "2 decimal places"),
        ("10.00000100000000000000000000000000000000000000000001", 2, "2 decimal places"),
        (Decimal("0.5"), 0, "0 decimal places"),
        ("0.0005", 3, "3 decimal places"),
        (-1, 2, "negative"),
        ("-0.01", 2, "negative"),
        ("-1e-999999999", 2, "negative"),
        (Decimal("-0"), 2, "minus zero"),
        (Decimal("-0.00"), 2, "minus zero"),
        ("-0", 2, "minus zero"),
        (2**63, 2, "12 digits"),
        (1_000_000_000_000, 2, "12 digits"),
        ("1000000000000", 2, "12 digits"),
        (Decimal("1e12"), 2, "12 digits"),
        (Decimal("1e400"), 2, "12 digits"),
        (Decimal("1e999999999"), 2, "12 digits"),
        ("999999999999.9999999", 2, "12 digits"),
        ("999999999999.9999999", 0, "12 digits"),
        ("1e99999999999999999999999", 2, "exponent"),
        ("1e-99999999999999999999999", 2, "exponent"),
        (Decimal("NaN"), 2, "finite"),
        (Decimal("sNaN"), 2, "finite"),
        (Decimal("Infinity"), 2, "finite"),
        (True, 2, "a number"),
        (None, 2, "a number"),
        (12.5, 2, "a number"),
        ([], 2, "a number"),
        ({"amount": 1}, 2, "a number"),
        ("", 2, "plain number"),
        ("NaN", 2, "plain number"),
        ("Infinity", 2, "plain number"),
        ("infinity", 2, "plain number"),
        ("1,000.00", 2, "plain number"),
        ("1.000,00", 2, "plain number"),
        ("1_000", 2, "plain number"),
        ("\uff11\uff12", 2, "plain number"),
        ("\u0663", 2, "plain number"),
        (" 12", 2, "plain number"),
        ("12\n", 2, "plain number"),
        ("+12", 2, "plain number"),
        ("012", 2, "plain number"),
        (".5", 2, "plain number"),
        ("5.", 2, "plain number"),
        ("1e", 2, "plain number"),
        ("0x10", 2, "plain number"),
        ("12 EUR", 2, "plain number"),
    ],
)
def test_what_is_no_amount_is_refused_with_its_reason(value: object, decimals: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        minor_units(value, decimals)


@given(minor=st.integers(0, 10**14 - 1), decimals=st.integers(0, 4))
def test_every_whole_number_of_minor_units_survives_being_written_down(minor: int, decimals: int) -> None:
    minor = min(minor, 10 ** (12 + decimals) - 1)
    assert minor_units(f"{Decimal(minor).scaleb(-decimals):f}", decimals) == minor


@given(cents=st.integers(0, 10**9))
def test_the_noise_of_a_float_does_not_change_an_amount(cents: int) -> None:
    noisy = cents / 100 + 0.1 - 0.1
    assert minor_units(Decimal(repr(noisy)), 2) == cents
    assert minor_units(Decimal(noisy), 2) == cents


_LITERALS = st.from_regex(r"\A(0|[1-9][0-9]{0,13})(\.[0-9]{1,9}(0{30}[0-9])?)?(e[+-]?[0-9]{1,2})?\Z")


@given(literal=_LITERALS, decimals=st.integers(0, 4))
def test_amounts_agree_with_exact_fractions(literal: str, decimals: int) -> None:
    value = Fraction(Decimal(literal))
    nearest = round(value * 10**decimals)
    near_enough = abs(value - Fraction(nearest, 10**decimals)) <= Fraction(TOLERANCE)
    expected = nearest if near_enough and nearest < 10 ** (12 + decimals) else None
    try:
        minor: int | None = minor_units(literal, decimals)
    except ValueError:
        minor = None
    assert minor == expected
