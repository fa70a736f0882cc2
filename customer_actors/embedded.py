"""All in one process: a database, Dramatiq's in-process broker with worker threads, the scheduler, lines as input.

The streams are durable, so a killed run resumes where it stopped: the next start rings everybody who is behind.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import partial
from typing import IO, Final, NamedTuple, TypeVar

import dramatiq
import structlog
from dramatiq.brokers.stub import StubBroker

from customer_actors.actors.broker import make_broker
from customer_actors.actors.main import declare
from customer_actors.actors.nightly import QUEUES as NIGHT_QUEUES
from customer_actors.actors.nightly import ring_night
from customer_actors.actors.pipeline import Pipeline, now_us
from customer_actors.domain.envelope import Received
from customer_actors.errors import Outage
from customer_actors.ingest.files import batches, received_lines
from customer_actors.ingest.intake import Intake, policies
from customer_actors.process import Stop
from customer_actors.settings import Settings
from customer_actors.storage.actors import Stores
from customer_actors.storage.bells import Bell, newest_bell, remove_bells_up_to
from customer_actors.storage.database import Database
from customer_actors.storage.opening import open_database
from customer_actors.storage.overdue import all_behind
from customer_actors.storage.schema import migrate, require_current
from customer_actors.storage.summary import Held, due_holds, held_customers
from scheduler.clock import Clock, running_clock

QUEUES: Final = ("dispatcher", "stats", "loyalty", "credit", "segmentation", *NIGHT_QUEUES)
"""The queues to wait for; `held` waits by itself."""
OUTAGE_S: Final = 60.0
"""How long a database that is away is waited for before the run gives up."""
TURN_BATCHES: Final = 10
"""Full batches that are read before the actors have their turn."""
_LOOK_S: Final = 0.05
_TURN_LOOK_S: Final = 0.005
_AGAIN_S: Final = 0.5
_WORKER_STOP_MS: Final = 1_000

log = structlog.get_logger(__name__)
T = TypeVar("T")


class Progress(NamedTuple):
    """How far a run is."""

    lines: int
    """Lines committed so far."""
    reading: bool
    """More may come; else the actors are catching up."""


Watch = Callable[[Progress], object]
"""Told several times a second how far a run is."""


def _unwatched(_: Progress) -> None:
    pass


class Turn:
    """The bells of batches that were committed and not rung yet.

    Reading and the actors share one interpreter and one write lock, so while there is much to read they take turns:
    that costs a quarter less CPU than working side by side (docs/decisions/0007).
    """

    def __init__(self) -> None:
        self.batches = 0
        self._bell: dict[str, set[int]] = {}

    def add(self, bell: Bell) -> None:
        """Note a bell instead of ringing it."""
        self.batches += 1
        for routing_key, customers in bell.items():
            self._bell.setdefault(routing_key, set()).update(customers)

    def end(self) -> Bell:
        """All bells as one; the next turn begins."""
        bell = {routing_key: sorted(customers) for routing_key, customers in self._bell.items()}
        self.batches = 0
        self._bell.clear()
        return bell


class Embedded:
    """A running embedded service; made by `embedded()`. For one thread."""

    def __init__(
        self,
        database: Database,
        pipeline: Pipeline,
        intake: Intake,
        turn: Turn,
        settings: Settings,
        stop: Stop,
        held_before: frozenset[Held],
    ) -> None:
        self.database = database
        self.pipeline = pipeline
        self.intake = intake
        self.stop = stop
        self.held_before = held_before
        """Who was held when this run began."""
        self.quarantined: Counter[str] = Counter()
        """Messages this run quarantined, by code."""
        self.reasons: dict[str, str] = {}
        """The first reason of each of these codes."""
        self._settings = settings
        self._turn = turn

    @property
    def stores(self) -> Stores:
        return self.pipeline.stores

    @property
    def lines(self) -> int:
        """Lines committed so far."""
        return self.intake.outcomes.total()

    def feed(self, lines: IO[bytes], watch: Watch = _unwatched) -> None:
        """Admit every line of a JSON-lines stream. See `feed_messages`."""
        self.feed_messages(received_lines(lines, self.pipeline.clock), watch)

    def feed_messages(self, messages: Iterator[Received], watch: Watch = _unwatched) -> None:
        """Admit messages batch by batch as they arrive, until the last one or until asked to stop.

        Raises:
            Outage: the database stayed away too long.
            Exception: what `messages` raised. All that came before is committed, in both cases.
        """
        if self.stop.asked:  # what was fed before may still be read ahead from the same source
            return
        with closing(batches(messages, self._settings.batch_size, self._settings.batch_age_ms / 1000)) as arriving:
            for batch in arriving:
                if batch:
                    self._take(batch)
                watch(Progress(self.lines, True))
                if self.stop.asked:
                    break
                self._end_turn(watch, more=len(batch) == self._settings.batch_size)

    def _end_turn(self, watch: Watch, *, more: bool) -> None:
        """Ring what was read; while there is more to read, only after a turn of batches, and let the actors finish."""
        if more and self._turn.batches < TURN_BATCHES:
            return
        self.pipeline.ring(self._turn.end())
        while more and self._queues_busy() and not self.stop.asked:
            self.stop.wait(_TURN_LOOK_S)
            watch(Progress(self.lines, True))

    def _take(self, batch: list[Received]) -> None:
        for decision in self._patiently(partial(self.intake.take, batch)):
            if decision.rejected is not None:
                self.quarantined[decision.rejected.code] += 1
                self.reasons.setdefault(decision.rejected.code, decision.rejected.reason)

    def drain(self, watch: Watch = _unwatched) -> None:
        """Wait until every customer is at its head or held, for every actor, or until asked to stop.

        Rings again whoever was missed, and tries held customers whose time has come.

        Raises:
            Outage: the database stayed away too long.
        """
        self.pipeline.ring(self._turn.end())
        while not self.stop.asked:
            watch(Progress(self.lines, False))
            rung_so_far = self._patiently(partial(newest_bell, self.database))
            if not self._queues_busy() and not self._patiently(self._ring_the_waiting):
                self._patiently(partial(remove_bells_up_to, self.database, rung_so_far))
                return
            self.stop.wait(_LOOK_S)

    def waiting(self) -> int:
        """How many customers some actor is behind for."""
        return len({customer for customers in all_behind(self.stores).values() for customer in customers})

    def _ring_the_waiting(self) -> bool:
        """Ring everybody who is behind or whose hold is due; whether there was anybody."""
        behind = all_behind(self.stores)
        for actor, customers in behind.items():
            self.pipeline.ring_actor(actor, customers)
        due = due_holds(self.database, self.pipeline.clock())
        for actor, customer in due:
            self.pipeline.ring_held(actor, customer, 0)
        return bool(due) or any(behind.values())

    def _patiently(self, work: Callable[[], T]) -> T:
        """Do it again while the database is away, up to the limit."""
        deadline = time.monotonic() + OUTAGE_S
        while True:
            try:
                return work()
            except Outage as error:
                if self.stop.asked or time.monotonic() > deadline:
                    raise
                log.warning("the database is away", error=str(error), then=f"again in {_AGAIN_S:g} s")
                self.stop.wait(_AGAIN_S)

    def _queues_busy(self) -> bool:
        broker = self.pipeline.broker
        return isinstance(broker, StubBroker) and any(broker.queues[name].unfinished_tasks for name in QUEUES)


@contextmanager
def embedded(settings: Settings, stop: Stop | None = None, *, nights: bool = True) -> Iterator[Embedded]:
    """Migrate, start the workers, and stop them at the end. Whatever an earlier run left behind is rung at once.

    Once `stop` is asked, `feed` and `drain` return early. With `nights` the scheduler runs as long as the block
    does: a nightly job that is due, or was missed within the catch-up window, is done.

    Raises:
        UsageError: the database is of a newer version, or could forget what it committed. Outage: it is away.
    """
    database = open_database(settings.database_url)
    try:
        database.require_durable()
        migrate(database)
        require_current(database)
        pipeline = declare(settings, database, make_broker(None), kind="embedded")
        turn = Turn()
        intake = Intake(database, policies(settings, database, now_us()), turn.add, pipeline.clock)
        held = frozenset(held_customers(database))  # before the first sweep holds somebody
        worker = dramatiq.Worker(pipeline.broker, worker_threads=settings.worker_threads, worker_timeout=100)
        worker.start()
        try:
            with _clock(settings, database, pipeline) if nights else nullcontext():
                yield Embedded(database, pipeline, intake, turn, settings, stop or Stop(), held)
        finally:
            worker.stop(timeout=_WORKER_STOP_MS)
    finally:
        database.release()


def _clock(settings: Settings, database: Database, pipeline: Pipeline) -> AbstractContextManager[None]:
    clock = Clock(settings, database, partial(ring_night, pipeline.broker))
    return running_clock(clock, database)
