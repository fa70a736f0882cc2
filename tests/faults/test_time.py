"""What time does to schedulers, in the closing table: a slot takes effect once [G17].

The daylight saving changes of other zones and crons, and wrong clocks, are in tests/scheduler.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final
from zoneinfo import ZoneInfo

import pytest

from customer_actors.settings import load_settings
from customer_actors.storage.database import Database
from customer_actors.storage.opening import open_database
from customer_actors.storage.schema import migrate
from scheduler.jobs import JOBS
from tests.faults.table import ROWS, SEED, Row
from tests.scheduler.watching import Watch

ZONE: Final = ZoneInfo("Europe/Berlin")
SETTINGS: Final = load_settings(
    {
        "CUSTOMER_ACTORS_TIMEZONE": "Europe/Berlin",
        "CUSTOMER_ACTORS_NIGHTLY_SEGMENTS_CRON": "30 2 * * *",
        "CUSTOMER_ACTORS_NIGHTLY_CREDIT_CRON": "30 2 * * *",
    }
)
"""At a time that spring leaves out and autumn has twice."""
CHANGES: Final = (datetime(2030, 3, 31, tzinfo=ZONE), datetime(2030, 10, 27, tzinfo=ZONE))
LOOK: Final = timedelta(minutes=5)


@pytest.fixture
def database(postgres_url: str) -> Iterator[Database]:
    opened = open_database(postgres_url)
    migrate(opened)
    yield opened
    opened.release()


def judge(name: str, injected: str, rung: Sequence[str], due: Sequence[str], jobs: int = len(JOBS)) -> None:
    """Every slot that was due was rung once for each job, in order; its row in the table."""
    counts = Counter(rung)
    lost = sum(max(0, jobs - counts[slot]) for slot in due)
    twice = sum(max(0, count - jobs) for count in counts.values())
    disorder = sum(one > next_ for one, next_ in pairwise(rung))
    ROWS.append(Row(name, injected, jobs * len(due), lost, twice, disorder, 0.0))
    assert set(counts) == set(due)
    assert (lost, twice, disorder) == (0, 0, 0)


def test_two_schedulers_through_both_daylight_saving_changes(database: Database) -> None:
    """Now this one looks first and now the other, and now and then one is killed and begins anew."""
    rng = random.Random(f"{SEED} daylight saving")
    rung: list[str] = []
    due: list[str] = []
    kills = 0
    for change in CHANGES:
        began = change - timedelta(days=1)
        pair = [Watch(database, began, SETTINGS, JOBS) for _ in range(2)]
        # The change makes its day an hour longer or shorter, so the steps are steps of UTC.
        for step in range(3 * 24 * 12 - 24):
            if rng.random() < 0.02:
                pair[rng.randrange(2)] = Watch(database, began, SETTINGS, JOBS)
                kills += 1
            for watch in rng.sample(pair, 2):
                watch.look_at(datetime.fromtimestamp(began.timestamp() + step * LOOK.total_seconds(), ZONE))
                rung += watch.rung
                watch.rung.clear()
        due += [f"{(change + timedelta(days=day)).date()}T02:30" for day in (-1, 0, 1)]
    assert kills > 0
    judge("time: daylight saving change, two schedulers", f"2 changes, {kills} kills", rung, due)


def test_a_scheduler_down_over_its_slot(database: Database) -> None:
    """Inside the catch-up window the slot is rung late; one that nobody saw within it is left out on purpose."""
    began = datetime(2030, 6, 1, tzinfo=ZONE)
    rung: list[str] = []
    for down, up in ((1, 3), (25, 29), (49, 51), (73, 82)):
        for hours in (down, up):
            watch = Watch(database, began, SETTINGS, JOBS)
            watch.look_at(began + timedelta(hours=hours))
            rung += watch.rung
    judge("time: scheduler down over its slot", "4 times", rung, [f"2030-06-0{day}T02:30" for day in (1, 2, 3)])
