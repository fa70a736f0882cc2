"""The stores of all actors by name: what an actor message advances."""

from typing import Final

from customer_actors.domain.rules import Rules
from customer_actors.groups.alarm import MassFailure
from customer_actors.storage.credit import CreditStore
from customer_actors.storage.database import Database
from customer_actors.storage.loyalty import LoyaltyStore
from customer_actors.storage.rules import RulesBook
from customer_actors.storage.segmentation import SegmentationStore
from customer_actors.storage.stats import StatsStore
from customer_actors.storage.stream_store import StreamStore

STREAM_STORES: Final[dict[str, type[StreamStore]]] = {
    store.actor: store for store in (StatsStore, LoyaltyStore, CreditStore)
}

Store = StreamStore | SegmentationStore


class Stores:
    """Makes the short-lived store of one advance."""

    def __init__(self, database: Database, rules: Rules, round_events: int = 2_000) -> None:
        self.database = database
        self.current_rules = rules
        self.book = RulesBook(database)
        self.alarm = MassFailure()
        self._round_events = round_events

    def of(self, actor: str) -> Store:
        """A fresh store of the actor with this name."""
        store: Store
        if actor == SegmentationStore.actor:
            store = SegmentationStore(self.database, self.current_rules)
        else:
            store = STREAM_STORES[actor](self.database, self.book, self._round_events)
        store.alarm = self.alarm
        return store
