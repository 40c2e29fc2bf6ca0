"""The command `ldj`, also `kubectl ldj`: every part adds its own group of commands here."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import rich.console
import typer

from ldj import cluster, control, convert, demo, logs, plot, render, run, status, submit, validate, watch
from ldj.errors import LdjError
from lora_dpo_localcluster.errors import LocalClusterError

JOBS = "Jobs on a cluster"
FILES = "Files, without a cluster"
HERE = "On this machine"

app = typer.Typer(
    name="ldj",
    help="LoRA-DPO jobs on Kubernetes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command(rich_help_panel=JOBS)(submit.submit)
app.command(rich_help_panel=JOBS)(status.status)
app.command(rich_help_panel=JOBS)(watch.watch)
app.command(rich_help_panel=JOBS)(plot.plot)
app.command(rich_help_panel=JOBS)(logs.logs)
app.command(rich_help_panel=JOBS)(control.suspend)
app.command(rich_help_panel=JOBS)(control.resume)
app.command(rich_help_panel=JOBS)(control.retry)
app.command(rich_help_panel=FILES)(validate.validate)
app.command(rich_help_panel=FILES)(convert.convert)
app.command(rich_help_panel=FILES)(render.render)
app.command(rich_help_panel=HERE)(run.run)
app.command(rich_help_panel=HERE)(demo.demo)
app.add_typer(cluster.app, name="cluster", rich_help_panel=HERE)


@app.callback()
def _root() -> None:
    """LoRA-DPO jobs on Kubernetes."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; what a user can mend is told in a sentence, without a traceback.

    Args:
        arguments: the words after `ldj`; the process's own by default.
    """
    console = rich.console.Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        app(arguments)
    except (LocalClusterError, LdjError) as error:
        console.print("error:", style="bold red", end=" ")
        console.print(str(error), markup=False)
        sys.exit(error.exit_code if isinstance(error, LdjError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)
