"""What the command line says of a customer whose state row is gone: the fix, and no stack of Python."""

import shlex
import subprocess

import pytest

from customer_actors.domain.routing import ACTORS, LOYALTY
from customer_actors.storage.views import STATES
from tests.cli.running import PROGRAM
from tests.cli.shop import LIFE, Shop
from tests.model.examples import order

WHY = ("--reason", "a restored backup", "--operator", "op")
C1 = ("c1", "--org", "org-1")


@pytest.mark.parametrize("actor", ACTORS)
@pytest.mark.parametrize(
    "args",
    [
        ("show", *C1),
        ("explain", *C1),
        ("held", "release", *C1, *WHY, "--actor"),
        ("held", "skip", *C1, *WHY, "--position", "1", "--actor"),
        ("held", "skip", *C1, *WHY, "--position", "1", "--dry-run", "--actor"),
    ],
    ids=["show", "explain", "release", "skip", "skip dry"],
)
def test_a_missing_row_is_one_line_that_names_the_rebuild(shop: Shop, args: tuple[str, ...], actor: str) -> None:
    shop.settle(*LIFE)
    shop.execute(f"DELETE FROM {STATES[actor].table}")
    done = shop.run(*args, *([actor] if args[-1] == "--actor" else []))
    assert (done.exit_code, done.stdout) == (1, "")
    assert "no customer" not in done.stderr
    assert "customer-actors rebuild " in done.stderr
    assert done.stderr.count("\n") == 1


def test_audit_names_the_rebuild_that_puts_it_right(shop: Shop) -> None:
    shop.settle(*LIFE)
    shop.execute("DELETE FROM loyalty_state")
    told = shop.run("audit").stdout.splitlines()[-1]
    assert told.endswith("customer-actors rebuild loyalty --dry-run --reason TEXT")
    dry, real = (("rebuild", LOYALTY, *WHY, *also) for also in (("--dry-run",), ()))
    assert [shop.run(*args).exit_code for args in (dry, real, ("audit",), ("show", *C1))] == [1, 0, 0, 0]


@pytest.mark.parametrize("args", [("audit", "--json"), ("explain", *C1), ("held", "list", "--customers")], ids=" ".join)
def test_a_reader_that_had_enough_hears_no_complaint(shop: Shop, args: tuple[str, ...]) -> None:
    shop.settle(*(order(f"O-{n}", "5") for n in range(900)))
    command = f"DATABASE_URL={shlex.quote(shop.url)} {shlex.quote(PROGRAM)} {shlex.join(args)} | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert (len(done.stdout), done.stderr) == (1, "")
