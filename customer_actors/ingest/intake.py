"""From received bytes to a committed batch: decode, append, ring. The same for RabbitMQ, files and standard input."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import structlog

from customer_actors.domain.admission import Decision
from customer_actors.domain.envelope import DecodePolicy, Received, decode
from customer_actors.domain.events import Message, Outcome, Rejected
from customer_actors.errors import DataFault
from customer_actors.settings import Settings
from customer_actors.storage.append import Appended, AppendPolicy, Incoming, append
from customer_actors.storage.bells import Bell
from customer_actors.storage.database import Database
from customer_actors.storage.rules import number_of

log = structlog.get_logger(__name__)


class Policies(NamedTuple):
    """How this process decodes and appends."""

    decode: DecodePolicy
    append: AppendPolicy


def policies(settings: Settings, database: Database, now_us: int) -> Policies:
    """The policies of these settings; numbers the business rules if they are new [A10]."""
    rules = settings.rules()
    return Policies(
        DecodePolicy(settings.currency_decimals, settings.naive_timestamps),
        AppendPolicy(number_of(database, rules, now_us), rules.tiers[0].name, settings.currency),
    )


class Intake:
    """Takes batches in delivery order, from one thread at a time."""

    def __init__(
        self, database: Database, policies: Policies, ring: Callable[[Bell], None], clock: Callable[[], int]
    ) -> None:
        self.database = database
        self.policies = policies
        self.outcomes: Counter[Outcome] = Counter()
        self._ring = ring
        self._clock = clock

    def take(self, batch: Sequence[Received]) -> list[Decision]:
        """Commit the outcome of every message of the batch, then ring one bell. Returning means committed.

        Raises:
            Outage: nothing of the batch, or only a first part of it, was committed; deliver all of it again.
        """
        incoming = [Incoming(received, decode(received, self.policies.decode)) for received in batch]
        appended = self._append(incoming)
        outcomes = Counter(decision.outcome for decision in appended.decisions)
        self.outcomes.update(outcomes)
        log.debug("batch committed", **{outcome.value: count for outcome, count in outcomes.items()})
        self._ring(appended.bell)
        return appended.decisions

    def command(self, message: Message) -> Decision:
        """Append one command [C9]; its refusal by the registry is the decision's `rejected`."""
        appended = append(self.database, [Incoming(None, message)], self.policies.append, self._clock())
        self._ring(appended.bell)
        return appended.decisions[0]

    def _append(self, incoming: list[Incoming]) -> Appended:
        """Append a batch; when the database refuses the data itself, halve it until the one message is found."""
        try:
            return append(self.database, incoming, self.policies.append, self._clock())
        except DataFault as fault:
            if len(incoming) == 1:
                refused = Rejected("database_refused", f"{fault}; report this: admission should have caught it")
                return append(
                    self.database, [incoming[0]._replace(decoded=refused)], self.policies.append, self._clock()
                )
        middle = len(incoming) // 2
        first, second = self._append(incoming[:middle]), self._append(incoming[middle:])
        bell = {
            key: sorted({*first.bell.get(key, ()), *second.bell.get(key, ())}) for key in {**first.bell, **second.bell}
        }
        return Appended(first.decisions + second.decisions, bell)
