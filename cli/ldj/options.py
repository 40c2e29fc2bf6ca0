"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ldj.kube import Kube

Name = Annotated[str, typer.Argument(metavar="JOB", help="Name of the LoraDpoJob.")]
Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Its namespace. Default: that of the kubeconfig's context.")
]
Context = Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig. Default: the current one.")]
Kubeconfig = Annotated[
    Path | None,
    typer.Option("--kubeconfig", help="The kubeconfig. Default: $KUBECONFIG, ~/.kube/config, or the pod's own."),
]


def connect(namespace: str | None, context: str | None, kubeconfig: Path | None) -> Kube:
    """The cluster that the options choose.

    Raises:
        UnreachableError: there is no usable kubeconfig.
    """
    # Here, because the client takes a second to import, and half of the commands need no cluster.
    from ldj import kube

    return kube.connect(kubeconfig=kubeconfig, context=context, namespace=namespace)
