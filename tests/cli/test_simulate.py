"""`simulate`: a stream of lines, the same for the same seed."""

import subprocess
from datetime import UTC, datetime

import pytest

from customer_actors.simulate import ShopPlan, simulate
from tests.cli.running import PROGRAM, invoke, stopped

SIZES = ("--customers", "50", "--events", "300", "--seed", "9")


def test_it_writes_the_lines_of_the_plan_and_nothing_else() -> None:
    done = invoke("simulate", *SIZES, "--organizations", "2", "--duplicates", "0.5", "--malformed", "0", "--days", "30")
    plan = ShopPlan(50, 300, 9, organizations=2, duplicates=0.5, malformed=0, days=30)
    assert done.exit_code == 0
    assert done.stdout.splitlines() == list(simulate(plan))
    assert done.stderr == ""


def test_the_same_seed_writes_the_same_bytes_and_another_one_others() -> None:
    first, second, other = (invoke("simulate", *SIZES[:5], seed).stdout_bytes for seed in ("9", "9", "10"))
    assert first == second != other


def test_now_ends_the_time_simulated_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every day is another stream, so the day is a fixed one here."""
    day = datetime(2027, 5, 27, 11, 5, tzinfo=UTC)
    monkeypatch.setattr("customer_actors.cli.feeding.datetime", stopped(day))
    lines = invoke("simulate", *SIZES, "--now").stdout.splitlines()
    assert lines == list(simulate(ShopPlan(50, 300, 9, end_at=day)))


def test_a_reader_that_has_enough_ends_it_silently() -> None:
    shell = f"set -o pipefail; '{PROGRAM}' simulate --events 100000 | head -n 2"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=60)
    assert (done.returncode, len(done.stdout.splitlines()), done.stderr) == (0, 2, "")


@pytest.mark.parametrize(
    "wrong",
    [
        ("--customers", "0"),
        ("--events", "0"),
        ("--events", "-5"),
        ("--organizations", "0"),
        ("--days", "0"),
        ("--seed", "x"),
        ("--malformed", "1.5"),
        ("--duplicates", "-0.1"),
        ("--customers", "1", "--organizations", "2"),
    ],
)
def test_impossible_sizes_end_with_2_and_write_nothing(wrong: tuple[str, ...]) -> None:
    done = invoke("simulate", *wrong)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert wrong[0].removeprefix("--") in done.stderr


def test_help_explains_with_an_example() -> None:
    assert "Example: customer-actors simulate" in invoke("simulate", "--help").stdout
