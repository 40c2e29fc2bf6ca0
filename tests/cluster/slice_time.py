"""How long pods of a slice held their hosts: what a fault costs its user."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from .conftest import Kubectl
from .loradpojobs import JOB_LABEL, PHASE_LABEL

_LABEL = JOB_LABEL.replace(".", "\\.")
_LINE = f'{{.type}} {{.object.metadata.uid}} {{.object.metadata.labels.{_LABEL}}} {{.object.status.phase}}{{"\\n"}}'
"""One line an event of the watch."""


class SliceTime:
    """Seconds in which a pod of a slice existed and had not ended, for each job of a namespace, as a watch saw it."""

    def __init__(self) -> None:
        self._alive: dict[str, set[str]] = {}
        self._since: dict[str, float] = {}
        self._total: dict[str, float] = {}

    def seconds(self, job: str) -> float:
        """Of one job, until now."""
        running = time.monotonic() - self._since[job] if self._alive.get(job) else 0.0
        return self._total.get(job, 0.0) + running

    def see(self, line: str) -> None:
        """Take a line of the watch: event, uid of the pod, job, phase of the pod."""
        event, pod, job, phase = line.split()
        before = self._alive.get(job, set())
        gone = event == "DELETED" or phase in ("Succeeded", "Failed")
        after = before - {pod} if gone else before | {pod}
        if after and not before:
            self._since[job] = time.monotonic()
        if before and not after:
            self._total[job] = self._total.get(job, 0.0) + time.monotonic() - self._since[job]
        self._alive[job] = after


@contextlib.contextmanager
def measured(kubectl: Kubectl, namespace: str) -> Iterator[SliceTime]:
    """Watch the pods of every slice in a namespace."""
    found = SliceTime()
    pods = ("-n", namespace, "get", "pods", "--watch", "--output-watch-events")
    lines = ("-l", f"{PHASE_LABEL}=train", "-o", f"jsonpath={_LINE}")
    with kubectl.watching(*pods, *lines, see=found.see):
        yield found
