"""The runs of the nightly jobs, as figures and in words."""

from customer_actors.domain.events import iso
from customer_actors.domain.telling import Figures
from customer_actors.storage.database import Database
from customer_actors.storage.job_runs import Progress, last_runs

CLAIMED, RUNNING, FAILING, DONE = "claimed", "running", "failing", "done"


def nights_view(database: Database) -> Figures:
    """The newest run of every job that ever ran."""
    return {job: night_figures(progress) for job, progress in last_runs(database).items()}


def night_figures(progress: Progress) -> Figures:
    """One run, under the names and in the order of `status --json`."""
    return {
        "job": progress.run.job,
        "slot": progress.run.slot,
        "as_of": progress.run.as_of.isoformat(),
        "dry_run": progress.run.dry_run,
        "state": _state(progress),
        "claimed_at": iso(progress.claimed_us),
        "done_at": None if progress.done_us is None else iso(progress.done_us),
        "chunks": progress.chunks,
        "chunks_done": progress.chunks_done,
        "customers_examined": progress.examined,
        "rows_changed": progress.changed,
        "failures": progress.failures,
        "error": progress.error,
    }


def _state(progress: Progress) -> str:
    if progress.done_us is not None:
        return DONE
    if progress.error is not None:
        return FAILING
    return RUNNING if progress.planned else CLAIMED


def night_text(figures: Figures) -> str:
    """The figures of one run in a line, without its name."""
    if figures["state"] == CLAIMED:
        return f"claimed, as of {figures['as_of']}; no worker has begun"
    text = (
        f"{figures['state']}, as of {figures['as_of']}: {figures['chunks_done']} of {figures['chunks']} parts, "
        f"{figures['customers_examined']:,} customers examined, {figures['rows_changed']:,} rows changed"
    )
    return f"{text}; {figures['failures']} failures, the last: {figures['error']}" if figures["error"] else text
