from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lora_dpo_trainer.attempt_log import without_secrets

SCRIPT = """
import logging, sys
from lora_dpo_api.protocol import Phase, TerminationReport
from lora_dpo_trainer import attempt_log, errors, exits
log = attempt_log.AttemptLog()
log.output_path = sys.argv[1]
logging.basicConfig(level=logging.INFO, handlers=[log])
for number in range(300):
    logging.info("line %d with sesame-42", number)
def body():
    {body}
exits.run_phase(Phase.TRAIN, body, last=log.write)
"""
DONE = "return TerminationReport(phase=Phase.TRAIN, exit_code=0, reason='Trained', message='done')"


def run(body: str, output: Path, **environment: str) -> int:
    """A phase in a process of its own that logs 300 lines; returns its exit code."""
    environment |= {"HF_TOKEN": "sesame-42", "LORADPO_TERMINATION_LOG": str(output.parent / "termination")}
    command = [sys.executable, "-c", SCRIPT.format(body=body), str(output)]
    return subprocess.run(command, env=environment, check=False, timeout=60).returncode


@pytest.mark.parametrize(
    ("body", "code", "last"),
    [
        (DONE, 0, "line 299 with <HF_TOKEN>"),
        ("raise errors.Preempted('Stopped.')", 42, "Preempted: Stopped."),
        ("raise ValueError('odd')", 70, "InternalError: ValueError: odd"),
    ],
)
def test_the_last_200_lines_are_kept_however_an_attempt_ends(tmp_path: Path, body: str, code: int, last: str) -> None:
    assert run(body, tmp_path / "out", LORADPO_RESTART_ATTEMPT="3") == code
    text = (tmp_path / "out" / "logs" / "attempt-3.log").read_text()
    lines = text.splitlines()
    assert len(lines) == 200
    assert last in lines[-1]
    assert "sesame-42" not in text
    assert ("Traceback" in text) is (code == 70)


def test_an_attempt_that_is_killed_leaves_its_log_too(tmp_path: Path) -> None:
    log = tmp_path / "out" / "logs" / "attempt-0.log"
    body = f"""
    import os, pathlib, signal, time
    attempt_log.REPEAT_SECONDS = 0.05
    log.start({str(tmp_path / "out")!r})
    while not pathlib.Path({str(log)!r}).exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run(body, tmp_path / "out") == -9
    assert "line 299" in log.read_text().splitlines()[-1]


@pytest.mark.parametrize(("body", "written"), [(DONE, False), ("raise errors.NonFinite('NaN.')", True)])
def test_another_host_writes_only_what_explains_a_failure(tmp_path: Path, body: str, written: bool) -> None:
    run(
        body, tmp_path / "out", LORADPO_HOSTS_PER_SLICE="2", JOB_COMPLETION_INDEX="1", LORADPO_COORDINATOR="localhost:1"
    )
    assert (tmp_path / "out" / "logs" / "attempt-0-host-1.log").exists() is written


def test_an_output_that_cannot_be_written_does_not_change_how_it_ends(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert run(DONE, tmp_path / "file" / "out", LORADPO_RETRY_SECONDS="0.1") == 0


def test_short_values_are_no_secrets() -> None:
    assert without_secrets("1 of 10", {"SOME_KEY": "1"}) == "1 of 10"
