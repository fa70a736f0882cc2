"""`doctor`: every problem by name, and the command that fixes it."""

from collections.abc import Sequence

import click

from customer_actors.cli.common import CANNOT_CONNECT, OK, PROBLEMS, json_option, leave, print_json, printable
from customer_actors.doctor import OK as WELL
from customer_actors.doctor import PROBLEM, WARNING, Finding, look_at_database
from customer_actors.errors import UsageError
from customer_actors.settings import load_settings
from customer_actors.telemetry import configure_logging, redact

_COLOURS = {PROBLEM: "red", WARNING: "yellow", WELL: None}


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Look at settings, database, broker and processes, name each problem, and print the command that fixes it.

    Nothing is changed. Exit 0: all is well, or there are warnings only; 1: there are problems; 4: neither database nor
    broker can be connected to.

    Example: customer-actors doctor --json
    """
    findings, code = _look()
    findings = [each._replace(found=redact(each.found), fix=[redact(line) for line in each.fix]) for each in findings]
    if as_json:
        print_json({"ok": code == OK, "checks": [each._asdict() for each in findings]})
    else:
        _print(findings)
    leave(code)


def _look() -> tuple[list[Finding], int]:
    try:
        settings = load_settings()
    except UsageError as error:
        return [
            Finding("settings", PROBLEM, str(error), ["edit .env    # or the environment variable it names"])
        ], PROBLEMS
    configure_logging("CRITICAL")  # what goes wrong is a finding
    findings = [Finding("settings", WELL, "can be read")]
    connected, found = look_at_database(settings)
    findings += found
    if settings.rabbitmq_url is None:
        findings.append(Finding("broker", WELL, "none: everything runs in one process (`customer-actors run`)"))
    else:
        from customer_actors.doctor_broker import look_at_broker  # only who has a broker pays for the import

        answered, found = look_at_broker(settings.rabbitmq_url)
        connected |= answered
        findings += found
    if not connected:
        return findings, CANNOT_CONNECT
    return findings, PROBLEMS if any(each.verdict == PROBLEM for each in findings) else OK


def _print(findings: Sequence[Finding]) -> None:
    for each in findings:
        line = printable(f"{each.verdict:<8} {each.name}: {each.found}")
        click.echo(click.style(line, fg=_COLOURS[each.verdict]))
        for number, command in enumerate(each.fix, 1):
            step = f"{number}. " if len(each.fix) > 1 else ""
            click.echo(printable(f"         -> {step}{command}"))
    counts = {verdict: sum(each.verdict == verdict for each in findings) for verdict in (PROBLEM, WARNING)}
    click.echo(f"{counts[PROBLEM]} problems, {counts[WARNING]} warnings, {len(findings)} checks")


VERBS = (doctor,)
