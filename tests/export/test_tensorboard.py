"""TensorBoard reads what the trainer wrote, over a restart, from a folder and from an object store."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TRAINER = Path(__file__).parents[2] / ".venv" / "trainer" / "bin" / "python"

WRITE = """
import sys
from pathlib import Path
from lora_dpo_trainer import storage, trackers

def attempt(output, steps, resumed_from):
    written = trackers.Trackers([], [trackers.TensorBoard(output, resumed_from=resumed_from)])
    for step in steps:
        written.add(step, {"dpo_loss": 1 / step, "dpo_chosen_reward": float(resumed_from), "grad_norm": float("nan")})
    return written

folder = Path(sys.argv[1])
for output in (str(folder / "local"), "memory://bucket/run"):
    attempt(output, range(1, 6), 0).flush()  # and killed, with a checkpoint of step 3
    attempt(output, range(4, 8), 3).close()
for name in storage.children("memory://bucket/run/tensorboard"):
    target = folder / "remote" / "tensorboard" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(storage.read_bytes("memory://bucket/run/tensorboard/" + name))
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tensorboard")
    done = subprocess.run(
        [TRAINER, "-W", "error", "-c", WRITE, folder],
        env={"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("place", ["local", "remote"])
def test_every_step_is_there_once_under_both_names(written: Path, place: str) -> None:
    found = EventAccumulator(str(written / place / "tensorboard"))
    found.Reload()
    assert set(found.Tags()["scalars"]) == {"dpo_loss", "dpo_chosen_reward", "rewards/chosen", "grad_norm"}
    losses = {event.step: event.value for event in found.Scalars("dpo_loss")}
    assert [event.step for event in found.Scalars("dpo_loss")] == [1, 2, 3, 4, 5, 6, 7]
    assert losses == pytest.approx({step: 1 / step for step in range(1, 8)})
    attempts = {event.step: event.value for event in found.Scalars("rewards/chosen")}
    assert attempts == dict.fromkeys((1, 2, 3), 0.0) | dict.fromkeys((4, 5, 6, 7), 3.0)
