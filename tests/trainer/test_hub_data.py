"""The hub's models and data sets through the prepare phase; the hub is a stand-in on loopback."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import fake_hub

NAME = "HuggingFaceH4/ultrafeedback_binarized"
GATED = "tiny-org/gated-pairs"
CARD = """---
configs:
- config_name: default
  data_files:
  - split: train_prefs
    path: data/train_prefs-*
  - split: test_prefs
    path: data/test_prefs-*
---
"""


def ultrafeedback_row(number: int, chosen: str, rejected: str) -> dict[str, Any]:
    """All columns of the preference splits."""
    prompt = f"question {number}"

    def transcript(answer: str) -> list[dict[str, str]]:
        return [{"content": prompt, "role": "user"}, {"content": answer, "role": "assistant"}]

    return {
        "prompt": prompt,
        "prompt_id": f"{number:064x}",
        "chosen": transcript(chosen),
        "rejected": transcript(rejected),
        "messages": transcript(chosen),
        "score_chosen": 8.5,
        "score_rejected": 6.0,
    }


def parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    train = [ultrafeedback_row(number, f"yes {number}", "no") for number in range(20)]
    train[7] = ultrafeedback_row(7, "equal", "equal")
    train[9] = ultrafeedback_row(9, "", "no")
    # One held-out prompt is trained on, as happens there.
    test = [ultrafeedback_row(number, "yes", "no") for number in (3, 100, 101)]
    files = {
        "README.md": CARD.encode(),
        "data/train_prefs-00000-of-00001.parquet": parquet(train),
        "data/test_prefs-00000-of-00001.parquet": parquet(test),
    }
    data = {NAME: fake_hub.Repository("datasets", files), GATED: fake_hub.Repository("datasets", files, gated=True)}
    with fake_hub.serve(data | fake_hub.MODELS) as endpoint:
        yield endpoint


def prepare(
    folder: Path, base: Path | str, endpoint: str, name: str = NAME, token: str | None = None
) -> subprocess.CompletedProcess[str]:
    def component(split: str) -> dict[str, Any]:
        return {"source": {"type": "hf", "id": name, "split": split}}

    values = {
        "data": {
            "components": {"train": component("train_prefs"), "held_out": component("test_prefs")},
            "train_weights": {"train": 1.0, "held_out": 0.0},
        },
        "initialize_from_hf": str(base),
        "train_seq_len": 128,
        "trainer": {"train_batch_size": 4, "mp": "p=f32,c=f32"},
        "lora": {"r": 8},
        "output": {"path": str(folder / "out")},
    }
    (folder / "config.yaml").write_text(json.dumps(values))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "LORADPO_"))}
    environment |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "hub"),
        "JAX_PLATFORMS": "cpu",
        "LORADPO_TERMINATION_LOG": str(folder / "termination"),
        "LORADPO_RETRY_SECONDS": "1",
    } | ({"HF_TOKEN": token} if token else {})
    words = ["-m", "lora_dpo_trainer", "--config_path", str(folder / "config.yaml"), "--phase", "prepare"]
    return subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=False)


def test_ultrafeedbacks_splits_are_trained_on_and_held_out(hub: str, tmp_path: Path, base_model: Path) -> None:
    done = prepare(tmp_path, base_model, hub)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "termination").read_text())
    found = report["prepared"]
    # Two rows have no two answers, and the held-out prompt that is trained on is left out.
    assert (found["trainPairs"], found["validationPairs"], found["droppedPairs"]) == (18, 2, 3)
    said = " ".join(item["message"] for item in report["advice"])
    assert f"an empty answer ({NAME}[9]" in said
    assert f"chosen and rejected are the same ({NAME}[7]" in said
    assert "prompts are also trained on" in said


def test_a_data_set_that_is_not_there_ends_with_65(hub: str, tmp_path: Path, base_model: Path) -> None:
    done = prepare(tmp_path, base_model, hub, "HuggingFaceH4/nothing")
    assert done.returncode == 65, done.stdout + done.stderr
    report = json.loads((tmp_path / "termination").read_text())
    assert report["reason"] == "DataNotFound"
    assert "no data set HuggingFaceH4/nothing" in report["message"]


@pytest.mark.parametrize(
    ("model", "token", "code", "reason", "words"),
    [
        ("tiny-org/nothing", None, 64, "ModelNotFound", "The hub has no model tiny-org/nothing"),
        ("tiny-org/gated", None, 77, "MissingCredentials", "The model tiny-org/gated is gated"),
        ("tiny-org/gated", fake_hub.EXPIRED, 77, "MissingCredentials", "The hub refuses the model tiny-org/gated"),
    ],
    ids=["a wrong id", "gated, and no token", "an expired token"],
)
def test_a_model_that_the_hub_does_not_give_is_told_with_its_cause(
    hub: str, tmp_path: Path, model: str, token: str | None, code: int, reason: str, words: str
) -> None:
    done = prepare(tmp_path, model, hub, token=token)
    assert done.returncode == code, done.stdout + done.stderr
    report = json.loads((tmp_path / "termination").read_text())
    assert report["reason"] == reason
    assert words in report["message"]
    assert "HF_TOKEN" in report["hint"]


@pytest.mark.parametrize(
    ("name", "token"),
    [(NAME, fake_hub.EXPIRED), (GATED, None)],
    ids=["an expired token", "gated, and no token"],
)
def test_a_data_set_that_the_hub_does_not_give_is_a_matter_of_credentials(
    hub: str, tmp_path: Path, base_model: Path, name: str, token: str | None
) -> None:
    done = prepare(tmp_path, base_model, hub, name, token)
    assert done.returncode == 77, done.stdout + done.stderr
    assert json.loads((tmp_path / "termination").read_text())["reason"] == "MissingCredentials"


def test_a_hub_that_cannot_be_reached_is_asked_again_and_then_told(tmp_path: Path) -> None:
    done = prepare(tmp_path, "tiny-org/nothing", "http://127.0.0.1:9")  # the discard port: nothing listens there
    assert done.returncode == 69, done.stdout + done.stderr
    assert "The hub does not answer for the model tiny-org/nothing" in done.stdout
    report = json.loads((tmp_path / "termination").read_text())
    assert report["reason"] == "Unreachable"
    assert "ConnectError" in report["message"]
