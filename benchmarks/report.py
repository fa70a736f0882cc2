"""The results as JSON, as a table in Markdown and as a plot."""

import json
import statistics
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks import streams
from benchmarks.latency import Latency
from benchmarks.scenarios import OURS, PACES, PGBENCH, Results
from benchmarks.stage import Measured
from benchmarks.subjects import SUBJECTS, Round

BEGIN: Final = "<!-- measured: everything up to the next mark is written by `make bench` -->"
END: Final = "<!-- end of measured -->"
_EACH_ACTOR: Final = "plain Dramatiq, a message per actor"
_EACH: Final = "plain Dramatiq, a message per event"
_LOCKS: Final = "Procrastinate, lock=customer"
_MET: Final = {True: "met", False: "MISSED", None: ""}


class Goal(NamedTuple):
    """A goal, what was measured for it, and whether it was reached; None for what nobody set as a goal."""

    goal: str
    measured: str
    met: bool | None


def per_s(rounds: Sequence[Round]) -> list[float]:
    """Events per second, round by round."""
    return [one.measured.events_per_s for one in rounds]


def _times(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median over the rounds of how many times theirs ours is."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def goals(results: Results) -> Iterator[Goal]:
    """Every goal that what was measured can tell about."""
    rounds = results.rounds
    if rounds["uniform"]:
        ours = per_s(rounds["uniform"][OURS])
        for name, wanted in ((_EACH, 20), (_LOCKS, 15)):
            times = _times(ours, per_s(rounds["uniform"][name]))
            yield Goal(f"{name}: at least {wanted} x", f"{times:.1f} x", times >= wanted)
        yield Goal(
            f"{_EACH_ACTOR}, for comparison", f"{_times(ours, per_s(rounds['uniform'][_EACH_ACTOR])):.1f} x", None
        )
        times = _times(ours, results.limit)
        yield Goal(f"{PGBENCH}: at least 2 x", f"{times:.2f} x", times >= 2)
        times = _times(per_s(rounds["hot"][OURS]), ours)
        yield Goal("one hot customer beside uniform: at least 1 x", f"{times:.2f} x", times >= 1)
        alone = statistics.median(per_s(results.embedded))
        yield Goal("embedded on SQLite, from a file: at least 8,000/s", f"{alone:,.0f}/s", alone >= 8000)
    judged = [one.verdict for one in _ours(results) if one.verdict]
    if judged:
        wrong = sum(verdict.wrong for verdict in judged)
        text = "inversions, double, missing and wrong effects: 0"
        yield Goal(text, f"{wrong} in {len(judged)} rounds", wrong == 0)
    if peaks := [*(peak_mb(one.measured) for one in _ours(results)), *_peaks_at_a_pace(results)]:
        yield Goal("memory per process: at most 150 MB", f"{max(peaks):.0f} MB", max(peaks) <= 150)
    if PACES[1] in results.latency:
        at = results.latency[PACES[1]][OURS]
        p50, p99 = (_median_ms([each[index] for each in at]) for index in (0, 2))
        goal = f"p50 / p99 at {PACES[1]}/s: at most 20 / 60 ms"
        if p50 is None or p99 is None:
            yield Goal(goal, "too slow", False)
        else:
            yield Goal(goal, f"{p50:.1f} / {p99:.1f} ms", p50 <= 20 and p99 <= 60)
    if rounds["history"]:
        times = _times(per_s(rounds["history"]["full"]), per_s(rounds["history"]["empty"]))
        yield Goal(
            "ten million events stored beside an empty database: at least 0.85 x", f"{times:.2f} x", times >= 0.85
        )


def _ours(results: Results) -> Iterator[Round]:
    """Every round of this project, in every scenario."""
    for scenario, subjects in results.rounds.items():
        for name, rounds in subjects.items():
            if name == OURS or scenario in ("processes", "history"):
                yield from rounds
    yield from results.embedded
    yield from (one for name, one in results.killed.items() if name == OURS)


def _peaks_at_a_pace(results: Results) -> Iterator[float]:
    for subjects in results.latency.values():
        yield from (each.peak_mb for each in subjects[OURS])


def _median_ms(values: Sequence[float | None]) -> float | None:
    """None when a round had none."""
    found = [value for value in values if value is not None]
    return statistics.median(found) if len(found) == len(values) else None


def peak_mb(measured: Measured) -> float:
    """The largest of its processes, in MB."""
    return max(measured.peak_mb.values(), default=0.0)


def as_json(results: Results) -> dict[str, Any]:
    """Everything, for machines."""

    def one(each: Round) -> dict[str, Any]:
        return {**each.measured._asdict(), "verdict": each.verdict and each.verdict._asdict()}

    return {
        "date": date.today().isoformat(),
        "machine": results.machine,
        "sizes": results.sizes._asdict(),
        "rounds": {
            scenario: {name: [one(each) for each in rounds] for name, rounds in subjects.items()}
            for scenario, subjects in results.rounds.items()
            if subjects
        },
        "pgbench_per_s": results.limit,
        "embedded": [one(each) for each in results.embedded],
        "killed": {name: one(each) for name, each in results.killed.items()},
        "latency": {
            pace: {name: [each._asdict() for each in rounds] for name, rounds in subjects.items()}
            for pace, subjects in results.latency.items()
        },
        "goals": [goal._asdict() for goal in goals(results)],
    }


def markdown(results: Results) -> str:
    """Tables for `docs/benchmarks.md`."""
    machine = ", ".join(f"{name} {value}" for name, value in results.machine.items())
    sizes = ", ".join(f"{name} {value:,}" for name, value in results.sizes._asdict().items())
    parts = [f"Measured on {date.today().isoformat()}: {machine}.", f"Sizes: {sizes}."]
    parts.append(_table(("goal", "measured", ""), [(g.goal, g.measured, _MET[g.met]) for g in goals(results)]))
    if results.rounds["uniform"]:
        parts += ["### Events per second: median (lowest to highest round)", _throughput(results)]
    if results.killed:
        parts += ["### Correctness, and with a worker killed half-way", _correctness(results)]
    if results.latency:
        head = "### Latency from publishing to committed points, ms: median (lowest to highest round)"
        parts += [head, _latency(results)]
    others = [
        (scenario, name, _spread(per_s(rounds)))
        for scenario in ("processes", "backlog", "history")
        for name, rounds in results.rounds[scenario].items()
    ]
    if others:
        parts += ["### More of this project", _table(("scenario", "", "events/s"), others)]
    if results.rounds["uniform"][OURS]:
        parts += ["### CPU seconds per 10,000 events, uniform where nothing else is said", _cpu(results)]
    return "\n\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})" if values else ""


def _rounds(rounds: Sequence[Round]) -> str:
    stopped = sum(one.measured.late for one in rounds)
    return _spread(per_s(rounds)) + (f"; {stopped} stopped, an upper bound" if stopped else "")


def _throughput(results: Results) -> str:
    shapes = [shape for shape in streams.SHAPES if results.rounds[shape]]
    rows = [(subject.name, *(_rounds(results.rounds[shape][subject.name]) for shape in shapes)) for subject in SUBJECTS]
    blanks = ("",) * (len(shapes) - 1)
    rows.append((PGBENCH, _spread(results.limit), *blanks))
    rows.append((f"{OURS}, embedded", _spread(per_s(results.embedded)), *blanks))
    return _table(("subject", *shapes), rows)


def _correctness(results: Results) -> str:
    rows = []
    for subject in SUBJECTS:
        rounds = [each for shape in streams.SHAPES for each in results.rounds[shape][subject.name]]
        every = [each.verdict for each in rounds if each.verdict]
        killed = results.killed[subject.name].verdict
        assert killed is not None
        rows.append((
            subject.name,
            f"{len(every)} of {len(rounds)}",
            "yes" if all(verdict.totals_equal for verdict in every) else "no",
            str(sum(verdict.inversions for verdict in every)),
            str(sum(verdict.wrong_customers for verdict in every)),
            "yes" if killed.totals_equal else "no",
            *(str(figure) for figure in (killed.inversions, killed.doubles, killed.missing, killed.wrong_customers)),
        ))  # fmt: skip
    if results.limit:
        judged = f"{len(results.limit)} of {len(results.limit)}"  # with other totals it would have been an error
        rows.append((PGBENCH, judged, "yes", *["no order to keep", ""], *[""] * 5))
    head = ("subject", "rounds judged", "totals equal", "inversions", "wrong customers")
    return _table((*head, "killed: totals equal", "inversions", "doubles", "missing", "wrong customers"), rows)


def _latency(results: Results) -> str:
    rows = [
        (name, str(pace), *(_ms([each[index] for each in rounds]) for index in range(3)), str(_late(rounds)))
        for pace, subjects in results.latency.items()
        for name, rounds in subjects.items()
    ]
    return _table(("subject", "events/s", "p50", "p95", "p99", "late"), rows)


def _late(rounds: Sequence[Latency]) -> int:
    return sum(each.late for each in rounds)


def _ms(values: Sequence[float | None]) -> str:
    median = _median_ms(values)
    found = [value for value in values if value is not None]
    return "too slow" if median is None else f"{median:.1f} ({min(found):.1f} to {max(found):.1f})"


def _cpu(results: Results) -> str:
    measured = [(subject.name, results.rounds["uniform"][subject.name]) for subject in SUBJECTS]
    measured += [(f"{OURS}, {shape}", results.rounds[shape][OURS]) for shape in streams.SHAPES if shape != "uniform"]
    measured += [(f"{OURS}, {name} of history", rounds) for name, rounds in results.rounds["history"].items()]
    measured.append((f"{OURS}, embedded", results.embedded))
    rows = []
    for name, rounds in measured:
        used = {
            process: statistics.median(each.measured.cpu_s[process] for each in rounds)
            for process in rounds[0].measured.cpu_s
        }
        peaks = max(peak_mb(each.measured) for each in rounds)
        each_s = ", ".join(f"{process} {value:.2f}" for process, value in used.items())
        rows.append((name, f"{sum(used.values()):.2f}", each_s, f"{peaks:.0f}" if peaks else ""))
    return _table(("subject", "all", "by process", "largest process, MB"), rows)


def write(results: Results, docs: Path) -> None:
    """Put the tables into `benchmarks.md` between the marks, and the plot and everything measured beside it."""
    page = docs / "benchmarks.md"
    before, _, rest = page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n\n{markdown(results)}\n\n{END}{after}")
    (docs / "benchmarks.json").write_text(json.dumps(as_json(results), indent=1) + "\n")
    plot(results, docs / "benchmarks.png")


def plot(results: Results, file: Path) -> None:
    """Throughput by subject and shape of the stream, on a logarithmic axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    shapes = [shape for shape in streams.SHAPES if results.rounds[shape]]
    width = 0.8 / len(shapes)
    for index, shape in enumerate(shapes):
        rounds = [results.rounds[shape][subject.name] for subject in SUBJECTS]
        medians = [statistics.median(per_s(each)) for each in rounds]
        bars = axes.bar([place + index * width for place in range(len(SUBJECTS))], medians, width, label=shape)
        stopped = [2 * sum(one.measured.late for one in each) > len(each) for each in rounds]
        texts = [f"{'<' if late else ''}{median:,.0f}" for median, late in zip(medians, stopped, strict=True)]
        axes.bar_label(bars, texts, fontsize=7)
        for bar, late in zip(bars, stopped, strict=True):
            if late:  # most rounds were stopped before they were through: slower than the bar says
                bar.set(hatch="////", alpha=0.5)
    if results.limit:
        limit = statistics.median(results.limit)
        axes.axhline(limit, linestyle="--", color="grey", label=f"{PGBENCH}: {limit:,.0f}")
    axes.set_yscale("log")
    axes.set_xticks([place + 0.3 for place in range(len(SUBJECTS))], [s.name.replace(", ", ",\n") for s in SUBJECTS])
    axes.set_ylabel("events per second, median")
    axes.legend()
    figure.savefig(file, dpi=120)
