"""`quarantine`: messages that never entered a stream, why, and how they are admitted after a fix."""

import json
import re
from typing import Any, Final, NoReturn

import click

from customer_actors.cli.common import (
    OK,
    PROBLEMS,
    json_option,
    leave,
    opened,
    print_json,
    printable,
    settings_for_command,
)
from customer_actors.cli.signing import action_of, dry_run_option, limit_option, now_us, signed
from customer_actors.cli.summary import print_table
from customer_actors.domain.envelope import MAX_DEPTH, UNSTORABLE
from customer_actors.domain.events import iso
from customer_actors.errors import RefusedError, UsageError
from customer_actors.ingest.again import Again, admit_again
from customer_actors.ingest.intake import policies
from customer_actors.settings import Settings
from customer_actors.storage import quarantine as store
from customer_actors.storage.actors import Stores
from customer_actors.storage.bells import Bell
from customer_actors.storage.database import Database
from customer_actors.storage.draining import drain_bell
from customer_actors.storage.operators import Action, record
from customer_actors.storage.overdue import forget_answered
from customer_actors.storage.quarantine import Code, Filter, Kept

SHOWN_BYTES: Final = 4_096
"""Of a body that is no JSON; --json prints all that is kept."""
_LARGEST_NUMBER: Final = 2**63 - 1


@click.group()
def quarantine() -> None:
    """Messages that cannot be used, kept as they came with the reason: look, and after a fix admit them again.

    Example: customer-actors quarantine list
    """


@quarantine.command("list")
@click.option("--code", metavar="CODE", help="Only messages refused under this code.")
@click.option("--all", "resolved", is_flag=True, help="Those admitted after a fix as well.")
@limit_option
@json_option
def quarantine_list(code: str | None, resolved: bool, limit: int, as_json: bool) -> None:
    """How many messages there are of each code, and the ones seen last.

    Example: customer-actors quarantine list --code bad_json --limit 50
    """
    wanted = Filter(code=_code(code), resolved=resolved)
    with opened(settings_for_command()) as database:
        codes = store.codes(database, wanted)
        messages = store.newest(database, wanted, limit)
    view = {
        "codes": [_code_figures(one) for one in codes],
        "messages": [_figures(message) for message in messages],
        "more_messages": sum(one.distinct for one in codes) - len(messages),
    }
    if as_json:
        print_json(view)
    else:
        _print_list(view)


def _code_figures(one: Code) -> dict[str, Any]:
    return {
        "code": one.code,
        "distinct": one.distinct,
        "seen": one.seen,
        "first_seen": iso(one.first_seen_us),
        "last_seen": iso(one.last_seen_us),
        "resolved": one.resolved,
    }


def _figures(message: Kept) -> dict[str, Any]:
    return {
        "id": message.id,
        "code": message.code,
        "reason": message.reason,
        "routing_key": message.routing_key,
        "content_encoding": message.content_encoding,
        "organization_id": message.organization_id,
        "seen": message.seen,
        "first_seen": iso(message.first_seen_us),
        "last_seen": iso(message.last_seen_us),
        "resolved": None if message.resolved_us is None else iso(message.resolved_us),
        "outcome": message.outcome,
        "bytes": message.size,
    }


def _print_list(view: dict[str, Any]) -> None:
    if not view["codes"]:
        click.echo("nothing is in quarantine")
        return
    for title, names, rows in (
        ("In quarantine, by code", ("code", "distinct", "seen", "first_seen", "last_seen", "resolved"), view["codes"]),
        ("Seen last", ("id", "code", "seen", "last_seen", "outcome", "reason"), view["messages"]),
    ):
        cells = [["-" if row[name] is None else row[name] for name in names] for row in rows]
        print_table(title, [name.replace("_", " ") for name in names], cells)
    if view["more_messages"]:
        click.echo(f"and {view['more_messages']} more messages: see them with --limit, or one code with --code")
    retry = "customer-actors quarantine retry --code CODE --reason TEXT"
    click.echo(f"\nlook: customer-actors quarantine show ID; after a fix: {retry}")


@quarantine.command("show")
@click.argument("number", metavar="ID", type=click.IntRange(1, _LARGEST_NUMBER))
@json_option
def quarantine_show(number: int, as_json: bool) -> None:
    """One message: why it is here, how often it came, and its body as it came.

    Example: customer-actors quarantine show 17
    """
    with opened(settings_for_command()) as database:
        found = store.kept(database, Filter([number], resolved=True), 0, 1)
    if not found:
        raise RefusedError(f"there is no message {number} in quarantine; `customer-actors quarantine list` has them")
    (message,) = found
    figures = _figures(message) | {"cut": message.cut}
    if as_json:
        text = _text_of(message.body)
        print_json(figures | {"body": text, "body_hex": message.body.hex() if text is None else None})
        return
    figures["bytes"] = f"{message.size} kept, the rest was cut off" if message.cut else message.size
    for name, value in figures.items():
        if value is not None and name != "cut":
            click.echo(f"{name.replace('_', ' '):<18}{printable(str(value))}")
    click.echo()
    for line in _body_lines(message.body):
        click.echo(printable(line))


def _text_of(body: bytes) -> str | None:
    try:
        return body.decode()
    except UnicodeDecodeError:
        return None


def _body_lines(body: bytes) -> list[str]:
    """The body to be read by a person: JSON indented, other text line by line, anything else as bytes in hex."""
    text = _text_of(body)
    shown = body[:SHOWN_BYTES]
    more = f"... and {len(body) - SHOWN_BYTES} bytes more (--json has them)" if len(body) > SHOWN_BYTES else ""
    if text is None:
        return [*(shown[at : at + 16].hex(" ") for at in range(0, len(shown), 16)), *filter(None, [more])]
    if _is_json(text):
        return indented(text)
    return [*shown.decode(errors="ignore").splitlines(), *filter(None, [more])]


def _is_json(text: str) -> bool:
    if text.count("{") + text.count("[") > 100 * MAX_DEPTH:  # indenting such a nest would fill the screen with blanks
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


_TOKENS: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},:]|[^\s\[\]{},:"]+')


def indented(text: str) -> list[str]:
    """JSON on lines of its own: every key, number and text exactly as it came, keys that come twice included."""
    lines, depth = [""], 0
    for token in _TOKENS.findall(text):
        if token in ("}", "]"):
            depth -= 1
            lines.append("  " * depth + token)
        elif token in ("{", "["):
            depth += 1
            lines[-1] += token
            lines.append("  " * depth)
        elif token == ",":
            lines[-1] += token
            lines.append("  " * depth)
        else:
            lines[-1] += ": " if token == ":" else token
    return lines


@quarantine.command("retry")
@click.argument("ids", metavar="[ID]...", nargs=-1, type=click.IntRange(1, _LARGEST_NUMBER))
@click.option("--all", "everything", is_flag=True, help="Every message that waits.")
@click.option("--code", metavar="CODE", help="Those refused under this code.")
@click.option("--dead-letters", is_flag=True, help="Instead: put what the broker gave up back into its queues.")
@signed
@dry_run_option
@json_option
def quarantine_retry(
    ids: tuple[int, ...],
    everything: bool,
    code: str | None,
    dead_letters: bool,
    reason: str,
    operator: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Admit messages again, exactly as if they came now: after a fix of the settings or of the code.

    What is admitted is no longer in quarantine; what is refused again stays, with its reason of now (exit 1). Asking
    twice does no harm: the second time they are duplicates.

    Example: customer-actors quarantine retry --code bad_currency --reason "currency corrected in the settings"
    """
    if (bool(ids) + everything + (code is not None) + dead_letters) != 1:
        raise UsageError("name the messages: ID..., --code CODE, --all or --dead-letters")
    settings, by = settings_for_command(), action_of("quarantine retry", operator, reason)
    if dead_letters:
        _retry_dead_letters(settings, by._replace(detail="dead letters"), dry_run, as_json)
    wanted = Filter(sorted(set(ids)) if ids else None, _code(code))
    with opened(settings) as database:
        found = store.count(database, wanted)
        if ids and found < len(wanted.ids or ()):
            raise RefusedError("not all of these messages wait in quarantine; nothing was changed")
        named = "all" if everything else f"code {code}" if code is not None else f"messages {_names(ids)}"
        done = _retry(database, settings, wanted, by._replace(detail=f"{named}: {found}"), dry_run)
    view = {
        "dry_run": dry_run,
        "tried": done.outcomes.total(),
        "outcomes": {outcome.value: count for outcome, count in sorted(done.outcomes.items())},
        "refused": [
            {"code": code, "messages": count, "reason": done.reasons[code]}
            for code, count in done.refused.most_common()
        ],
    }
    if as_json:
        print_json(view)
    else:
        _print_retried(view)
    leave(PROBLEMS if done.refused else OK)


def _retry_dead_letters(settings: Settings, by: Action, dry_run: bool, as_json: bool) -> NoReturn:
    """Recorded before it begins, for the broker commits message by message."""
    if settings.rabbitmq_url is None:
        raise UsageError("dead letters are in the broker: set RABBITMQ_URL")
    from customer_actors.ingest import dead_letters  # only who has a broker pays for the import

    with opened(settings) as database:
        if not dry_run:
            with database.transaction():
                record(database, by, now_us())
    done = dead_letters.retry(settings.rabbitmq_url, dry_run=dry_run)
    if as_json:
        print_json({"dry_run": dry_run, "dead_letters": done._asdict()})
    else:
        would = "would be" if dry_run else "were"
        click.echo(f"{done.found} dead letters; {done.put_back} {would} put back, {done.kept} stay")
        for why, count in done.reasons.items():
            click.echo(printable(f"{count} stay: {why}"))
    leave(PROBLEMS if done.kept else OK)


def _names(ids: tuple[int, ...]) -> str:
    return ", ".join(map(str, ids[:20])) + (f" and {len(ids) - 20} more" if len(ids) > 20 else "")


def _retry(database: Database, settings: Settings, wanted: Filter, by: Action, dry_run: bool) -> Again:
    """Admit, and without workers advance whom it concerns here."""
    stores = Stores(database, settings.rules(), settings.round_events)
    alone = settings.rabbitmq_url is None

    def ring(bell: Bell) -> None:
        if alone:
            drain_bell(stores, bell, now_us)

    done = admit_again(
        database,
        wanted,
        lambda: policies(settings, database, now_us()),
        by,
        clock=now_us,
        ring=ring,
        dry_run=dry_run,
    )
    if alone and not dry_run and done.outcomes.total() > done.refused.total():
        forget_answered(stores, now_us())
    return done


def _print_retried(view: dict[str, Any]) -> None:
    verb = "would become" if view["dry_run"] else "became"
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in view["outcomes"].items())
    click.echo(f"{view['tried']} tried" + (f"; {verb}: {outcomes}" if outcomes else ""))
    for one in view["refused"]:
        click.echo(printable(f"{one['messages']} stay with {one['code']}, for example: {one['reason']}"))
    if view["dry_run"]:
        click.echo("nothing was changed")


def _code(code: str | None) -> str | None:
    if code is not None and (not code or UNSTORABLE.search(code)):
        raise UsageError("--code must be a code such as bad_json; `customer-actors quarantine list` has them")
    return code


VERBS = (quarantine,)
