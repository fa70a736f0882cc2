"""The results as JSON, as a table in Markdown and as a plot."""

import statistics
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.scenarios import OURS, PACES, PGBENCH, Results
from benchmarks.stage import Measured
from benchmarks.subjects import SUBJECTS, Round

BEGIN: Final = "<!-- measured: everything up to the next mark is written by `make bench` -->"
END: Final = "<!-- end of measured -->"
_SPLIT: Final = "plain Dramatiq, a message per actor"
_SINGLE: Final = "plain Dramatiq, a message per event"
_LOCKS: Final = "Procrastinate, lock=customer"


class Goal(NamedTuple):
    """A goal, what was measured for it, and whether it was reached."""

    goal: str
    measured: str
    met: bool


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
        for name, wanted in ((_SPLIT, 20), (_SINGLE, 20), (_LOCKS, 15)):
            times = _times(ours, per_s(rounds["uniform"][name]))
            yield Goal(f"{name}: at least {wanted} x", f"{times:.1f} x", times >= wanted)
        times = _times(ours, results.limit)
        yield Goal(f"{PGBENCH}: at least 2 x", f"{times:.2f} x", times >= 2)
        times = _times(per_s(rounds["hot"][OURS]), ours)
        yield Goal("one hot customer beside uniform: at least 1 x", f"{times:.2f} x", times >= 1)
        alone = statistics.median(measured.events_per_s for measured in results.embedded)
        yield Goal("embedded on SQLite, from a file: at least 8,000/s", f"{alone:,.0f}/s", alone >= 8000)
        wrong = [one.verdict for shape in rounds.values() for one in shape.get(OURS, ()) if one.verdict]
        wrong += [one.verdict for name, one in results.killed.items() if name == OURS and one.verdict]
        bad = sum(verdict.inversions + verdict.doubles + verdict.missing for verdict in wrong)
        yield Goal("inversions, double and missing effects: 0", str(bad), bad == 0)
        peak = max(peak_mb(one.measured) for shape in rounds.values() for one in shape.get(OURS, ()))
        yield Goal("memory per process: at most 150 MB", f"{peak:.0f} MB", peak <= 150)
    if PACES[1] in results.latency and (at := results.latency[PACES[1]][OURS]).p50_ms and at.p99_ms:
        met = at.p50_ms <= 20 and at.p99_ms <= 60
        yield Goal(f"p50 / p99 at {PACES[1]}/s: at most 20 / 60 ms", f"{at.p50_ms:.1f} / {at.p99_ms:.1f} ms", met)
    if rounds["history"]:
        times = _times(per_s(rounds["history"]["full"]), per_s(rounds["history"]["empty"]))
        yield Goal(
            "ten million events stored beside an empty database: at least 0.85 x", f"{times:.2f} x", times >= 0.85
        )


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
        "embedded": [measured._asdict() for measured in results.embedded],
        "killed": {name: one(each) for name, each in results.killed.items()},
        "latency": {
            pace: {name: each._asdict() for name, each in subjects.items()}
            for pace, subjects in results.latency.items()
        },
        "goals": [goal._asdict() for goal in goals(results)],
    }


def markdown(results: Results) -> str:
    """Tables for `docs/benchmarks.md`."""
    machine = ", ".join(f"{name} {value}" for name, value in results.machine.items())
    sizes = ", ".join(f"{name} {value:,}" for name, value in results.sizes._asdict().items())
    parts = [f"Measured on {date.today().isoformat()}: {machine}.", f"Sizes: {sizes}."]
    parts.append(
        _table(("goal", "measured", ""), [(g.goal, g.measured, "met" if g.met else "MISSED") for g in goals(results)])
    )
    if results.rounds["uniform"]:
        parts += ["### Events per second: median (lowest to highest round)", _throughput(results)]
    if results.killed:
        parts += ["### Correctness, and with a worker killed half-way", _correctness(results)]
    if results.latency:
        parts += ["### Latency from publishing to committed points, ms", _latency(results)]
    others = [
        (scenario, name, _spread(per_s(rounds)))
        for scenario in ("processes", "backlog", "history")
        for name, rounds in results.rounds[scenario].items()
    ]
    if others:
        parts += ["### More of this project", _table(("scenario", "", "events/s"), others)]
    if results.rounds["uniform"]:
        parts += ["### CPU seconds per 10,000 events, uniform", _cpu(results)]
    return "\n\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})" if values else ""


def _rounds(rounds: Sequence[Round]) -> str:
    stopped = sum(one.measured.late for one in rounds)
    return _spread(per_s(rounds)) + (f"; {stopped} stopped, slower than this" if stopped else "")


def _throughput(results: Results) -> str:
    shapes = [shape for shape in ("uniform", "heavy", "hot", "single") if results.rounds[shape]]
    rows = [(subject.name, *(_rounds(results.rounds[shape][subject.name]) for shape in shapes)) for subject in SUBJECTS]
    blanks = ("",) * (len(shapes) - 1)
    rows.append((PGBENCH, _spread(results.limit), *blanks))
    rows.append((f"{OURS}, embedded", _spread([measured.events_per_s for measured in results.embedded]), *blanks))
    return _table(("subject", *shapes), rows)


def _correctness(results: Results) -> str:
    rows = []
    for subject in SUBJECTS:
        every = [
            each.verdict for shape in results.rounds.values() for each in shape.get(subject.name, ()) if each.verdict
        ]
        killed = results.killed[subject.name].verdict
        assert killed is not None
        rows.append((
            subject.name,
            "yes" if all(verdict.totals_equal for verdict in every) else "no",
            str(sum(verdict.inversions for verdict in every)),
            str(sum(verdict.wrong_customers for verdict in every)),
            "yes" if killed.totals_equal else "no",
            *(str(figure) for figure in (killed.inversions, killed.doubles, killed.missing, killed.wrong_customers)),
        ))  # fmt: skip
    head = ("subject", "totals equal", "inversions", "wrong customers")
    return _table((*head, "killed: totals equal", "inversions", "doubles", "missing", "wrong customers"), rows)


def _latency(results: Results) -> str:
    rows = [
        (name, str(pace), *("too slow" if value is None else f"{value:.1f}" for value in each[:3]), str(each.late))
        for pace, subjects in results.latency.items()
        for name, each in subjects.items()
    ]
    return _table(("subject", "events/s", "p50", "p95", "p99", "late"), rows)


def _cpu(results: Results) -> str:
    rows = []
    for subject in SUBJECTS:
        rounds = results.rounds["uniform"][subject.name]
        used = {
            name: statistics.median(each.measured.cpu_s[name] for each in rounds) for name in rounds[0].measured.cpu_s
        }
        peaks = max(peak_mb(each.measured) for each in rounds)
        each_s = ", ".join(f"{name} {value:.2f}" for name, value in used.items())
        rows.append((subject.name, f"{sum(used.values()):.2f}", each_s, f"{peaks:.0f}"))
    return _table(("subject", "all", "by process", "largest process, MB"), rows)


def write(results: Results, docs: Path) -> None:
    """Put the tables into `benchmarks.md` between the marks, and the plot beside it."""
    page = docs / "benchmarks.md"
    before, _, rest = page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n\n{markdown(results)}\n\n{END}{after}")
    plot(results, docs / "benchmarks.png")


def plot(results: Results, file: Path) -> None:
    """Throughput by subject and shape of the stream, on a logarithmic axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    shapes = [shape for shape in ("uniform", "heavy", "hot", "single") if results.rounds[shape]]
    width = 0.8 / len(shapes)
    for index, shape in enumerate(shapes):
        medians = [statistics.median(per_s(results.rounds[shape][subject.name])) for subject in SUBJECTS]
        bars = axes.bar([place + index * width for place in range(len(SUBJECTS))], medians, width, label=shape)
        axes.bar_label(bars, fmt="{:,.0f}", fontsize=7)
    if results.limit:
        limit = statistics.median(results.limit)
        axes.axhline(limit, linestyle="--", color="grey", label=f"{PGBENCH}: {limit:,.0f}")
    axes.set_yscale("log")
    axes.set_xticks([place + 0.3 for place in range(len(SUBJECTS))], [s.name.replace(", ", ",\n") for s in SUBJECTS])
    axes.set_ylabel("events per second, median")
    axes.legend()
    figure.savefig(file, dpi=120)
