"""Every test here that asks for `database` or `storage` runs on both databases."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from customer_actors.domain.events import Event
from customer_actors.storage import segmentation
from customer_actors.storage.database import Database
from customer_actors.storage.opening import open_database
from customer_actors.storage.schema import migrate
from tests.servers import PrivatePostgres
from tests.storage.holding import MODULES, Break
from tests.storage.support import Storage

BOTH = ["sqlite", pytest.param("postgresql", marks=pytest.mark.services)]


@pytest.fixture(params=BOTH)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without a schema."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/customers.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture(scope="session")
def migrated_url(postgres: PrivatePostgres) -> Iterator[str]:
    """One PostgreSQL database for many tests: making and dropping one takes longer than most of them."""
    name = f"shared_{uuid4().hex}"
    url = postgres.create_database(name)
    opened = open_database(url)
    migrate(opened)
    opened.release()
    yield url
    postgres.drop_database(name)


@pytest.fixture(params=BOTH)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database with the current schema and no rows."""
    if request.param == "sqlite":
        opened = open_database(f"sqlite:///{tmp_path}/customers.db")
        migrate(opened)
        yield opened
        opened.release()
    else:
        yield from _emptied(request)


@pytest.fixture
def storage(database: Database) -> Storage:
    return Storage(database)


@pytest.fixture
def postgres_storage(request: pytest.FixtureRequest, postgres: PrivatePostgres) -> Iterator[Storage]:
    """For what only PostgreSQL can do."""
    for database in _emptied(request):
        yield Storage(database)


def _emptied(request: pytest.FixtureRequest) -> Iterator[Database]:
    server: PrivatePostgres = request.getfixturevalue("postgres")
    url: str = request.getfixturevalue("migrated_url")
    server.serve()
    opened = open_database(url)
    opened.execute("SET session_replication_role = replica")  # without triggers: they keep events and ledgers
    for table in opened.engine.get_tables():
        if table != "schema_migration":
            opened.execute(f"DELETE FROM {table}")
    opened.execute("SET session_replication_role = origin")
    yield opened
    opened.release()


@pytest.fixture
def break_fold(monkeypatch: pytest.MonkeyPatch) -> Break:
    """Makes one actor's fold raise for the events of some references, until called again with others."""
    whole = {actor: module.fold for actor, module in MODULES.items()}

    def break_(actor: str, *references: str, error: Exception | None = None) -> None:
        def fold(state: Any, event: Event, *facts: Any) -> Any:
            if event.reference in references:
                raise error or ValueError(f"cannot fold {event.reference}")
            return whole[actor](state, event, *facts)

        monkeypatch.setattr(MODULES[actor], "fold", fold)

    return break_


@pytest.fixture
def break_segment(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Makes segmentation raise for customers who spent more than an amount in minor units."""
    whole = segmentation.segment_of

    def break_(above_minor: int | None) -> None:
        def segment_of(scored: Any, *rest: Any) -> Any:
            if above_minor is not None and scored.total_spent_minor > above_minor:
                raise ValueError("cannot score")
            return whole(scored, *rest)

        monkeypatch.setattr(segmentation, "segment_of", segment_of)

    return break_
