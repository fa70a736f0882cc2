"""`health live` and `health ready`: exit codes and what they print."""

import subprocess
import time
from pathlib import Path

import pytest

from customer_actors.storage.beats import beat
from tests.cli.running import invoke
from tests.cli.shop import Shop
from tests.model.examples import order
from tests.servers.process import free_port


def now_us() -> int:
    return time.time_ns() // 1_000


def test_ready_is_green_line_by_line_and_red_when_an_event_waits(shop: Shop) -> None:
    result = shop.run("health", "ready")
    assert result.exit_code == 0
    assert {line.split()[0] for line in result.stdout.splitlines()} == {"ok"}
    shop.append([order("1", "10")._replace(received_at_us=now_us() - 400_000_000)], now_us() - 400_000_000)
    result = shop.run("health", "ready")
    assert result.exit_code == 1
    [red] = [line for line in result.stdout.splitlines() if line.startswith("red")]
    assert red.split()[1] == "lag"
    assert shop.run("health", "ready", CUSTOMER_ACTORS_HEALTH_MAX_LAG_SECONDS="1000").exit_code == 0
    shop.settle()
    document = shop.json("health", "ready")
    assert document["ok"]
    assert {check["name"] for check in document["checks"]} >= {"database", "schema", "lag", "held", "parked"}


def test_live_knows_this_very_process(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shop.run("health", "live", "--kind", "worker").exit_code == 1
    beat(shop.database, "worker", now_us(), expected=3, alive=3)
    assert shop.run("health", "live").exit_code == 0
    assert shop.run("health", "live", "--kind", "ingest").exit_code == 1
    beat(shop.database, "worker", now_us(), expected=3, alive=2)
    result = shop.run("health", "live", "--kind", "worker")
    assert (result.exit_code, "1 of 3 threads are dead: restart it" in result.stdout) == (1, True)
    beat(shop.database, "worker", now_us() - 60_000_000)
    monkeypatch.setattr("customer_actors.cli.health._started_us", lambda pid: now_us() - 120_000_000)
    assert "runs without a sign of life for 6" in shop.run("health", "live").stdout


def test_the_number_of_a_process_that_is_gone_may_be_that_of_a_later_one(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a restarted container: the new processes have the numbers of the old ones in another order."""
    beat(shop.database, "worker", now_us() - 24 * 3_600_000_000)
    monkeypatch.setattr("customer_actors.storage.beats.os.getpid", lambda: 1)
    beat(shop.database, "worker", now_us())
    monkeypatch.undo()
    [later, *_] = shop.run("health", "live").stdout.splitlines()
    assert later.startswith("ok   worker:")
    assert shop.run("health", "live").exit_code == 0


def test_a_beat_of_tomorrow_keeps_nobody_alive(shop: Shop) -> None:
    beat(shop.database, "worker", now_us() + 86_400_000_000)
    assert shop.run("health", "live").exit_code == 1
    beat(shop.database, "worker", now_us())
    assert shop.run("health", "live").exit_code == 0


def test_without_a_broker_nothing_has_to_run(shop: Shop) -> None:
    result = shop.run("health", "live")
    assert (result.exit_code, "embedded" in result.stdout) == (0, True)


def test_a_killed_embedded_run_leaves_nothing_red(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["true"]) as gone:
        pass
    monkeypatch.setattr("customer_actors.storage.beats.os.getpid", lambda: gone.pid)
    beat(shop.database, "embedded", now_us() - 60_000_000, alarm="mass failure")
    monkeypatch.undo()
    result = shop.run("health", "live")
    assert (result.exit_code, "embedded" in result.stdout) == (0, True)
    assert shop.run("health", "ready").exit_code == 0
    beat(shop.database, "embedded", now_us())
    assert "ok   embedded:" in shop.run("health", "live").stdout


@pytest.mark.parametrize("probe", ["live", "ready"])
def test_a_database_that_is_away_is_exit_4(probe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    env = {"DATABASE_URL": f"postgresql://nobody:s3cret@127.0.0.1:{free_port()}/none"}
    result = invoke("health", probe, env=env)
    assert result.exit_code == 4
    assert "s3cret" not in result.output


@pytest.mark.parametrize("probe", ["live", "ready"])
def test_an_old_schema_is_red_and_names_the_command(
    probe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("new.db").touch()
    result = invoke("health", probe, env={"DATABASE_URL": "sqlite:///new.db"})
    assert result.exit_code == 1
    assert "customer-actors migrate" in result.stdout


def test_a_broker_without_processes_is_red(postgres_url: str, rabbitmq_url: str) -> None:
    env = {"DATABASE_URL": postgres_url, "RABBITMQ_URL": rabbitmq_url}
    assert invoke("migrate", env=env).exit_code == 0
    result = invoke("health", "ready", env=env)
    red = {line.split()[1] for line in result.stdout.splitlines() if line.startswith("red")}
    assert (result.exit_code, red) == (1, {"worker", "ingest"})
    away = invoke("health", "ready", env=env | {"RABBITMQ_URL": f"amqp://a:s3cret@127.0.0.1:{free_port()}/"})
    assert "s3cret" not in away.output
    assert "red  broker" in away.stdout


@pytest.mark.parametrize("verb", [("health", "live"), ("health", "ready")])
def test_every_probe_has_an_example(verb: tuple[str, ...]) -> None:
    assert f"Example: customer-actors {' '.join(verb)}" in invoke(*verb, "--help").stdout
