"""The dispatcher and the four actors as Dramatiq actors on one broker, and who rings whom."""

import time
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import dramatiq
import structlog
from dramatiq.errors import BrokerError
from pika.exceptions import AMQPError

from customer_actors.actors.dispatcher import bundles, plan
from customer_actors.domain.routing import ACTORS, AFTER
from customer_actors.groups.advance import Report, advance
from customer_actors.groups.failure import MAX_DELAY_S
from customer_actors.groups.sweep import HELD
from customer_actors.storage.actors import Stores
from customer_actors.storage.bells import Bell
from customer_actors.storage.holds import next_try_of

log = structlog.get_logger(__name__)

BROKER_ERRORS = (BrokerError, AMQPError, OSError)
"""What sending a message may raise. A bell that was not sent costs one sweep, nothing more."""


def now_us() -> int:
    """Microseconds since the epoch by this host's clock."""
    return time.time_ns() // 1_000


class Pipeline:
    """Declares every actor on a broker. Each has a queue of its own; a held customer's retries have another."""

    def __init__(
        self,
        broker: dramatiq.Broker,
        stores: Stores,
        *,
        bundle_size: int = 200,
        clock: Callable[[], int] = now_us,
    ) -> None:
        self.broker = broker
        self.stores = stores
        self.alarm = stores.alarm
        """Raised during a mass failure: health turns red, and no attempts are charged."""
        self.clock = clock
        self._bundle_size = bundle_size
        self._dispatcher = self._declare("dispatcher", self._dispatch)
        self._actors = {actor: self._declare(actor, self._advance_of(actor)) for actor in ACTORS}
        self._held = self._declare(HELD, self._retry)

    def _declare(self, name: str, work: Callable[..., None]) -> dramatiq.Actor[..., None]:
        @wraps(work)
        def scoped(*arguments: Any) -> None:
            with self.stores.database.scope():
                work(*arguments)

        return dramatiq.Actor(scoped, broker=self.broker, actor_name=name, queue_name=name, priority=0, options={})

    def ring(self, bell: Bell) -> None:
        """Tell the dispatcher which customers have new events. Never raises for a broker that is away."""
        if bell:
            self._send(self._dispatcher, bell)

    def ring_actor(self, actor: str, customers: Sequence[int]) -> None:
        """Ring one actor for these customers, in bundles."""
        for bundle in bundles(customers, self._bundle_size):
            self._send(self._actors[actor], bundle)

    def ring_held(self, actor: str, customer: int, delay_ms: int) -> None:
        """Try a held customer again after a delay, by a message for it alone."""
        self._send(self._held, actor, customer, delay_ms=delay_ms)

    def _send(self, actor: dramatiq.Actor[..., None], *arguments: object, delay_ms: int | None = None) -> None:
        try:
            actor.send_with_options(args=arguments, delay=delay_ms)
        except BROKER_ERRORS as error:
            log.warning("not rung", actor=actor.actor_name, error=type(error).__name__, then="the next sweep rings")

    def _dispatch(self, bell: dict[str, list[int]]) -> None:
        for actor, customers in plan(bell, self._bundle_size):
            self._send(self._actors[actor], customers)

    def _advance_of(self, actor: str) -> Callable[[list[int]], None]:
        def work(customers: list[int]) -> None:
            self.advance(actor, customers)

        return work

    def advance(self, actor: str, customers: Sequence[int]) -> Report:
        """Advance one actor for these customers now, in this thread, and ring whoever comes next.

        Raises:
            Outage: nothing of the current round was kept; earlier rounds are committed.
        """
        report = advance(self.stores.of(actor), customers, now_us=self.clock)
        self._follow_up(actor, report)
        return report

    def _follow_up(self, actor: str, report: Report) -> None:
        self._tell_alarm()
        for following in AFTER.get(actor, ()):
            self.ring_actor(following, sorted(report.moved))
        for hold in report.held:
            kind = hold.error.split(":")[0]  # the text may name ids
            log.warning("held", actor=actor, customer=hold.group, position=hold.position, error=kind)
            self._ring_at_next_try(actor, hold.group)
        if report.remaining:
            self.ring_actor(actor, report.remaining)
        log.debug("advanced", actor=actor, events=report.applied, customers=len(report.moved), rounds=report.rounds)

    def _ring_at_next_try(self, actor: str, customer: int) -> None:
        next_try = next_try_of(self.stores.database, actor, customer)
        if next_try is not None:
            self.ring_held(actor, customer, self._delay_ms(next_try))

    def _retry(self, actor: str, customer: int) -> None:
        """One attempt of a held customer, if its time has come: Dramatiq's Retries middleware is the only clock.

        An early or doubled message, or one for a customer released or parked meanwhile, returns and ends its chain.
        """
        done = self.stores.of(actor).retry(customer, self.clock())
        if not done.locked:
            return
        if not done.held:
            log.info("went on", actor=actor, customer=customer)
            self._follow_up(actor, Report(moved=set(done.moved), remaining=[customer]))
            return
        # On the way to an event that failed it may have moved.
        self._follow_up(actor, Report(moved=set(done.moved)))
        next_try = next_try_of(self.stores.database, actor, customer)
        if next_try is None:
            log.error("parked", actor=actor, customer=customer, then="waits for a person")
            return
        raise dramatiq.Retry("held", delay=self._delay_ms(next_try))

    def alarm_text(self) -> str | None:
        """What a beat tells of the service while there is a mass failure."""
        return "mass failure" if self.alarm.raised(self.clock() / 1_000_000) else None

    def _tell_alarm(self) -> None:
        """Log the start and the end of a mass failure, once each."""
        turned = self.alarm.turned(self.clock() / 1_000_000)
        if turned:
            log.error("mass failure", cause="over half of the customers fail", then="no attempts are charged")
        elif turned is not None:
            log.warning("mass failure is over", then="attempts are charged again")

    def _delay_ms(self, next_try_us: int) -> int:
        """Never early, for an early message ends its chain: here and in Dramatiq a fraction of a ms is cut off.

        But never longer than any hold waits: the time may be by a host's clock that is ahead, and the message sits
        unacknowledged in a worker. Then the sweep rings when the time has come.
        """
        delay_us = min(max(0, next_try_us - self.clock()), int(MAX_DELAY_S * 1_000_000))
        return delay_us // 1_000 + 2
