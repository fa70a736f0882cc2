"""What the tests of several verbs ask for."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from customer_actors.storage.schema import migrate
from tests.cli.shop import Shop


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.services)])
def shop(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """An empty database with the current schema, of both kinds in turn."""
    monkeypatch.chdir(tmp_path)  # away from whatever .env there is
    made = Shop(f"sqlite:///{tmp_path}/c.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url"))
    migrate(made.database)
    yield made
    made.database.release()
