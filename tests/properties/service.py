"""The real admission, storage and folds on an SQLite database in memory, driven without broker or threads."""

from collections.abc import Sequence
from datetime import date

from customer_actors.domain.events import Event, Message, Outcome, Rejected, from_us
from customer_actors.domain.routing import ACTORS
from customer_actors.domain.rules import Rules
from customer_actors.groups.advance import advance
from customer_actors.storage.actors import Stores
from customer_actors.storage.append import EVENT, AppendPolicy, Incoming, append
from customer_actors.storage.database import Database
from customer_actors.storage.rules import number_of
from customer_actors.storage.schema import migrate
from customer_actors.storage.sqlite import SqliteDatabase
from customer_actors.storage.views import customer_view
from tests.model.strategies import HOUR_US, START_US

NOW_US = START_US + 100 * HOUR_US
TODAY: date = from_us(NOW_US).date()


class Service:
    """One process's worth of the service; `close` it."""

    def __init__(self, rules: Rules, currency: str | None = None, round_events: int = 500) -> None:
        self.database: Database = SqliteDatabase(":memory:")
        migrate(self.database)
        self.rules = rules
        self.policy = AppendPolicy(number_of(self.database, rules, NOW_US), rules.tiers[0].name, currency)
        self.stores = Stores(self.database, rules, round_events)

    def receive(self, batch: Sequence[Message | Rejected]) -> list[Outcome]:
        """Append one batch and advance every actor to the heads."""
        incoming = [Incoming(None, message) for message in batch]
        outcomes = [decision.outcome for decision in append(self.database, incoming, self.policy, NOW_US).decisions]
        for actor in ACTORS:
            store = self.stores.of(actor)
            advance(store, store.all_behind(), now_us=lambda: NOW_US)
        return outcomes

    def customers(self) -> list[tuple[str, str]]:
        rows = self.database.query("SELECT organization_id, customer_id FROM customer")
        return sorted((row[0], row[1]) for row in rows)

    def state(self, organization_id: str, customer_id: str) -> dict[str, object]:
        """What `show --json` prints, without what the model does not know."""
        view = customer_view(self.database, self.rules, organization_id, customer_id)
        assert view is not None
        assert view.pop("held") == []
        if view["segment"] is not None:
            del view["segment"]["calculated_at"]
        return view

    def stream(self, organization_id: str, customer_id: str) -> list[Event]:
        """The stored events of one customer in position order."""
        rows = self.database.query(
            f"SELECT {', '.join('e.' + n for n in EVENT.names)} FROM event e JOIN customer c ON c.id = e.customer "
            "WHERE c.organization_id = ? AND c.customer_id = ? ORDER BY e.position",
            (organization_id, customer_id),
        )
        return [Event._make(row) for row in rows]

    def states(self) -> dict[tuple[str, str], dict[str, object]]:
        return {key: self.state(*key) for key in self.customers()}

    def close(self) -> None:
        self.database.release()
