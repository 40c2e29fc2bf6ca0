"""How the hosts of one gang end when something happens to one of them: real processes under `jax.distributed`.

The rows are those that decide the operator's failure policies. A negative number is the signal that ended a process:
-6 is what a container reports as 134, -9 as 137.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_dpo_api.protocol import Phase, TerminationReport

SCRIPT = """
import os, sys, time
from lora_dpo_api.protocol import Phase, TerminationReport
from lora_dpo_trainer import distributed, errors, exits, preemption

distributed.HEARTBEAT_SECONDS = 10
preemption.SAVE_SECONDS = 4.0
notice = preemption.Notice(lambda error: exits.fail(error, Phase.TRAIN))

def body():
    placement = distributed.Placement.from_environment()
    distributed.start(placement)
    leads = placement.process_id == 0
    watch = preemption.watch(notice, processes=placement.processes, leads=leads)
    notice.protect(lambda: "Stopped; the last checkpoint counts.")
    print("ready", flush=True)
    for step in range(10_000):
        time.sleep(0.02)
        if os.path.exists(sys.argv[1]):
            {event}
        if {polls} and watch.reached():
            time.sleep({slower} * placement.process_id)
            distributed.stop(placement)
            raise errors.Preempted(f"Stopped after step {{step}}.")

exits.run_phase(Phase.TRAIN, body)
"""
DONE = 'distributed.stop(placement); return TerminationReport(phase=Phase.TRAIN, exit_code=0, reason="T", message="t")'


@dataclasses.dataclass(frozen=True)
class Row:
    """What happens, and the exit codes that it leads to.

    Attributes:
        event: Python that a host runs when its file appears.
        number: Signal that the host gets instead.
        to: The host.
        polls: Whether hosts ask between their steps.
        slower: Seconds that host 1 saves longer than host 0.
        codes: Of host 0 and host 1.
    """

    name: str
    codes: tuple[int, int]
    event: str = "pass"
    number: signal.Signals | None = None
    to: tuple[int, ...] = (1,)
    polls: bool = True
    slower: float = 0.0


ROWS = (
    Row("both end together", (0, 0), event=DONE, to=(0, 1)),
    Row("SIGKILL to the leader", (-9, -6), number=signal.SIGKILL, to=(0,)),
    Row("SIGKILL to another host", (-6, -9), number=signal.SIGKILL),
    Row("an expected error on the leader", (65, -6), event='raise errors.InvalidRow("Row 3.")', to=(0,)),
    Row("an expected error on another host", (-6, 76), event='raise errors.NonFinite("NaN.")'),
    Row("an unexpected error on another host", (-6, 70), event='raise ValueError("odd")'),
    Row("SIGTERM to the leader, which saves faster", (42, 42), number=signal.SIGTERM, to=(0,), slower=2.0),
    Row("SIGTERM to another host, which saves slower", (42, 42), number=signal.SIGTERM, slower=2.0),
    Row("SIGTERM inside a step that takes too long", (42, 42), number=signal.SIGTERM, polls=False),
)


class Gang:
    """Two hosts, started; their end is waited for later, so that all rows wait at the same time."""

    def __init__(self, row: Row, folder: Path) -> None:
        self.row = row
        self.folder = folder
        folder.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            coordinator = f"127.0.0.1:{free.getsockname()[1]}"
        code = SCRIPT.format(event=row.event, polls=row.polls, slower=row.slower)
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", code, str(folder / f"event-{index}")],
                env={
                    "PATH": os.environ["PATH"],
                    "JAX_PLATFORMS": "cpu",
                    "LORADPO_PLATFORM": "cpu",
                    "LORADPO_HOSTS_PER_SLICE": "2",
                    "JOB_COMPLETION_INDEX": str(index),
                    "LORADPO_COORDINATOR": coordinator,
                    "LORADPO_TERMINATION_LOG": str(folder / f"termination-{index}"),
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for index in range(2)
        ]

    def happen(self) -> None:
        """Wait until both are in their loop, then let it happen."""
        for process in self.processes:
            assert process.stdout is not None
            while (line := process.stdout.readline()) != "ready\n":
                assert line, f"{self.row.name}: a host ended before it was in its loop"
        for index in self.row.to:
            if self.row.number is None:
                (self.folder / f"event-{index}").touch()
            else:
                self.processes[index].send_signal(self.row.number)

    def codes(self) -> tuple[int, ...]:
        """The exit codes, once both are gone."""
        return tuple(process.wait(timeout=120) for process in self.processes)

    def reports(self) -> list[TerminationReport]:
        """What the hosts said."""
        found = sorted(self.folder.glob("termination-*"))
        return [TerminationReport.model_validate_json(path.read_text()) for path in found]


@pytest.fixture(scope="module")
def gangs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Gang]]:
    folder = tmp_path_factory.mktemp("gangs")
    started = {row.name: Gang(row, folder / str(number)) for number, row in enumerate(ROWS)}
    try:
        for gang in started.values():
            gang.happen()
        yield started
    finally:
        for gang in started.values():
            for process in gang.processes:
                process.kill()
                process.wait()
                assert process.stdout is not None
                process.stdout.close()


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_how_two_hosts_end(row: Row, gangs: dict[str, Gang]) -> None:
    gang = gangs[row.name]
    assert gang.codes() == row.codes
    assert all(report.phase is Phase.TRAIN for report in gang.reports())
    assert sorted(report.exit_code for report in gang.reports()) == sorted(code for code in row.codes if code >= 0)


@pytest.mark.slow
def test_both_hosts_stop_after_the_same_step(gangs: dict[str, Gang]) -> None:
    gang = gangs["SIGTERM to another host, which saves slower"]
    gang.codes()
    first, second = (report.message for report in gang.reports())
    assert first == second
    assert "Stopped after step" in first


@pytest.mark.slow
def test_what_cannot_be_saved_in_time_is_said(gangs: dict[str, Gang]) -> None:
    gang = gangs["SIGTERM inside a step that takes too long"]
    gang.codes()
    assert {report.message for report in gang.reports()} == {"Stopped; the last checkpoint counts."}
