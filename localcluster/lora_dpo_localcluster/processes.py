"""Long-running programs of a cluster: started among its processes, with a log each."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lora_dpo_localcluster import errors, waiting
from lora_dpo_localcluster.namespace import Namespace
from lora_dpo_localcluster.state import ClusterPaths

# The shell ends at once, so the program's parent becomes the first process of the namespace, which reaps it.
_LAUNCH = 'log=$1; shift; setsid "$@" </dev/null >>"$log" 2>&1 & echo $!'


@dataclasses.dataclass(frozen=True, slots=True)
class Processes:
    """The long-running programs of one cluster."""

    paths: ClusterPaths
    namespace: Namespace

    def start(
        self, name: str, argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        """Start a program; it lives until it ends or the cluster does.

        Args:
            name: names its log and its entry in `ldj cluster status`.
            argv: program and arguments.
            env: added to the environment.
            cwd: its working folder, the cluster's folder by default.

        Raises:
            CommandError: it can't be started.
        """
        self.paths.pids.mkdir(parents=True, exist_ok=True)
        answer = subprocess.run(
            self.namespace.inner_command(["sh", "-c", _LAUNCH, "sh", str(self.log(name)), *map(str, argv)]),
            capture_output=True,
            text=True,
            cwd=cwd or self.paths.root,
            env={**os.environ, **(env or {})},
        )
        if answer.returncode != 0:
            raise errors.CommandError(f"{name} can't be started: {answer.stderr.strip()}")
        (self.paths.pids / name).write_text(answer.stdout.strip())

    def log(self, name: str) -> Path:
        """The file with a program's output."""
        return self.paths.logs / f"{name}.log"

    def names(self) -> tuple[str, ...]:
        """The programs that were started, in order of their names."""
        return tuple(sorted(entry.name for entry in self.paths.pids.glob("*"))) if self.paths.pids.is_dir() else ()

    def alive(self, name: str) -> bool:
        """Whether a program still runs."""
        return self._signal(name, 0)

    def kill(self, name: str, number: int = 9) -> None:
        """Send a signal to a program, SIGKILL by default: a node's kubelet killed is a host lost.

        Raises:
            NotRunningError: it doesn't run.
        """
        if not self._signal(name, number):
            raise errors.NotRunningError(f"{name} of the cluster {self.paths.name} doesn't run.")

    def wait(self, name: str, condition: Callable[[], bool], what: str, *, timeout: float) -> None:
        """Wait for something that a program must do; its log's end explains a failure.

        Raises:
            NotReadyError: it didn't, or the program ended.
        """
        waiting.until(condition, what, timeout=timeout, log=self.log(name), alive=lambda: self.alive(name))

    def _signal(self, name: str, number: int) -> bool:
        file = self.paths.pids / name
        if not file.is_file():
            return False
        pid = file.read_text().strip()
        # The shell's own kill, so that the number means what it means inside; one that has ended but isn't reaped yet
        # would take signals too.
        script = '! grep -q "^State:.Z" "/proc/$2/status" 2>/dev/null && kill -"$1" "$2" 2>/dev/null'
        command = self.namespace.inner_command(["sh", "-c", script, "sh", str(number), pid])
        return subprocess.run(command, capture_output=True).returncode == 0
