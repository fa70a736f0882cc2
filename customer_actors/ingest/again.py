"""Quarantined messages through the same admission once more, after a fix [A1]."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from customer_actors.domain.admission import Decision
from customer_actors.domain.envelope import decode
from customer_actors.domain.events import Outcome, Rejected
from customer_actors.errors import DataFault
from customer_actors.ingest.intake import Policies
from customer_actors.storage.append import AppendPolicy, Incoming, append
from customer_actors.storage.bells import Bell
from customer_actors.storage.database import Database
from customer_actors.storage.operators import Action, record
from customer_actors.storage.quarantine import Filter, Kept, kept, resolve

BATCH: Final = 100
"""Messages admitted in one transaction; each may have 64 KiB."""
CUT: Final = Rejected("too_large", "the body was too large to be kept whole; have it sent again in a smaller message")


@dataclass
class Again:
    """What became of the messages that were tried again."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    """Those that stay in quarantine, by their code of now."""
    reasons: dict[str, str] = field(default_factory=dict)
    """One reason for each of these codes."""

    def add(self, decision: Decision) -> None:
        """Count one message."""
        self.outcomes[decision.outcome] += 1
        if decision.rejected is not None:
            self.refused[decision.rejected.code] += 1
            self.reasons.setdefault(decision.rejected.code, decision.rejected.reason)


class _UndoneError(Exception):
    """Ends the transaction of a dry run."""


def admit_again(
    database: Database,
    wanted: Filter,
    policies: Callable[[], Policies],
    by: Action,
    *,
    clock: Callable[[], int],
    ring: Callable[[Bell], None],
    dry_run: bool = False,
) -> Again:
    """Decode and admit the messages kept, oldest batch first, and note what became of each.

    Batch by batch, admission and note in one transaction; the action is recorded with the first one. A dry run does
    the same and rolls every batch back, so it sees each batch without the ones before it.

    Raises:
        Outage: the batches before this one are committed; asking again goes on with the rest.
    """
    report, after, recorded = Again(), 0, dry_run
    while batch := kept(database, wanted, after, BATCH):
        after = batch[-1].id
        try:
            with database.transaction():
                decisions, bells = _admit(database, batch, policies(), clock())
                resolve(database, [*zip(batch, decisions, strict=True)], clock())
                if not recorded:
                    record(database, by, clock())
                if dry_run:
                    raise _UndoneError
        except _UndoneError:
            pass
        else:
            recorded = True
            for bell in bells:
                ring(bell)
        for decision in decisions:
            report.add(decision)
    return report


def _admit(
    database: Database, batch: Sequence[Kept], policies: Policies, now_us: int
) -> tuple[list[Decision], list[Bell]]:
    incoming = [
        # Without the raw message: it is kept already, and was not seen once more.
        Incoming(None, CUT if message.cut else decode(message.received, policies.decode))
        for message in batch
    ]
    return _append(database, incoming, policies.append, now_us)


def _append(
    database: Database, incoming: Sequence[Incoming], policy: AppendPolicy, now_us: int
) -> tuple[list[Decision], list[Bell]]:
    """Append; when the database refuses the data itself, halve until the one message is found, as ingest does."""
    try:
        appended = append(database, incoming, policy, now_us)
    except DataFault as fault:
        if len(incoming) == 1:
            return [Decision(Outcome.QUARANTINED, rejected=Rejected("database_refused", str(fault)))], []
    else:
        return appended.decisions, [appended.bell]
    middle = len(incoming) // 2
    first, second = (_append(database, part, policy, now_us) for part in (incoming[:middle], incoming[middle:]))
    return first[0] + second[0], first[1] + second[1]
