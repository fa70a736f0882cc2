"""docs/guarantees.md names tests that exist, for every guarantee but those it says are still to come."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "guarantees.md").read_text()
ROWS = dict(re.findall(r"^\| (G\d+) \| (.*) \|$", TEXT, re.MULTILINE))


def test_every_guarantee_has_a_row_or_is_said_to_come() -> None:
    promised = set(re.findall(r"\b(G\d+) [A-Za-z]", TEXT.partition("## Guarantees")[2].partition("\n## ")[0]))
    assert len(promised) == 24
    for missing in promised - set(ROWS):
        assert re.search(rf"no test yet shows[^.]*\b{missing}\b", TEXT), missing


def test_every_named_test_exists() -> None:
    named = [(tag, *each) for tag, row in ROWS.items() for each in re.findall(r"`(tests/[\w/.]+)(?:::(\w+))?`", row)]
    assert len(named) > len(ROWS)
    for tag, path, function in named:
        source = (ROOT / path).read_text()
        assert not function or f"def {function}(" in source, (tag, path, function)
