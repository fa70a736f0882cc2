"""The arrows, make and the documents hold what they promise."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


# Arrows and make


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", command, "--no-cache", "--no-logo"], cwd=folder, capture_output=True, text=True
    )


def test_every_arrow_points_the_right_way() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("customer_actors/domain/stats.py", "peewee"),
        ("customer_actors/domain/stats.py", "customer_actors.errors"),
        ("customer_actors/domain/stats.py", "customer_actors.groups"),
        ("customer_actors/groups/advance.py", "psycopg2"),
        ("customer_actors/groups/advance.py", "customer_actors.domain.money"),
        ("customer_actors/groups/advance.py", "customer_actors.storage"),
        ("customer_actors/storage/append.py", "dramatiq"),
        ("customer_actors/storage/append.py", "customer_actors.actors"),
        ("customer_actors/actors/broker.py", "customer_actors.ingest"),
        ("customer_actors/actors/broker.py", "customer_actors.cli"),
        ("customer_actors/actors/broker.py", "customer_actors.commands"),
        ("customer_actors/storage/append.py", "customer_actors.process"),
        ("customer_actors/process.py", "customer_actors.ingest"),
        ("customer_actors/simulate.py", "customer_actors.commands"),
        ("customer_actors/ingest/intake.py", "customer_actors.actors"),
        ("customer_actors/ingest/intake.py", "scheduler"),
        ("customer_actors/cli/__init__.py", "scheduler"),
        ("customer_actors/settings.py", "customer_actors.storage"),
    ],
)
def test_an_arrow_that_points_the_wrong_way_is_found(tmp_path: Path, importer: str, imported: str) -> None:
    for name in ("customer_actors", "scheduler"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    with (tmp_path / importer).open("a") as file:
        file.write(f"\nimport {imported}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    assert "BROKEN" in done.stdout


@pytest.mark.parametrize("target", ["test", "check", "demo"])
def test_make_prepares_what_it_needs_by_itself(target: str) -> None:
    assert ".venv/.ready" in made(target) or (ROOT / ".venv" / ".ready").exists()
    assert "--editable" in made(target, "--assume-new=setup.cfg")


def test_make_test_checks_style_types_and_arrows_before_the_tests() -> None:
    commands = made("test")
    order = [commands.index(f".venv/bin/{tool}") for tool in ("ruff check", "mypy", "lint-imports", "pytest")]
    assert order == sorted(order)


def test_make_help_explains_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)[0].split())
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^  make ([a-z-]+) ", shown, re.MULTILINE)) == targets


def test_ci_runs_the_same_tests_as_everybody() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "export CI=true" in script
    assert script.rstrip().endswith("make test")


# Documents


def cited(text: str) -> set[str]:
    """Tags of rules, guarantees and facts named in brackets; a range names all it spans."""
    tags: set[str] = set()
    for listed in re.findall(r"\[([ASLRCGM]\d[^\[\]]*)\]", text):
        for kind, first, last in re.findall(r"\b([A-Z])(\d+)(?:-[A-Z](\d+))?", listed):
            tags.update(f"{kind}{number}" for number in range(int(first), int(last or first) + 1))
    return tags


def test_a_citation_names_one_tag_several_or_a_range() -> None:
    assert cited("as [S1] says, [L1, L2] and [A1-A3, C9, invariants], not x[0] or [Any]") == {
        *("S1", "L1", "L2", "A1", "A2", "A3", "C9"),
    }


def test_every_cited_tag_has_its_text_in_the_documents() -> None:
    code = [path for folder in ("customer_actors", "scheduler", "tests") for path in (ROOT / folder).rglob("*.py")]
    rules = set(re.findall(r"^\[([ASLRC]\d+)\] ", (ROOT / "docs" / "rules.md").read_text(), re.MULTILINE))
    facts = set(re.findall(r"\b([GM]\d+) (?=[A-Z])", (ROOT / "docs" / "guarantees.md").read_text()))
    missing = {(path.name, tag) for path in code for tag in cited(path.read_text()) - rules - facts}
    assert rules
    assert facts
    assert missing == set()


def test_no_document_has_a_gap_to_be_filled() -> None:
    tracked = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "README.md" in tracked.split()
    assert [name for name in tracked.split() if "PLACEHOLDER" in (ROOT / name).read_text()] == []


def made(target: str, *options: str) -> str:
    """What make would run."""
    done = subprocess.run(["make", "--dry-run", *options, target], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout
