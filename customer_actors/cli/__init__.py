"""`customer-actors`: one module per family of verbs.

Exit codes: 0 ok, 1 found problems or refused, 2 usage, 3 already done, 4 cannot connect.
"""

import click

import customer_actors.cli.audit as audit
import customer_actors.cli.commands as commands
import customer_actors.cli.doctor as doctor
import customer_actors.cli.feeding as feeding
import customer_actors.cli.health as health
import customer_actors.cli.quarantine as quarantine
import customer_actors.cli.reading as reading
import customer_actors.cli.services as services
import customer_actors.cli.triage as triage
from customer_actors import __version__
from customer_actors.cli.common import ErrorsToExitCodes


@click.group(cls=ErrorsToExitCodes, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="customer-actors")
def main() -> None:
    """Customer events in order, exactly once, explained.

    Settings come from environment variables and a .env file, see .env.example. Without any, everything runs in this
    process on an SQLite file in the working directory.
    """


for _family in (feeding, reading, commands, services, triage, quarantine, health, audit, doctor):
    for _verb in _family.VERBS:
        main.add_command(_verb)
