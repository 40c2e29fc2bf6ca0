"""Two slices of two hosts each, as four CPU processes under `jax.distributed`, beside one process."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lora_dpo_api import yaml12
from lora_dpo_api.protocol import TerminationReport

STEPS = 40
SLICES = HOSTS_PER_SLICE = 2
HOSTS = SLICES * HOSTS_PER_SLICE


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder in which processes run; the configuration's output is `out` in there."""

    folder: Path

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.output / "metrics.jsonl").read_text().splitlines()]

    def losses(self) -> list[float]:
        return [line["dpo_loss"] for line in self.history() if "dpo_loss" in line]

    def adapter_bytes(self) -> bytes:
        return (self.output / "adapter" / "adapter_model.safetensors").read_bytes()

    def adapter(self) -> dict[str, np.ndarray]:
        return load_file(self.output / "adapter" / "adapter_model.safetensors")

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.output)) for path in self.output.rglob("*") if path.is_file())


@dataclasses.dataclass(frozen=True)
class Site:
    """One configuration, prepared once."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    def place(self, name: str) -> Place:
        """A folder to run in, with the prepared output in it."""
        place = Place(self.folder / name)
        shutil.copytree(self.folder / "prepared" / "out", place.output)
        return place

    def start(self, phase: str, place: Place, host: int | None = None, coordinator: str = "") -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LORADPO_")}
        environment |= {
            "JAX_PLATFORMS": "cpu",
            "LORADPO_PROGRESS_PORT": "0",
            "LORADPO_TERMINATION_LOG": str(place.folder / f"termination-{host or 0}"),
        }
        if host is not None:
            environment |= {
                "LORADPO_PLATFORM": "cpu",
                "LORADPO_SLICES": str(SLICES),
                "LORADPO_HOSTS_PER_SLICE": str(HOSTS_PER_SLICE),
                "LORADPO_SLICE_INDEX": str(host // HOSTS_PER_SLICE),
                "JOB_COMPLETION_INDEX": str(host % HOSTS_PER_SLICE),
                "LORADPO_COORDINATOR": coordinator,
            }
        with (place.folder / f"{phase}-{host or 0}.log").open("w") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "lora_dpo_trainer", "--config_path", str(self.config), "--phase", phase],
                cwd=place.folder,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def gang(self, *places: Place) -> list[subprocess.Popen[str]]:
        """Start all hosts: each in a place of its own, or all in one."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            coordinator = f"127.0.0.1:{free.getsockname()[1]}"
        return [self.start("train", places[host % len(places)], host, coordinator) for host in range(HOSTS)]


def codes(processes: list[subprocess.Popen[str]]) -> list[int]:
    """The exit codes, once all are gone."""
    try:
        return [process.wait(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def logs(*places: Place) -> list[str]:
    """What each host logged."""
    return [(places[host % len(places)].folder / f"train-{host}.log").read_text() for host in range(HOSTS)]


def digests(texts: list[str]) -> set[str]:
    """What each host says of its own adapter."""
    return {found for text in texts for found in re.findall(r"The adapter after \d+ steps: sha256 (\w{64})", text)}


def row(number: int) -> dict[str, Any]:
    """Rows of one length: one shape to compile."""
    question = {"role": "user", "content": f"which one is {number:03d}?"}
    answers = (f"it is {number:03d}", f"not {number:03d} at all")
    chosen, rejected = ([question, {"role": "assistant", "content": answer}] for answer in answers)
    return {"chosen": chosen, "rejected": rejected}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    case = Path(__file__).parents[1] / "data" / "parity" / "llama-r8"
    site = Site(tmp_path_factory.mktemp("multihost"))
    rows = site.folder / "rows.jsonl"
    rows.write_text("".join(f"{json.dumps(row(number))}\n" for number in range(64)))
    source = {"type": "url", "train_urls": [str(rows)]}
    values: dict[str, Any] = {
        "run_id": "gang",
        "data": {"components": {"prefs": {"source": source}}},
        "initialize_from_hf": str(case / "base"),
        "train_seq_len": 128,
        "trainer": {"train_batch_size": 8, "num_train_steps": STEPS, "mp": "p=f32,c=f32", "seed": 3},
        "optimizer": {"learning_rate": 1e-4, "warmup": 0},
        "lora": {"r": 8, "target_modules": ["q_proj"]},
        "eval": {"every_steps": 20},
        "validation_split_fraction": 0.1,
        "output": {"path": "out"},
        "cache": {"path": str(site.folder / "cache")},
    }
    site.config.write_text(yaml12.dumps(values))
    prepared = Place(site.folder / "prepared")
    prepared.folder.mkdir()
    assert site.start("prepare", prepared).wait(timeout=600) == 0
    return site


@pytest.fixture(scope="module")
def one_process(site: Site) -> Place:
    place = site.place("one")
    assert codes([site.start("train", place)]) == [0]
    return place


@pytest.fixture(scope="module")
def four_hosts(site: Site) -> list[Place]:
    """A run whose hosts have an output folder each, so that what each of them writes can be seen."""
    places = [site.place(f"host-{host}") for host in range(HOSTS)]
    assert codes(site.gang(*places)) == [0] * HOSTS, logs(*places)
    return places


@pytest.mark.slow
def test_four_hosts_train_what_one_process_trains(one_process: Place, four_hosts: list[Place]) -> None:
    leader = four_hosts[0]
    assert leader.losses() == pytest.approx(one_process.losses(), rel=1e-5)
    expected, found = one_process.adapter(), leader.adapter()
    assert expected.keys() == found.keys()
    apart = sum(float(np.square(found[name] - expected[name]).sum()) for name in expected)
    assert apart <= (5e-4) ** 2 * sum(float(np.square(expected[name]).sum()) for name in expected)


@pytest.mark.slow
def test_all_hosts_end_with_the_same_bytes_and_one_of_them_writes(site: Site, four_hosts: list[Place]) -> None:
    texts = logs(*four_hosts)
    assert all("The adapter after" in text for text in texts)
    assert len(digests(texts)) == 1
    untouched = Place(site.folder / "prepared").files()
    assert [place.files() for place in four_hosts[1:]] == [untouched] * (HOSTS - 1)
    assert "adapter/adapter_model.safetensors" in four_hosts[0].files()


@pytest.mark.slow
@pytest.mark.parametrize("host", [2])
def test_a_sigterm_to_one_host_ends_all_at_one_step_and_the_run_goes_on_to_the_same_bytes(
    site: Site, four_hosts: list[Place], host: int
) -> None:
    place = site.place("preempted")
    processes = site.gang(place)
    history = place.output / "metrics.jsonl"
    while not (history.exists() and history.stat().st_size):
        assert all(process.poll() is None for process in processes), logs(place)
        time.sleep(0.01)
    processes[host].send_signal(signal.SIGTERM)
    assert codes(processes) == [42] * HOSTS, logs(place)
    reports = [
        TerminationReport.model_validate_json((place.folder / f"termination-{number}").read_text())
        for number in range(HOSTS)
    ]
    (message,) = {report.message for report in reports}
    stopped = re.fullmatch(rf"Stopped after step (\d+) of {STEPS}; the state is saved\.", message)
    assert stopped, message
    assert 1 <= int(stopped[1]) < STEPS
    assert (place.output / "logs" / "attempt-0.log").exists()

    assert codes(site.gang(place)) == [0] * HOSTS, logs(place)
    assert f"Going on from step {stopped[1]}" in logs(place)[0]
    assert digests(logs(place)) == digests(logs(*four_hosts))
    assert place.adapter_bytes() == four_hosts[0].adapter_bytes()
