"""`ldj demo`: a real cluster, a real language model, one LoraDpoJob from apply to adapter."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ldj import follow, install, prometheus, quickstart
from ldj.errors import DemoError, FollowTimeoutError, KubectlError
from ldj.kubectl import Kubectl
from lora_dpo_api.job import LoraDpoJob
from lora_dpo_api.status import JobPhase, LoraDpoJobStatus
from lora_dpo_localcluster import clusters, debian, locks, state
from lora_dpo_localcluster.provider import Cluster, Shape

JOB = "quickstart"
NAMESPACE = "default"
JOB_TIMEOUT = 2700.0
SHOWN_ANSWERS = 6
SHOWN_CHARACTERS = 120
LOG_WIDTH = 140
"""Columns where the output is no terminal."""

STEP_0_LOSS = math.log(2)
STEP_0_TOLERANCE = 0.0005
HELD_OUT_ACCURACY = 0.9

QUERIES = (
    ("operator", "loss", f'loradpo_operator_job_loss{{namespace="{NAMESPACE}", name="{JOB}"}}'),
    ("operator", "margin", f'loradpo_operator_job_reward_margin{{namespace="{NAMESPACE}", name="{JOB}"}}'),
    ("operator", "accuracy", f'loradpo_operator_job_accuracy{{namespace="{NAMESPACE}", name="{JOB}"}}'),
    ("trainer", "loss", "last_over_time(loradpo_train_dpo_loss[1h])"),
    ("trainer", "policy margin", "last_over_time(loradpo_train_dpo_margin_policy[1h])"),
    ("trainer", "accuracy", "last_over_time(loradpo_train_dpo_accuracy[1h])"),
)
"""What is asked of Prometheus: the operator's series live as long as the job, the trainer's as long as its pod."""


@dataclasses.dataclass(frozen=True, slots=True)
class Clock:
    """Names the steps of the demo and prints how long each took."""

    console: Console
    started: float = dataclasses.field(default_factory=time.monotonic)

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        """A step with a title, timed."""
        before = time.monotonic()
        self.console.print(f"\n[bold]▸ {title}[/bold]", highlight=False)
        yield
        self.console.print(f"  [dim]{time.monotonic() - before:.1f} s[/dim]", highlight=False)

    def report(self, line: str) -> None:
        """A line of progress within a step."""
        self.console.print(f"  [dim]·[/dim] {line}", soft_wrap=True, highlight=False)

    @property
    def seconds(self) -> float:
        """Since the demo began."""
        return time.monotonic() - self.started


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the cluster up at the end, to look around.")] = False,
    name: Annotated[str, typer.Option("--name", help="The cluster's name; one of that name is made anew.")] = "demo",
    checkout: Annotated[Path, typer.Option("--checkout", help="The clone of the project.")] = Path(),
) -> None:
    """Start a cluster, train SmolLM2 with one LoraDpoJob, and answer questions before and after."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else LOG_WIDTH)
    clock = Clock(console)
    root = checkout.resolve()
    example = quickstart.Quickstart(root)
    if not example.job.is_file():
        raise DemoError(f"There is no {example.job}; run `ldj demo` in the project's clone, or give --checkout.")
    with locks.claimed(state.clusters_folder() / f"{name}.demo.lock") as alone:
        if not alone:
            raise DemoError(f"Another demo runs on the cluster {name}; wait for its end, or give --name.")
        _demo(clusters.open_cluster(name), console, clock, example, root, keep=keep)
    console.print(f"\n[bold green]Done[/bold green] in {clock.seconds / 60:.1f} min.")


def _demo(
    cluster: Cluster, console: Console, clock: Clock, example: quickstart.Quickstart, root: Path, *, keep: bool
) -> None:
    """The recipe, from an empty machine to the numbers; the cluster goes at the end, however that came."""
    results = root / "build" / "demo"
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)
    try:
        with clock.step("SmolLM2-135M-Instruct"):
            model = example.model()
            clock.report(f"from the {model.origin}: {model.folder}")
        _start(cluster, clock, root)
        with clock.step("Bucket: model and data under gs://quickstart"):
            clock.report(f"{example.fill(cluster.bucket, model) / 1e6:.0f} MB written")
        with clock.step("Prometheus beside the cluster"):
            debian.ensure_for_prometheus(clock.report)
        chosen = prometheus.read_monitors(root / "operator" / "manifests" / "monitors.yaml")
        with prometheus.running(cluster, results, chosen) as monitor:
            kubectl = Kubectl(cluster, NAMESPACE)
            job = _run(kubectl, console, clock, example, results, monitor)
            _show(kubectl, console, job, monitor)
        adapter = _adapter(cluster, job, results)
        with clock.step("60 held-out questions, answered greedily without and with the adapter"):
            before = example.answers(model, results / "before.json")
            after = example.answers(model, results / "after.json", adapter)
            _compare(console, before, after)
        verify(job.status)
        console.print(f"\nThe adapter: {_artifact(job)}, and a copy in {adapter}")
        console.print(f'Load it: PeftModel.from_pretrained(base, "{adapter}")')
    finally:
        if keep:
            console.print(f"\nThe cluster stays: export KUBECONFIG={cluster.kubeconfig}", soft_wrap=True)
            console.print(f"Remove it with: ldj cluster down --name {cluster.name}")
        else:
            with clock.step("The cluster goes"):
                cluster.down(clock.report)


def _start(cluster: Cluster, clock: Clock, root: Path) -> None:
    """Cluster, images, operator."""
    with clock.step(f"A Kubernetes cluster: {cluster.name}"):
        cluster.down(clock.report)
        cluster.up(Shape(nodes=1), clock.report)
    with clock.step("The project's images, built from its Dockerfile and loaded"):
        images = {target: cluster.build(target, root, clock.report) for target in ("operator", "trainer")}
        for image in images.values():
            cluster.load(image, clock.report)
    with clock.step("LoraDpoJob's definition, its policies and the operator"):
        install.install(
            Kubectl(cluster, install.NAMESPACE),
            root,
            operator=images["operator"].name,
            trainer=images["trainer"].name,
            trainer_env=cluster.bucket.pod_env,
        )


def _run(
    kubectl: Kubectl,
    console: Console,
    clock: Clock,
    example: quickstart.Quickstart,
    results: Path,
    monitor: prometheus.Prometheus,
) -> LoraDpoJob:
    """Apply the job and follow it; raises DemoError unless it succeeds."""
    with clock.step("kubectl apply -f examples/quickstart/job.yaml"):
        console.print("  " + kubectl.apply(example.job).strip())
        try:
            monitor.scrape(_scraped(kubectl))
            status = follow.follow(
                lambda: kubectl.job(JOB).status,
                console,
                timeout=JOB_TIMEOUT,
                changed=lambda _: monitor.scrape(_scraped(kubectl)),
            )
        except FollowTimeoutError as late:
            _save_logs(kubectl, results)
            raise DemoError(f"{late} Logs are in {results}.") from late
    if status.phase is not JobPhase.SUCCEEDED:
        _save_logs(kubectl, results)
        failure = status.failure
        why = f"{failure.reason}: {failure.message}" if failure else status.message or "no reason given"
        hint = f" Hint: {failure.hint}" if failure and failure.hint else ""
        raise DemoError(f"The job failed. {why}{hint} Logs are in {results}.")
    return kubectl.job(JOB)


def _scraped(kubectl: Kubectl) -> list[dict[str, Any]]:
    """What Prometheus may find in the cluster."""
    return kubectl.objects(prometheus.KINDS, "--all-namespaces")


def _show(kubectl: Kubectl, console: Console, job: LoraDpoJob, monitor: prometheus.Prometheus) -> None:
    """What a user sees of a finished job: timeline, printer columns, events, series in Prometheus."""
    console.print("\nTimeline (status.timeline)", follow.timeline(job.status.timeline))
    console.print("kubectl get ldj -o wide")
    sys.stdout.write(kubectl.text(["get", "ldj", "--output", "wide"]))
    console.print("\nkubectl describe ldj quickstart: events")
    _, _, events = kubectl.text(["describe", "ldj", JOB]).partition("Events:")
    sys.stdout.write(events.lstrip("\n"))
    view = Table("scraped from", "what", "value", title="Prometheus")
    for source, what, expression in QUERIES:
        series = monitor.query(expression)
        view.add_row(source, what, follow.number(series[0][1]) if series else "no series")
    console.print(view)
    step_0 = step_0_loss(job.status)
    metrics = job.status.metrics
    console.print(f"Step-0 loss: {follow.number(step_0) or 'unknown'} (ln 2 = {STEP_0_LOSS:.4f})")
    console.print(f"Held-out accuracy: {follow.number(metrics.eval_accuracy if metrics else None) or 'unknown'}")


def step_0_loss(status: LoraDpoJobStatus) -> float | None:
    """The loss of the first batch, before any update: the first point of the curve."""
    first = min(status.curve, key=lambda point: point.step, default=None)
    return None if first is None or first.step > 1 else first.loss


def verify(status: LoraDpoJobStatus) -> None:
    """Raise DemoError where the numbers say that training was wrong."""
    loss = step_0_loss(status)
    if loss is None or abs(loss - STEP_0_LOSS) > STEP_0_TOLERANCE:
        raise DemoError(f"The step-0 loss is {loss}, not ln 2: policy and reference differ before training.")
    accuracy = status.metrics.eval_accuracy if status.metrics else None
    if accuracy is None or accuracy < HELD_OUT_ACCURACY:
        raise DemoError(f"The held-out accuracy is {accuracy}, below {HELD_OUT_ACCURACY}.")


def _artifact(job: LoraDpoJob) -> str:
    """Where the job says that its final adapter is."""
    found = [artifact.path for artifact in job.status.artifacts if artifact.path.rstrip("/").endswith("/adapter")]
    if not found:
        raise DemoError(f"The job names no adapter among its artifacts: {job.status.artifacts}.")
    return found[-1]


def _adapter(cluster: Cluster, job: LoraDpoJob, results: Path) -> Path:
    """Download the exported adapter from the bucket."""
    folder = results / "adapter"
    quickstart.download(cluster.bucket, _artifact(job), folder)
    return folder


def _compare(console: Console, before: quickstart.Answers, after: quickstart.Answers) -> None:
    """Print the first answers side by side, then both shares."""
    view = Table("question", "before", "after", title=f"The first {SHOWN_ANSWERS}", show_lines=True)
    for old, new in list(zip(before.answers, after.answers, strict=True))[:SHOWN_ANSWERS]:
        view.add_row(old.prompt, _marked(old), _marked(new))
    console.print(view)
    count = len(before.answers)
    console.print(
        f"One short, correct sentence: {before.passed} of {count} ({before.share:.1%}) before, "
        f"{after.passed} of {count} ({after.share:.1%}) after: {100 * (after.share - before.share):+.1f} points"
    )


def _marked(answer: quickstart.Answer) -> str:
    text = answer.answer if len(answer.answer) <= SHOWN_CHARACTERS else answer.answer[:SHOWN_CHARACTERS].rstrip() + "…"
    return f"{'✔' if answer.passed else '✘'} {text}"


def _save_logs(kubectl: Kubectl, results: Path) -> None:
    """Keep what explains a failure; the cluster goes with the demo."""
    wanted = {
        "operator.log": ["logs", "deployment/lora-dpo-operator", "--namespace", install.NAMESPACE],
        "job.yaml": ["get", "ldj", JOB, "--output", "yaml"],
        "pods.txt": ["describe", "pods"],
    }
    try:
        names = [pod["metadata"]["name"] for pod in kubectl.objects("pods")]
    except KubectlError:
        names = []
    wanted |= {f"{pod}.log": ["logs", pod, "--all-containers"] for pod in names}
    for file, argv in wanted.items():
        try:
            (results / file).write_text(kubectl.text(argv))
        except KubectlError as error:
            (results / file).write_text(f"{error}\n")
