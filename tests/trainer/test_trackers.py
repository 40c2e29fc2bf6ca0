from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from lora_dpo_api.config_file import TrackingConfig, TrainerConfig
from lora_dpo_api.protocol import ExitCode
from lora_dpo_trainer import console, errors, progress, trackers
from lora_dpo_trainer.history import History

type MakeConfig = Callable[..., TrainerConfig]

VALUES = {"dpo_loss": 0.5, "reward_margin": 0.25, "dpo_accuracy": 1.0, "learning_rate": 5e-6}
WANDB = {"wandb": {"project": "alignment"}}


class Full:
    """A tracker whose disk is full from the second step on."""

    def add(self, step: int, values: Mapping[str, float]) -> None:
        if step > 1:
            raise OSError("No space left on device")

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def test_all_trackers_get_every_step_in_order_under_both_names(tmp_path: Path) -> None:
    outputs = [tmp_path / "one", tmp_path / "two"]
    written = trackers.Trackers([], [History(str(output)) for output in outputs])
    for step in range(1, 50):
        written.add(step, {"reward_margin": float(step)})
    written.close()
    for output in outputs:
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        assert lines == [{"step": n, "reward_margin": float(n), "rewards/margins": float(n)} for n in range(1, 50)]


def test_what_goes_wrong_in_the_thread_ends_the_run() -> None:
    written = trackers.Trackers([], [Full()])
    written.add(1, VALUES)
    written.add(2, VALUES)
    with pytest.raises(OSError, match="No space left"):
        written.flush()


def test_wandb_without_a_key_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        errors.MissingCredentials, match="there is no key of Weights & Biases in WANDB_API_KEY"
    ) as caught:
        trackers.check(TrackingConfig.model_validate(WANDB))
    assert caught.value.exit_code is ExitCode.CREDENTIALS
    assert "secretRef" in (caught.value.hint or "")


@pytest.mark.parametrize("given", [{"WANDB_API_KEY": "k"}, {"WANDB_MODE": "offline"}, {}])
def test_wandb_takes_a_key_a_login_or_its_offline_mode(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: dict[str, str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    if not given:
        netrc = tmp_path / ".netrc"
        netrc.write_text("machine api.wandb.ai\n  login user\n  password key\n")
        netrc.chmod(0o600)
    trackers.check(TrackingConfig.model_validate(WANDB))


def test_nothing_is_asked_of_who_wants_no_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    trackers.check(TrackingConfig(tensorboard=True))


TRACK = """
import sys
from lora_dpo_api.config_file import TrainerConfig
from lora_dpo_trainer import identity, progress, trackers

config = TrainerConfig.model_validate_json(sys.argv[1])
owner = identity.RunIdentity("team-a/llama", "data", "base", {}, 3)
shown = progress.Progress(progress.Snapshot(run_id=owner.run_id, total_steps=3, checkpoint_seconds=120))
written = trackers.start(config, owner, shown, resumed_from=0)
for step in range(1, 4):
    written.add(step, {"dpo_loss": 1 / step, "reward_margin": 0.5, "dpo_accuracy": 1.0, "learning_rate": 5e-6})
written.close()

import struct
from pathlib import Path
from wandb.proto import wandb_internal_pb2

(file,) = (Path(config.output.path) / "wandb").glob("offline-run-*/*.wandb")
content, at = file.read_bytes(), 7  # LevelDB's log format behind a header of W&B; all of it within the first block
while at < len(content):
    _, length, kind = struct.unpack_from("<IHB", content, at)
    assert kind == 1
    record = wandb_internal_pb2.Record.FromString(content[at + 7 : at + 7 + length])
    at += 7 + length
    if record.WhichOneof("record_type") == "history":
        print("HISTORY", {item.key or item.nested_key[0]: item.value_json for item in record.history.item})
    if record.WhichOneof("record_type") == "run":
        print("RUN", record.run.project, record.run.display_name)
"""


def test_wandb_offline_keeps_the_run_in_the_output_and_its_key_to_itself(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    key = "0123456789abcdef" * 3
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {
        "WANDB_MODE": "offline",
        "WANDB_API_KEY": key,
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "HOME": str(tmp_path),
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-c", TRACK, make_config(tracking=WANDB).model_dump_json()],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert key not in done.stdout + done.stderr
    assert "RUN alignment team-a/llama" in done.stdout
    history = [line for line in done.stdout.splitlines() if line.startswith("HISTORY")]
    assert len(history) == 3
    assert all("'rewards/margins': '0.5'" in line and "'dpo_loss'" in line for line in history)
    for file in (tmp_path / "out").rglob("*"):
        assert file.is_dir() or key.encode() not in file.read_bytes(), file


def test_a_terminal_gets_a_bar() -> None:
    shown = progress.Progress(progress.Snapshot(run_id="a/b", total_steps=10, checkpoint_seconds=120))
    terminal = io.StringIO()
    bar = console.Bar(shown, 2, terminal)
    bar.add(3, VALUES)
    bar.add(3, {"eval_dpo_loss": 0.4})
    bar.add(4, VALUES)
    bar.close()
    drawn = terminal.getvalue().split("\r")[-1]
    assert "4/10" in drawn
    assert "loss=0.5000, margin=0.2500, accuracy=1.0000" in drawn


def test_anything_else_gets_lines_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    shown = progress.Progress(progress.Snapshot(run_id="a/b", total_steps=100, checkpoint_seconds=120))
    made = console.make(shown, 0)
    assert isinstance(made, console.Lines)
    for step in range(1, 101):
        made.add(step, VALUES)
    assert [record.message.split()[1] for record in caplog.records] == ["1/100", "100/100"]
    assert caplog.records[0].message == "step 1/100  loss 0.5000  margin 0.2500  accuracy 1.000  lr 5.00e-06"
