"""The command `ldj`, also `kubectl ldj`: every part adds its own group of commands here."""

from __future__ import annotations

import sys

import rich.console
import typer

from ldj import cluster, convert, demo, render, validate
from ldj.errors import LdjError
from lora_dpo_localcluster.errors import LocalClusterError

app = typer.Typer(
    name="ldj",
    help="LoRA-DPO jobs on Kubernetes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(cluster.app, name="cluster")
app.command()(validate.validate)
app.command()(convert.convert)
app.command()(render.render)
app.command()(demo.demo)


@app.callback()
def _root() -> None:
    """LoRA-DPO jobs on Kubernetes."""


def main() -> None:
    """Run the command line; what a user can mend is told in a sentence, without a traceback."""
    console = rich.console.Console(stderr=True, highlight=False)
    try:
        app()
    except (LocalClusterError, LdjError) as error:
        console.print("error:", style="bold red", end=" ")
        console.print(str(error), markup=False)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
