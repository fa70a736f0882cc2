"""Any body at all: one of the five outcomes, never an exception, and a refused one touches nothing else.

A few hundred bodies in `make test`, 20,000 in `make faults`; SEED replays them.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from customer_actors.actors.pipeline import now_us
from customer_actors.domain.envelope import Received
from customer_actors.domain.events import Outcome
from customer_actors.ingest.intake import Intake, policies
from customer_actors.ingest.topology import SOURCES
from customer_actors.settings import load_settings
from customer_actors.storage.opening import open_database
from customer_actors.storage.schema import migrate
from tests.domain.messages import CANCELLED, ORDER, PAYMENT, POS, message
from tests.faults.conftest import ALL
from tests.faults.table import SEED
from tests.storage.support import Dump, dump

BODIES: Final = {"sqlite": 20_000, "postgresql": 4_000} if ALL else {"sqlite": 400, "postgresql": 400}
"""Fewer where a comparison of everything takes ten times as long."""
FRESH_AFTER: Final = 100
"""Accepted messages after which an empty database is taken: the comparison reads all of it."""

_VALUES: Final[tuple[Any, ...]] = (
    None, True, False, "", " ", "  x", "x" * 65, "1,000.00", "1_000", "１２", "0.005", "-0", "1e400", "NaN", "Infinity",  # noqa: RUF001
    0, -1, -0.0, 0.1, 0.30000000000000004, 2**63, 10**13, 1e400, float("nan"), 12.345, [], {}, [[]], {"id": 1}, "\0",
    "\ud800", "'; DROP TABLE event; --", "{0.__class__}", "__proto__", "=cmd()", "\r\nx", "\x1b[31mred", "<b>x</b>",
    "2025-06-01T12:00:00", "2025-06-01T12:00:00Z", "0000-01-01T00:00:00Z", "9999-12-31T23:59:59Z",
    "20000-01-01T00:00:00Z", 1748779200, "infinity", "EUR", "eur", "USD", "credit", "order.completed", "unknown",
)  # fmt: skip
"""What publishers have sent or could send in any field (docs/guarantees.md, input that must not hurt)."""
_FIELDS: Final = (
    *("customer_id", "order_id", "transaction_id", "total_amount", "amount", "payment_reference", "currency"),
    *("totals", "completed_at", "cancelled_at", "paid_at", "payment_method", "pos_transaction_id", "extra"),
)
_ENVELOPE: Final = ("event", "event_id", "version", "timestamp", "organization_id", "correlation_id", "service", "data")
_TEXTS: Final = (
    b"\xef\xbb\xbf",
    b"\xff",
    b"\0",
    b"{",
    b"}",
    b'"',
    b",",
    b"1e400",
    b"NaN",
    b"[" * 21,
    b"[" * 6_000,
    b"9" * 5_000,
)

ROUTING_KEYS: Final = (None, "", "order.unknown", *(str(key) for source in SOURCES for key in source.routing_keys))

_json = st.recursive(
    st.sampled_from(_VALUES) | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def _bent(draw: st.DrawFn) -> bytes:
    """A documented message with some fields replaced, added or taken out."""
    document = message(draw(st.sampled_from((ORDER, CANCELLED, POS, PAYMENT))))
    if draw(st.integers(0, 9)) == 0:
        document["data"].pop("customer_id", None)
    document["data"] = {key: f"{value}{draw(st.integers(0, 9))}" if key.endswith("_id") else value
                        for key, value in document["data"].items()}  # fmt: skip
    for field in draw(st.lists(st.sampled_from(_FIELDS), max_size=3)):
        document["data"][field] = draw(_json)
    for field in draw(st.lists(st.sampled_from(_ENVELOPE), max_size=2)):
        document[field] = draw(_json)
    for field in draw(st.lists(st.sampled_from(sorted(document)), max_size=1)):
        del document[field]
    return json.dumps(document).encode("utf-8", "surrogatepass")


@st.composite
def _spliced(draw: st.DrawFn) -> bytes:
    """A documented message whose text was damaged on the way."""
    body = draw(_bent())
    at = draw(st.integers(0, len(body)))
    return body[:at] + draw(st.sampled_from(_TEXTS)) + body[at + draw(st.integers(0, 30)) :]


_bodies = st.one_of(
    _bent(),
    _bent(),
    _spliced(),
    st.binary(max_size=100),
    _json.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")),
    st.integers(65_530, 65_560).map(lambda size: b'{"event": "' + b"x" * size + b'"}'),
)


class _Shop:
    """A database that is replaced by an empty one now and then."""

    def __init__(self, kind: str, new_url: Callable[[], str]) -> None:
        self.bodies = BODIES[kind]
        self._new_url = new_url
        self.outcomes: Counter[Outcome] = Counter()
        self._fresh()

    def _fresh(self) -> None:
        self._accepted = 0
        chosen = load_settings({"DATABASE_URL": self._new_url()})
        self._database = open_database(chosen.database_url)
        migrate(self._database)
        self._intake = Intake(self._database, policies(chosen, self._database, now_us()), lambda _: None, now_us)
        self._before = self._stored()

    def _stored(self) -> Dump:
        return dump(self._database, "quarantine")

    def take(self, received: Received) -> None:
        (decision,) = self._intake.take([received])
        self.outcomes[decision.outcome] += 1
        after = self._stored()
        if decision.outcome is Outcome.QUARANTINED:
            assert after == self._before
            assert decision.rejected is not None
            assert decision.rejected.reason
        self._before = after
        self._accepted += decision.outcome is Outcome.ACCEPTED
        if self._accepted >= FRESH_AFTER:
            self.close()
            self._fresh()

    def close(self) -> None:
        self._database.release()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.services)])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[_Shop]:
    numbers = count(1)
    if request.param == "sqlite":
        made = _Shop(request.param, lambda: f"sqlite:///{tmp_path}/{next(numbers)}.db")
    else:
        postgres = request.getfixturevalue("postgres")
        made = _Shop(request.param, lambda: str(postgres.create_database(f"fuzz_{next(numbers)}")))
    yield made
    made.close()


@pytest.mark.timeout(1800)
def test_every_body_has_one_of_the_five_outcomes_and_a_refused_one_touches_nothing_else(shop: _Shop) -> None:
    @seed(SEED)
    @settings(
        max_examples=shop.bodies,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(_bodies, st.sampled_from(ROUTING_KEYS), st.sampled_from((None, None, None, "gzip", "utf-8")))
    def fuzz(body: bytes, routing_key: str | None, content_encoding: str | None) -> None:
        shop.take(Received.of(body, routing_key, now_us(), content_encoding))

    fuzz()
    assert shop.outcomes.total() == shop.bodies
    # A few hundred bodies may miss a rare outcome, thousands do not.
    assert shop.outcomes.keys() >= (set(Outcome) if ALL else {Outcome.ACCEPTED, Outcome.QUARANTINED})
    print({outcome.value: count for outcome, count in shop.outcomes.items()})
