"""A test that cannot have the server it needs."""

import os
from typing import Final, NoReturn

import pytest

ON_CI: Final = os.environ.get("CI", "").lower() not in ("", "0", "false")

REASONS: Final[set[str]] = set()
"""Why tests were left out, for the end of the run."""


def without_server(reason: str, on_ci: bool = ON_CI) -> NoReturn:
    """A test cannot have its server: fails on CI, elsewhere skips and says so loudly at the end."""
    if on_ci:
        pytest.fail(reason, pytrace=False)
    REASONS.add(reason)
    pytest.skip(reason)
