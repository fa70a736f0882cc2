"""Peer: the documented handlers on Procrastinate, whose `lock` keeps one customer's jobs in order.

A pika consumer defers every event as one job, on one connection, with the customer for its lock; a cancellation names
no customer, so the consumer keeps in mind whose order it was. Acknowledged once the job is committed.

Run as `python -m benchmarks.procrastinate_peer consume`, `... work` and, once before, `... schema`.
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pika
import procrastinate
from pika.adapters.blocking_connection import BlockingChannel
from pika.spec import Basic, BasicProperties

from benchmarks import effects
from benchmarks.effects import Event
from customer_actors.ingest.topology import QUEUES

CONCURRENT: Final = 8
PREFETCH: Final = 200
POLL_S: Final = 0.01
"""A worker that finishes a job looks for the next one that is new or, so often, for those whose lock has become free
meanwhile: nothing tells it. With the default of 5 s a customer's jobs would follow each other every few seconds; of
0.05, 0.02 and 0.01 s the last was the quickest."""
RECOVERED_S: Final = 60.0
"""After so long a killed worker's jobs have been tried again: its heartbeat is given up after 30 s."""

app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=os.environ.get("DATABASE_URL", "")))


@app.task(name="handle")
def handle(event: Event) -> None:
    """The whole event in one job, in a thread."""
    effects.all_steps(event)


@app.periodic(cron="* * * * * */10")
@app.task(name="retry_stalled_jobs", queueing_lock="retry_stalled_jobs", pass_context=True)
async def retry_stalled_jobs(context: procrastinate.JobContext, timestamp: int) -> None:
    """What its manual adds for jobs whose worker was killed."""
    for job in await app.job_manager.get_stalled_jobs():
        await app.job_manager.retry_job(job)


def make_schema() -> None:
    """Procrastinate's tables."""
    with app.open():
        app.schema_manager.apply_schema()


def work() -> None:
    """Run jobs until the process is ended."""

    async def until_ended() -> None:
        # a thread for each: the default executor has six on two cores
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(CONCURRENT))
        async with app.open_async():
            await app.run_worker_async(concurrency=CONCURRENT, fetch_job_polling_interval=POLL_S, delete_jobs="always")

    asyncio.run(until_ended())


def consume() -> None:
    """Defer every event of the three queues, until the process is ended."""
    customer_of: dict[str, str] = {}
    deferring = procrastinate.App(connector=procrastinate.SyncPsycopgConnector(conninfo=os.environ["DATABASE_URL"]))
    deferring.task(name="handle")(effects.all_steps)

    def take(channel: BlockingChannel, method: Basic.Deliver, _properties: BasicProperties, body: bytes) -> None:
        assert method.delivery_tag is not None
        event = json.loads(body)
        data = event["data"]
        customer = data.get("customer_id") or customer_of.get(data.get("order_id", ""), body.decode())
        if "order_id" in data and "customer_id" in data:
            customer_of[data["order_id"]] = data["customer_id"]
        deferring.configure_task("handle", lock=customer).defer(event=event)
        channel.basic_ack(method.delivery_tag)

    with deferring.open():
        connection = pika.BlockingConnection(pika.URLParameters(os.environ["RABBITMQ_URL"]))
        channel = connection.channel()
        channel.basic_qos(prefetch_count=PREFETCH)
        for queue in QUEUES:
            channel.basic_consume(queue, take)
        channel.start_consuming()


_MODES: Final[dict[str, Callable[[], None]]] = {"schema": make_schema, "work": work, "consume": consume}

if __name__ == "__main__":
    _MODES[sys.argv[1]]()
