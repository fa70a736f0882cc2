"""Verbs that ask for something: each appends a request to a customer's stream and prints what became of it [C9]."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from customer_actors.cli.common import (
    OK,
    PROBLEMS,
    json_option,
    leave,
    opened,
    organization_option,
    print_json,
    printable,
    settings_for_command,
)
from customer_actors.cli.drift import credit_drift
from customer_actors.cli.signing import operator_name, operator_option
from customer_actors.commands import (
    CommandResult,
    Service,
    Signed,
    change_limit,
    charge_credit,
    lift_credit,
    make_service,
    open_credit,
    redeem_points,
    suspend_credit,
)
from customer_actors.domain.money import minor_units
from customer_actors.errors import UsageError
from customer_actors.settings import Settings
from customer_actors.storage.overdue import forget_answered

_WHOLE_NUMBER = re.compile(r"[0-9]{1,18}")


def _signed(verb: Callable[..., None]) -> Callable[..., None]:
    """Who and why: recorded in the customer's stream [C7]."""
    why = click.option("--reason", metavar="TEXT", help="Why; recorded with the event.")
    return why(operator_option(verb))


@click.group()
def credit() -> None:
    """Credit accounts: open one, charge an order to one, change its limit, suspend it, lift that; and their drift.

    The outcome is printed: applied or duplicate (exit 0), refused or waiting behind a held event (exit 1).

    Example: customer-actors credit open C000042 --limit 1000.00
    """


@credit.command("open")
@click.argument("customer_id", metavar="CUSTOMER")
@click.option("--limit", required=True, metavar="AMOUNT", help="Credit limit, such as 1000.00; may be 0.")
@click.option("--terms", metavar="DAYS", help="Days until a sale is due.  [default: as set]")
@organization_option
@json_option
def credit_open(customer_id: str, limit: str, terms: str | None, organization_id: str, as_json: bool) -> None:
    """Open a credit account. A customer that is not known yet is created.

    Money that waits in suspense is applied at once.

    Example: customer-actors credit open C000042 --limit 1000.00 --terms 14
    """
    settings = settings_for_command()
    limit_minor = _amount("--limit", limit, settings)
    days = settings.default_terms_days if terms is None else _whole("--terms", terms)
    with _service(settings) as running:
        result = open_credit(running, organization_id, customer_id, limit_minor, days)
    _report(result, f"credit account of {customer_id}", as_json)


@credit.command("charge")
@click.argument("customer_id", metavar="CUSTOMER")
@click.argument("order_id", metavar="ORDER")
@click.argument("amount", metavar="AMOUNT")
@organization_option
@json_option
def credit_charge(customer_id: str, order_id: str, amount: str, organization_id: str, as_json: bool) -> None:
    """Charge an order to a customer's credit account.

    Refused beyond the credit available and on a suspended account. The same order and amount again is a duplicate.

    Example: customer-actors credit charge C000042 O-00001234 199.90
    """
    settings = settings_for_command()
    amount_minor = _amount("AMOUNT", amount, settings)
    with _service(settings) as running:
        result = charge_credit(running, organization_id, customer_id, order_id, amount_minor)
    _report(result, f"charge of order {order_id}", as_json)


@credit.command("limit")
@click.argument("customer_id", metavar="CUSTOMER")
@click.argument("amount", metavar="AMOUNT")
@_signed
@organization_option
@json_option
def credit_limit(
    customer_id: str, amount: str, operator: str | None, reason: str | None, organization_id: str, as_json: bool
) -> None:
    """Change the limit of a customer's credit account.

    It may be less than what is used already: then nothing is left to charge until enough is paid.

    Example: customer-actors credit limit C000042 2500.00
    """
    settings = settings_for_command()
    limit_minor, signed = _amount("AMOUNT", amount, settings), Signed(operator_name(operator), reason)
    with _service(settings) as running:
        result = change_limit(running, organization_id, customer_id, limit_minor, signed)
    _report(result, f"credit limit of {customer_id}", as_json)


@credit.command("suspend")
@click.argument("customer_id", metavar="CUSTOMER")
@_signed
@organization_option
@json_option
def credit_suspend(
    customer_id: str, operator: str | None, reason: str | None, organization_id: str, as_json: bool
) -> None:
    """Suspend a customer's credit account: it takes money, but no charge.

    The nightly run never lifts a suspension made by hand; `credit lift` does.

    Example: customer-actors credit suspend C000042 --reason "cheque came back"
    """
    settings = settings_for_command()
    signed = Signed(operator_name(operator), reason)
    with _service(settings) as running:
        result = suspend_credit(running, organization_id, customer_id, signed)
    _report(result, f"suspension of {customer_id}", as_json)


@credit.command("lift")
@click.argument("customer_id", metavar="CUSTOMER")
@_signed
@organization_option
@json_option
def credit_lift(
    customer_id: str, operator: str | None, reason: str | None, organization_id: str, as_json: bool
) -> None:
    """Lift the suspension of a customer's credit account, made by hand or by night.

    While a sale is still overdue for too long, the next nightly run suspends it again.

    Example: customer-actors credit lift C000042
    """
    settings = settings_for_command()
    signed = Signed(operator_name(operator), reason)
    with _service(settings) as running:
        result = lift_credit(running, organization_id, customer_id, signed)
    _report(result, f"lifting of {customer_id}", as_json)


@click.group()
def loyalty() -> None:
    """Loyalty points: redeem some.

    The outcome is printed: applied or duplicate (exit 0), refused or waiting behind a held event (exit 1).

    Example: customer-actors loyalty redeem C000042 100 VOUCHER-7
    """


@loyalty.command("redeem")
@click.argument("customer_id", metavar="CUSTOMER")
@click.argument("points", metavar="POINTS")
@click.argument("reference", metavar="REFERENCE")
@organization_option
@json_option
def loyalty_redeem(customer_id: str, points: str, reference: str, organization_id: str, as_json: bool) -> None:
    """Redeem points of a customer under a reference of your own, once.

    Refused beyond the balance. A reference is used up by its first request, even by a refused one.

    Example: customer-actors loyalty redeem C000042 100 VOUCHER-7
    """
    settings = settings_for_command()
    wanted = _whole("POINTS", points)
    with _service(settings) as running:
        result = redeem_points(running, organization_id, customer_id, wanted, reference)
    _report(result, f"redemption {reference}", as_json)


credit.add_command(credit_drift)

VERBS = (credit, loyalty)


@contextmanager
def _service(settings: Settings) -> Iterator[Service]:
    with opened(settings) as database:
        service = make_service(settings, database)
        yield service
        if settings.rabbitmq_url is None:  # no worker sweeps here
            forget_answered(service.stores, service.clock())


def _amount(name: str, text: str, settings: Settings) -> int:
    try:
        return minor_units(text, settings.currency_decimals)
    except ValueError as error:
        raise UsageError(f"{name} {printable(text)!r} {error}") from None


def _whole(name: str, text: str) -> int:
    # int() would take "1_000", " 7" and digits of other scripts.
    if not _WHOLE_NUMBER.fullmatch(text):
        raise UsageError(f"{name} {printable(text)!r} must be a whole number in plain digits, such as 100")
    return int(text)


def _report(result: CommandResult, what: str, as_json: bool) -> None:
    if as_json:
        print_json(result._asdict())
    else:
        place = f" (position {result.position})" if result.position is not None else ""
        reason = f": {result.reason}" if result.reason is not None else ""
        click.echo(printable(f"{what}: {result.outcome}{place}{reason}"))
    leave(OK if result.outcome in ("applied", "duplicate") else PROBLEMS)
