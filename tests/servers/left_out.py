"""A test that cannot have the server it needs."""

import os
from collections.abc import Iterable
from typing import Final, NoReturn

import pytest

ON_CI: Final = os.environ.get("CI", "").lower() not in ("", "0", "false")


def without_server(reason: str, on_ci: bool = ON_CI) -> NoReturn:
    """A test cannot have its server: fails on CI, elsewhere skips, and the end of the run says so loudly."""
    if on_ci:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def reasons(skipped: Iterable[pytest.TestReport]) -> list[str]:
    """Why tests were left out, each once. Asked of the reports, for the tests may have run in other processes."""
    return sorted(
        {report.longrepr[2].removeprefix("Skipped: ") for report in skipped if isinstance(report.longrepr, tuple)}
    )
