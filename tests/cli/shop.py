"""A database written by the real storage and read by the real command line."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from click.testing import CliRunner, Result

from customer_actors.cli import main
from customer_actors.domain import loyalty
from customer_actors.domain.events import Event, Message
from customer_actors.domain.rules import Rules
from customer_actors.storage.opening import open_database
from tests.model.examples import JUNE_1_US, cancellation, charge, opened, order, payment, pos, redemption
from tests.storage.support import Storage
from tests.tampering import tamper

LIFE: Sequence[Message] = (
    opened("100"),
    order("O-1", "450.00", at_us=JUNE_1_US + 500_000),
    pos("T-1", "60.00", on_credit=True),
    order("O-2", "50.00", on_credit=True),
    payment("P-1", "100.00")._replace(order_id="O-2"),
    redemption("R-1", 100),
    redemption("R-2", 10_000),
    cancellation("O-2"),
    charge("O-3", "500.00"),
)
"""Of customer c1 of org-1."""
HOSTILE = "\x1b[31mred\x1b[0m\r\n[bold]{0.__class__}\u202e\x9b2J\x07"
ESCAPED = r"\x1b[31mred\x1b[0m\r\n[bold]{0.__class__}\u202e\x9b2J\x07"


class Shop(Storage):
    """Storage with the command line on the same database."""

    def __init__(self, url: str) -> None:
        super().__init__(open_database(url), Rules())
        self.url = url

    def run(self, *args: str, **env: str) -> Result:
        """Run a verb on this database."""
        result = CliRunner().invoke(main, args, env={"DATABASE_URL": self.url, **env})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def json(self, *args: str) -> Any:
        """The document that a verb prints."""
        return json.loads(self.run(*args, "--json").stdout)

    def execute(self, sql: str, *parameters: object) -> None:
        """Change the database behind the service's back."""
        tamper(self.database, sql, *parameters)


def failing_at(monkeypatch: pytest.MonkeyPatch, reference: str, error: str = "boom") -> None:
    """Let the loyalty fold of one reference fail in the storage; what is refolded to explain is not touched."""

    def fold(state: loyalty.Loyalty, event: Event, rules: Rules, earned: dict[int, int]) -> loyalty.Result:
        if event.reference == reference:
            raise ValueError(error)
        return loyalty.fold(state, event, rules, earned)

    monkeypatch.setattr("customer_actors.storage.loyalty.fold", fold)


def is_harmless(output: str) -> bool:
    """Whether nothing in it could move a terminal's cursor, colour it, or reorder it."""
    return all(character.isprintable() or character == "\n" for character in output)
