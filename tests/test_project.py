"""What stands around the code fits the code: commands, settings, images, packaging, imports."""

import argparse
import ast
import configparser
import importlib
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from dramatiq.cli import make_argument_parser

from customer_actors.actors.watchdog import STOP_S
from customer_actors.settings import PREFIX, Settings, load_settings, variable

ROOT = Path(__file__).parents[1]
IMAGES = {"postgres": "postgres:17", "rabbitmq": "rabbitmq:4.1"}
"""Reviewed. Changing a version is a decision: read its notes on upgrading data first."""
BASE_IMAGES = {"python:3.11-slim"}
APP = {"migrate", "ingest", "worker", "scheduler"}
PASSWORDS = {"POSTGRES_PASSWORD", "RABBITMQ_PASSWORD"}
VARIABLES = {variable(field) for field in Settings.model_fields}


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg")
    return parser


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


def services() -> dict[str, dict[str, Any]]:
    loaded: dict[str, dict[str, Any]] = compose()["services"]
    return loaded


def procfile() -> dict[str, list[str]]:
    lines = (ROOT / "Procfile").read_text().splitlines()
    return {name: shlex.split(command) for name, command in (line.split(": ", 1) for line in lines)}


def instructions(name: str) -> list[list[str]]:
    """The instructions of a Dockerfile as words, continued lines joined."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    return [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]


# Commands


def console_script(name: str) -> Any:
    """What a command of ours or of a dependency calls."""
    ours = re.search(rf"^{name} = (\S+):(\S+)$", setup_cfg()["options.entry_points"]["console_scripts"], re.MULTILINE)
    if ours:
        return getattr(importlib.import_module(ours[1]), ours[2])
    (script,) = entry_points(group="console_scripts", name=name)
    return script.load()


def dramatiq_options(arguments: list[str]) -> argparse.Namespace:
    options: argparse.Namespace = make_argument_parser().parse_args(arguments)  # type: ignore[no-untyped-call]
    return options


def check(command: list[str]) -> None:
    """Fails unless the command line would be understood."""
    match command:
        case ["customer-actors", verb, *rest]:
            group = console_script("customer-actors")
            assert isinstance(group, click.Group)
            found = group.get_command(click.Context(group), verb)
            assert found, f"customer-actors has no verb {verb}"
            found.make_context(verb, rest)
        case ["dramatiq", *arguments]:
            console_script("dramatiq")
            module, _, function = dramatiq_options(arguments).broker.partition(":")
            assert callable(getattr(importlib.import_module(module), function))
        case ["python", "-m", module]:
            assert find_spec(f"{module}.__main__")
        case _:
            pytest.fail(f"nobody checks {command}")


@pytest.mark.parametrize(("name", "command"), procfile().items(), ids=procfile().keys())
def test_every_process_can_be_started(name: str, command: list[str]) -> None:
    check(command)


@pytest.mark.parametrize("service", sorted(APP))
def test_every_container_can_be_started(service: str) -> None:
    check(services()[service]["command"])


def test_containers_run_the_processes_of_the_procfile() -> None:
    assert {name: services()[name]["command"] for name in procfile()} == procfile()


def test_workers_can_wait_for_their_threads_before_their_stop_is_cut() -> None:
    # Dramatiq waits so long twice, for threads and for consumers; tests/e2e/test_processes.py times the whole [G15].
    assert 2 * dramatiq_options(procfile()["worker"][1:]).worker_shutdown_timeout < 1000 * STOP_S


def test_the_image_shows_the_help_of_a_real_command() -> None:
    command = ast.literal_eval(" ".join(instructions("Dockerfile")[-1][1:]))
    assert command == ["customer-actors", "--help"]
    assert isinstance(console_script(command[0]), click.Group)


# Containers


def test_containers_are_the_app_and_reviewed_images() -> None:
    built = {name for name, service in services().items() if "build" in service}
    assert built == APP
    assert {name: service["image"] for name, service in services().items() if name not in built} == IMAGES
    assert {line[1] for line in instructions("Dockerfile") if line[0] == "FROM"} == BASE_IMAGES


def test_ports_are_published_on_loopback_only() -> None:
    ports = [port for service in services().values() for port in service.get("ports", [])]
    assert ports
    assert [port for port in ports if not str(port).startswith("127.0.0.1:")] == []


def test_containers_get_real_settings_that_the_service_accepts() -> None:
    for name in APP:
        environment = {
            key: re.sub(r"\$\{\w+:\?[^}]*\}", "s3cret", value) for key, value in services()[name]["environment"].items()
        }
        assert set(environment) <= VARIABLES
        settings = load_settings(environment)
        assert settings.database_url.startswith("postgresql://")
        assert (settings.rabbitmq_url is None) == (name == "migrate")


def test_containers_of_the_app_agree_with_their_servers() -> None:
    database, broker = services()["postgres"]["environment"], services()["rabbitmq"]["environment"]
    environment = services()["worker"]["environment"]
    user, password, name = (database[f"POSTGRES_{part}"] for part in ("USER", "PASSWORD", "DB"))
    assert environment["DATABASE_URL"] == f"postgresql://{user}:{password}@postgres:5432/{name}"
    user, password = (broker[f"RABBITMQ_DEFAULT_{part}"] for part in ("USER", "PASS"))
    assert environment["RABBITMQ_URL"] == f"amqp://{user}:{password}@rabbitmq:5672/"


def test_no_password_is_written_down_and_none_has_a_default() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    assert set(re.findall(r"\$\{(\w+):\?", text)) == PASSWORDS
    assert len(re.findall(r"\$\{", text)) == len(re.findall(r"\$\{\w+:\?", text))
    written = [str(v) for s in services().values() for k, v in s.get("environment", {}).items() if "PASS" in k]
    assert [value for value in written if not value.startswith("${")] == []
    assert "guest" not in text


def test_everything_waits_for_what_it_needs() -> None:
    for name in ("ingest", "worker", "scheduler"):
        assert services()[name]["depends_on"] == {
            "migrate": {"condition": "service_completed_successfully"},
            "rabbitmq": {"condition": "service_healthy"},
        }
    assert services()["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert all("healthcheck" in services()[name] for name in IMAGES)


def test_every_container_has_a_restart_policy_and_time_to_stop() -> None:
    for name, service in services().items():
        assert service["restart"] == ("on-failure:5" if name == "migrate" else "unless-stopped")
        assert int(service["stop_grace_period"].removesuffix("s")) > 4


def test_every_volume_is_declared() -> None:
    used = {volume.split(":")[0] for service in services().values() for volume in service.get("volumes", [])}
    assert used == set(compose()["volumes"])


def test_the_image_runs_as_a_user_that_is_not_root() -> None:
    lines = instructions("Dockerfile")
    last_stage = lines[max(i for i, line in enumerate(lines) if line[0] == "FROM") :]
    (user,) = [line[1] for line in last_stage if line[0] == "USER"]
    assert int(user) >= 1000


def test_everything_the_image_copies_is_let_into_its_build() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {word for line in instructions("Dockerfile") if line[0] == "COPY" for word in line[1:-1]}
    assert copied == allowed


# Packaging


def test_the_wheel_holds_every_module_and_every_migration(tmp_path: Path) -> None:
    source, wheels = tmp_path / "source", tmp_path / "wheels"
    for name in ("customer_actors", "scheduler"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run([*pip, f"--wheel-dir={wheels}", str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = wheels.iterdir()
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    sources = {
        str(path.relative_to(ROOT))
        for package in ("customer_actors", "scheduler")
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".sql")
    }
    assert [name for name in sources if "/migrations/0" in name]
    assert packed == sources


def imports(path: Path) -> set[str]:
    """Top-level names that a file imports."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    relative = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[0] for name in plain | relative}


def test_every_dependency_that_is_imported_is_declared() -> None:
    text = setup_cfg()["options"]["install_requires"].lower()
    declared = {re.split(r"[\[<>=]", line)[0].removesuffix("-binary").replace("-", "_") for line in text.split()}
    provided = {"playhouse": "peewee", "dotenv": "python_dotenv"}
    imported = {
        provided.get(name, name)
        for package in ("customer_actors", "scheduler")
        for path in (ROOT / package).rglob("*.py")
        for name in imports(path)
    }
    assert imported - sys.stdlib_module_names - {"customer_actors", "scheduler"} <= declared


def test_the_domain_imports_the_standard_library_and_pydantic_only() -> None:
    allowed = sys.stdlib_module_names | {"customer_actors", "pydantic"}
    files = sorted((ROOT / "customer_actors" / "domain").glob("*.py"))
    assert files
    assert {path.name: extra for path in files if (extra := imports(path) - allowed)} == {}


def test_mypy_is_strict() -> None:
    assert setup_cfg()["mypy"]["strict"] == "true"


def test_every_variable_with_our_prefix_is_a_setting() -> None:
    """A variable that is documented or set somewhere but read nowhere would be believed."""
    files = [ROOT / name for name in ("docker-compose.yml", "Makefile", "Procfile", "Dockerfile", ".env.example")]
    named = {name for path in files for name in re.findall(rf"\b{PREFIX}[A-Z_]+\b", path.read_text())}
    assert named <= VARIABLES
