"""What the storage tests share: messages with a body, batches, advancing without a broker, and what the tables hold."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import combinations, pairwise
from threading import Thread
from typing import Any, TypeVar

from customer_actors.domain.envelope import Received
from customer_actors.domain.events import Event, Message, Outcome, Rejected, from_us
from customer_actors.domain.routing import ACTORS
from customer_actors.domain.rules import Rules
from customer_actors.groups.advance import Report, advance
from customer_actors.storage.actors import Stores
from customer_actors.storage.append import EVENT, Appended, AppendPolicy, Incoming, append
from customer_actors.storage.database import Database, Row
from customer_actors.storage.rules import number_of
from customer_actors.storage.views import customer_view
from tests.model.examples import DAY_US, JUNE_1_US
from tests.model.reference import State

BUDGET_S = 10.0
"""Far more than any test needs: an advance that never ends fails its test instead of hanging it."""
NOW_US = JUNE_1_US + 10 * DAY_US
TODAY: date = from_us(NOW_US).date()
RULES = Rules(timezone="Europe/Berlin")

Item = TypeVar("Item")
Sent = TypeVar("Sent", Message, Message | Rejected)

Dump = dict[str, list[Row]]
"""Table -> rows, sorted."""


def body_of(message: Message) -> bytes:
    """A body that differs wherever the messages do, as a publisher's would; times of receipt are not in it."""
    return json.dumps([str(value) for value in message._replace(received_at_us=0, payload="")]).encode()


def incoming(message: Message | Rejected) -> Incoming:
    """The message as it comes from a queue, so that a refused one is kept."""
    if isinstance(message, Rejected):
        return Incoming(Received(f"{message.organization_id}: {message.reason}".encode(), None, NOW_US), message)
    body = body_of(message)
    return Incoming(Received(body, message.type.value, NOW_US), message._replace(payload=body.decode()))


@dataclass
class Storage:
    """One process's worth of the service without broker or threads."""

    database: Database
    rules: Rules = RULES
    currency: str | None = None

    def append(self, messages: Iterable[Message | Rejected], now_us: int = NOW_US) -> Appended:
        """One batch."""
        policy = AppendPolicy(number_of(self.database, self.rules, now_us), self.rules.tiers[0].name, self.currency)
        return append(self.database, [incoming(message) for message in messages], policy, now_us)

    def receive(self, *messages: Message | Rejected) -> list[Outcome]:
        """The outcomes of one batch."""
        return [decision.outcome for decision in self.append(messages).decisions]

    def stores(self, round_events: int = 512) -> Stores:
        return Stores(self.database, self.rules, round_events)

    def advance(
        self, actor: str, customers: Sequence[int] | None = None, *, round_events: int = 512, now_us: int = NOW_US
    ) -> Report:
        """One actor, for these customers or all, to their heads."""
        store = self.stores(round_events).of(actor)
        groups = store.all_behind() if customers is None else customers
        report = advance(store, groups, now_us=lambda: now_us, budget_s=BUDGET_S)
        assert report.remaining == []
        return report

    def settle(self, *messages: Message, round_events: int = 512) -> list[Outcome]:
        """One batch, then every actor to the heads."""
        outcomes = self.receive(*messages) if messages else []
        for actor in ACTORS:
            self.advance(actor, round_events=round_events)
        return outcomes

    def number(self, customer_id: str = "c1", organization_id: str = "org-1") -> int:
        """The internal number of a customer."""
        sql = "SELECT id FROM customer WHERE organization_id = ? AND customer_id = ?"
        number: int = self.database.query(sql, (organization_id, customer_id))[0][0]
        return number

    def value(self, sql: str, *parameters: object) -> Any:
        """The only value of a query."""
        ((value,),) = self.database.query(sql, parameters)
        return value

    def events(self, customer_id: str = "c1", organization_id: str = "org-1") -> list[Event]:
        """One customer's stream in position order."""
        sql = f"SELECT {', '.join(EVENT.names)} FROM event WHERE customer = ? ORDER BY position"
        return [Event._make(row) for row in self.database.query(sql, (self.number(customer_id, organization_id),))]

    def customers(self) -> list[tuple[str, str]]:
        return self.database.query("SELECT organization_id, customer_id FROM customer ORDER BY 1, 2")


def splits(messages: Sequence[Item]) -> Iterator[list[Sequence[Item]]]:
    """Every way to cut the messages into batches, the whole as one batch first."""
    inner = range(1, len(messages))
    for count in range(len(messages)):
        for cuts in combinations(inner, count):
            bounds: list[int] = [0, *cuts, len(messages)]
            yield [messages[start:end] for start, end in pairwise(bounds)]


def in_organization(messages: Iterable[Sent], organization_id: str) -> list[Sent]:
    """The same messages, sent by another organization."""
    return [message._replace(organization_id=organization_id) for message in messages]


def dump(database: Database, *without: str) -> Dump:
    """Everything in the database but these tables."""
    tables = sorted({*database.engine.get_tables()} - {*without})
    return {table: _rows(database, f"SELECT * FROM {table}")[1] for table in tables}


def organization_dump(database: Database, organization_id: str) -> Dump:
    """Everything of one organization, with internal numbers and its own name taken out, so that two can be compared."""
    result: Dump = {}
    for table in sorted(database.engine.get_tables()):
        names = _rows(database, f"SELECT * FROM {table} WHERE 1 = 0")[0]
        if "organization_id" in names:
            sql, leading = f"SELECT t.* FROM {table} t WHERE t.organization_id = ?", []
        elif names[0] == "customer":
            join = f"{table} t JOIN customer c ON c.id = t.customer"
            sql, leading = f"SELECT c.customer_id, t.* FROM {join} WHERE c.organization_id = ?", ["name"]
        else:
            continue
        kept = [i for i, name in enumerate([*leading, *names]) if name not in ("id", "customer", "digest")]
        rows = _rows(database, sql, organization_id)[1]
        result[table] = sorted((tuple(_nameless(row[i], organization_id) for i in kept) for row in rows), key=repr)
    return result


def _nameless(value: object, organization_id: str) -> object:
    if isinstance(value, bytes):
        return value.replace(organization_id.encode(), b"*")
    return value.replace(organization_id, "*") if isinstance(value, str) else value


def _rows(database: Database, sql: str, *parameters: object) -> tuple[list[str], list[Row]]:
    cursor = database.execute(sql, parameters)
    rows = [tuple(bytes(v) if isinstance(v, memoryview) else v for v in row) for row in cursor.fetchall()]
    return [column[0] for column in cursor.description], sorted(rows, key=repr)


def stored_state(storage: Storage, organization_id: str, customer_id: str) -> State:
    """What `show` tells of a customer, in the model's words."""
    view = customer_view(storage.database, storage.rules, organization_id, customer_id)
    assert view is not None
    if view["segment"] is not None:
        del view["segment"]["calculated_at"]
    return {name: view[name] for name in ("position", "stats", "loyalty", "segment", "credit")}


def at_once(database: Database, *works: Callable[[], object]) -> list[BaseException]:
    """Run each in a thread of its own, with a connection of its own; what they raised."""
    raised: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)
        finally:
            database.release()

    threads = [Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return raised
