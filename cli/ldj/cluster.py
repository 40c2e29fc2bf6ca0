"""`ldj cluster`: a real Kubernetes cluster on this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import rich.console
import rich.table
import typer

from lora_dpo_localcluster import clusters, images, kueue, poses, rootfs, state, tools
from lora_dpo_localcluster.errors import LocalClusterError, NotRunningError
from lora_dpo_localcluster.image import Image
from lora_dpo_localcluster.provider import Shape

app = typer.Typer(no_args_is_help=True, help="A real Kubernetes cluster on this machine.")
_console = rich.console.Console(stderr=True, highlight=False)

Name = Annotated[str, typer.Option("--name", help="The cluster's name; several live side by side.")]
Context = Annotated[Path, typer.Option("--context", help="The checkout with the Dockerfile.")]


def report(line: str) -> None:
    """Show a line of progress."""
    _console.print(f"[dim]·[/dim] {line}", soft_wrap=True)


@app.command()
def up(
    name: Name = clusters.DEFAULT,
    nodes: Annotated[int, typer.Option(min=1, max=20, help="Ordinary nodes.")] = 1,
    tpu: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MACHINE_TYPE=TOPOLOGY",
            help="Add a slice whose hosts pose as TPU hosts, such as ct5p-hightpu-4t=2x2x1. Repeat it for more slices.",
        ),
    ] = None,
) -> None:
    """Start a cluster: nodes, JobSet, a bucket. The first start builds its programs, which takes minutes."""
    shape = Shape(nodes, tuple(poses.parse(text) for text in tpu or ()))
    cluster = clusters.open_cluster(name)
    cluster.up(shape, report)
    if shape.poses:
        report("the TPU hosts only pose: labels and google.com/tpu capacity, no chips")
    print(f"export KUBECONFIG={cluster.kubeconfig}")


@app.command()
def down(name: Name = clusters.DEFAULT) -> None:
    """Remove a cluster and everything that it made."""
    clusters.open_cluster(name).down(report)


@app.command()
def status(name: Name = clusters.DEFAULT) -> None:
    """Show what runs; exits with 1 when the cluster isn't up or a program of it has ended."""
    cluster = clusters.open_cluster(name)
    now = cluster.status()
    if not now.running:
        raise NotRunningError(f"The cluster {name} isn't up; start it with `ldj cluster up --name {name}`.")
    table = rich.table.Table(box=None, show_header=False)
    table.add_row("cluster", f"{name} ({now.provider})")
    table.add_row("kubeconfig", str(cluster.kubeconfig))
    table.add_row("bucket", f"{cluster.bucket.host_url} here, {cluster.bucket.pod_url} in pods")
    for pose in now.shape.poses if now.shape else ():
        table.add_row("poses as", f"{pose.machine_type} {pose.topology}, {pose.slice.hosts} hosts")
    for process, alive in now.processes:
        table.add_row(process, "running" if alive else "[red]ended[/red]")
    rich.console.Console().print(table)
    if not all(alive for _, alive in now.processes):
        raise typer.Exit(1)


@app.command()
def kubeconfig(name: Name = clusters.DEFAULT) -> None:
    """Print the path of the kubeconfig: `export KUBECONFIG=$(ldj cluster kubeconfig)`."""
    cluster = clusters.open_cluster(name)
    if not cluster.kubeconfig.is_file():
        raise NotRunningError(f"The cluster {name} isn't up; start it with `ldj cluster up --name {name}`.")
    print(cluster.kubeconfig)


@app.command()
def load(
    image: Annotated[str, typer.Argument(help=f"{' or '.join(images.TARGETS)}, or the path of an image archive.")],
    name: Name = clusters.DEFAULT,
    context: Context = Path(),
) -> None:
    """Give every node an image: one of the project's (built first, if it changed), or an archive's."""
    cluster = clusters.open_cluster(name)
    if image in images.TARGETS:
        made = cluster.build(image, context.resolve(), report)
    elif Path(image).is_file():
        made = Image(image, Path(image).resolve())
    else:
        raise LocalClusterError(
            f"{image!r} is neither {' nor '.join(images.TARGETS)} nor the path of an image archive."
        )
    cluster.load(made, report)
    print(made.name)


@app.command(context_settings={"ignore_unknown_options": True})
def exec(
    command: Annotated[list[str], typer.Argument(help="The command, after `--`.")], name: Name = clusters.DEFAULT
) -> None:
    """Run a command of this machine with the cluster's network, where pods' addresses are reached."""
    cluster = clusters.open_cluster(name)
    env = {"KUBECONFIG": str(cluster.kubeconfig)}
    sys.exit(
        subprocess.run(["env", *(f"{key}={value}" for key, value in env.items()), *cluster.command(command)]).returncode
    )


@app.command("kueue")
def install_kueue(name: Name = clusters.DEFAULT) -> None:
    """Install Kueue in a running cluster, to try queues out. The first time builds it, which takes minutes."""
    kueue.install(clusters.open_cluster(name), report)


@app.command("tools")
def build_tools(
    with_kueue: Annotated[bool, typer.Option("--kueue", help="Kueue too, for `ldj cluster kueue`.")] = False,
) -> None:
    """Build the cluster's programs into the cache folder, so that the first start is quick."""
    tools.ensure(report, (*tools.MODULES, *((tools.KUEUE,) if with_kueue else ())))
    print(state.cache_folder() / "tools")


@app.command("images")
def build_images(name: Name = clusters.DEFAULT, context: Context = Path()) -> None:
    """Build the project's images into the cache."""
    cluster = clusters.open_cluster(name)
    for target in images.TARGETS:
        print(cluster.build(target, context.resolve(), report).name)


@app.command("list")
def list_clusters() -> None:
    """Print the names of the clusters that were started and not removed."""
    for name in state.existing_clusters():
        print(name)


@app.command()
def clean() -> None:
    """Forget built images and the base image; the programs stay."""
    images.clear()
    report(f"removed images and {rootfs.IMAGE}'s stand-in from {state.cache_folder()}")
