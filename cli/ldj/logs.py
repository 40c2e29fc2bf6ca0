"""`ldj logs`: what a job's trainers wrote, from the right pods, each line with its host."""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ldj import options, saying, seen
from ldj.errors import ClusterError, LdjError, RefusedError
from ldj.saying import Word, printable, say
from ldj.seen import SeenJob
from lora_dpo_api.protocol import Phase
from lora_dpo_operator import names
from lora_dpo_operator.pods import Pod

if TYPE_CHECKING:
    from ldj.kube import Kube

LOOK_SECONDS = 1.0
"""Between two looks at which pods there are, while following."""


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """One line of a log, and what stands before it."""

    prefix: str
    text: str

    def __str__(self) -> str:
        """As it is shown; terminal codes are not obeyed."""
        return f"{self.prefix} | {printable(self.text.expandtabs())}"


def choose(pods: Iterable[Pod], job: SeenJob, phase: Phase | None) -> tuple[Pod, ...]:
    """The pods that a user wants to hear.

    Without a phase: those of the phase that failed, else those of the newest phase that has any. Of the slice, those of
    its newest attempt, and the pod that failed, if it still exists.

    Args:
        pods: all pods of the job, and perhaps of a deleted job of the same name.
        job: the job.
        phase: what the user asked for.
    """
    own = [pod for pod in pods if pod.job_uid == job.metadata.uid and pod.phase is not None]
    failure = job.status.failure
    failed_in = failure.phase if failure is not None and job.phase.finished else None
    there = [each for each in Phase if any(pod.phase is each for pod in own)]
    if not there:
        return ()
    wanted = phase or next((each for each in there if each == failed_in), there[-1])
    of_phase = [pod for pod in own if pod.phase is wanted]
    newest = max((pod.attempt for pod in of_phase), default=0)
    failed = failure.pod if failure is not None else None
    chosen = [pod for pod in of_phase if pod.attempt == newest or pod.metadata.name == failed]
    return tuple(sorted(chosen, key=_place))


def to_follow(pods: Sequence[Pod], job: SeenJob, phase: Phase | None, since: Phase) -> tuple[Pod, ...]:
    """The pods that somebody hears who follows a job: of the phase asked for, or of every phase from the first on.

    A phase is heard to its end: it may be over, and the next one have pods, between two looks.

    Args:
        pods: all pods of the job.
        job: the job.
        phase: what the user asked for.
        since: the phase that `choose` took at the first look.
    """
    heard = (phase,) if phase is not None else tuple(Phase)[tuple(Phase).index(since) :]
    return tuple(pod for each in heard for pod in choose(pods, job, each))


def prefix(pod: Pod) -> str:
    """What stands before a line: the phase; of the slice also slice/host, and the attempt where it isn't the first."""
    if pod.phase is not Phase.TRAIN:
        return pod.phase.value if pod.phase else pod.metadata.name
    attempt = f" attempt {pod.attempt}" if pod.attempt else ""
    return f"train {pod.slice_index}/{pod.host_index}{attempt}"


def missing(job: SeenJob, shown: Sequence[Pod]) -> str | None:
    """Where the log of the pod that failed is, when the pod is gone; None where nothing is missing."""
    failure = job.status.failure
    if failure is None or failure.pod is None or any(pod.metadata.name == failure.pod for pod in shown):
        return None
    kept = ""
    if failure.phase == Phase.TRAIN and job.output_path:
        folder = f"{job.output_path}/logs/"
        tool = f": gcloud storage cat '{folder}*'" if folder.startswith("gs://") else ""
        kept = f" The last lines of each attempt are kept in {folder}{tool}"
    return f"the pod that failed, {failure.pod}, is gone. It said: {failure.message}{kept}"


def logs(
    job: options.Name,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job is over, phase by phase.")
    ] = False,
    phase: Annotated[Phase | None, typer.Option(help="Default: the phase that failed, or the newest one.")] = None,
    leader: Annotated[bool, typer.Option("--leader", help="Only the first host, which reports for all.")] = False,
    tail: Annotated[int | None, typer.Option(min=0, help="Only so many last lines of each pod.")] = None,
    namespace: options.Namespace = None,
    context: options.Context = None,
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Show what the job's pods wrote, each line with its phase, slice and host; of a failed job, the pods that failed.

    Exits with 1 where there is nothing to show; 3 where the cluster can't answer, 4 where there is no such job.
    """
    door = options.connect(namespace, context, kubeconfig)
    if follow:
        _Follower(door, job, phase, leader=leader, tail=tail).run()
        return
    found = seen.read(door.job(job))
    heard = []
    for pod in _leading(choose(_pods(door, found), found, phase), leader=leader):
        try:
            for text in door.log(pod.metadata.name, names.TRAINER, tail=tail):
                print(Line(prefix(pod), text))
        except RefusedError as error:
            say(saying.console(), Word.NOTE, f"{prefix(pod)}: {error}")
        else:
            heard.append(pod)
    _say_what_is_missing(found, heard)


def _pods(door: Kube, job: SeenJob) -> tuple[Pod, ...]:
    return tuple(Pod.model_validate(raw) for raw in door.pods(job.name))


def _leading(pods: Sequence[Pod], *, leader: bool) -> tuple[Pod, ...]:
    return tuple(pod for pod in pods if not leader or (pod.slice_index, pod.host_index) == (0, 0))


def _say_what_is_missing(job: SeenJob, heard: Sequence[Pod]) -> None:
    gone = missing(job, heard)
    if gone:
        say(saying.console(), Word.NOTE, gone)
    if not heard:
        because = job.status.message or "no message"
        raise RefusedError(f"{job.name} has no logs to show: it is {job.phase.value}, {because}")


def _place(pod: Pod) -> tuple[int, int, int, str]:
    return pod.attempt, pod.slice_index, pod.host_index, pod.metadata.name


class _Follower:
    """Reads each pod of a job in a thread of its own, new ones too, until the job is over."""

    def __init__(self, door: Kube, name: str, phase: Phase | None, *, leader: bool, tail: int | None) -> None:
        self._door = door
        self._name = name
        self._phase = phase
        self._leader = leader
        self._tail = tail
        self._lines: queue.Queue[Line] = queue.Queue(maxsize=1000)
        self._readers: dict[str, threading.Thread] = {}
        self._heard: list[Pod] = []
        self._since: Phase | None = None

    def run(self) -> None:
        """Print lines until the job is over and all of them are read."""
        while True:
            job = seen.read(self._door.job(self._name))
            for pod in self._to_read(job):
                if pod.metadata.uid not in self._readers and _has_started(pod):
                    reader = threading.Thread(target=self._read, args=(pod,), name=pod.metadata.name, daemon=True)
                    self._readers[pod.metadata.uid] = reader
                    reader.start()
                    self._heard.append(pod)
            over = job.phase.finished
            self._print(until=time.monotonic() + LOOK_SECONDS)
            if over and not any(reader.is_alive() for reader in self._readers.values()):
                self._print(until=time.monotonic())
                _say_what_is_missing(job, self._heard)
                return

    def _to_read(self, job: SeenJob) -> tuple[Pod, ...]:
        pods = _pods(self._door, job)
        if self._since is None:
            newest = choose(pods, job, None)
            self._since = (newest[0].phase if newest else None) or Phase.PREPARE
        return _leading(to_follow(pods, job, self._phase, self._since), leader=self._leader)

    def _print(self, *, until: float) -> None:
        while True:
            try:
                left = until - time.monotonic()
                line = self._lines.get(timeout=left) if left > 0 else self._lines.get_nowait()
            except queue.Empty:
                return
            print(line, flush=True)

    def _read(self, pod: Pod) -> None:
        here = prefix(pod)
        try:
            for text in self._door.log(pod.metadata.name, names.TRAINER, follow=True, tail=self._tail):
                self._lines.put(Line(here, text))
        except ClusterError as error:
            self._lines.put(Line(here, f"(the log breaks off: {error})"))
        except LdjError as error:
            self._lines.put(Line(here, f"({error})"))


def _has_started(pod: Pod) -> bool:
    trainer = pod.trainer
    return trainer is not None and trainer.state.waiting is None
