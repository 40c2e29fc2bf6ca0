"""What the trainer keeps, in an object store that fails: all of it survives, or the trainer says so and ends."""

from __future__ import annotations

import contextlib
import json
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gcsfs.retry
import numpy as np
import pytest

from lora_dpo_api.config_file import TrainerConfig
from lora_dpo_trainer import checkpoint, errors, history, identity, storage
from tests.storage import faulty_proxy
from tests.storage.faulty_proxy import Fault, FaultyProxy, Plan

UPLOAD = "/upload/"


@pytest.fixture(autouse=True)
def _quiet_gcsfs() -> Iterator[None]:
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("gcsfs").setLevel(logging.NOTSET)


@pytest.fixture
def config(store: str) -> TrainerConfig:
    source = {"type": "url", "train_urls": [f"{store}/rows.jsonl"]}
    values = {
        "run_id": "r",
        "data": {"components": {"prefs": {"source": source}}},
        "initialize_from_hf": f"{store}/base",
        "output": {"path": f"{store}/out"},
    }
    return TrainerConfig.model_validate(values)


@pytest.fixture
def owner(config: TrainerConfig) -> identity.RunIdentity:
    return identity.of(config, data="d", base="b", total_steps=10)


def state(step: int) -> dict[str, np.ndarray]:
    return {"adapter": np.random.default_rng(step).standard_normal((64, 32), np.float32), "step": np.asarray(step)}


def save(config: TrainerConfig, owner: identity.RunIdentity, *steps: int, keep: int = 2) -> None:
    writer = checkpoint.Writer(config.output.path, owner, keep=keep, leads=True, on_saved=lambda saved: None)
    for step in steps:
        writer.save(step, state(step), {})
        writer.wait()


def restored(config: TrainerConfig, owner: identity.RunIdentity) -> int | None:
    """The step of what is restored; it must be that step's state, bit for bit."""
    found = checkpoint.restore(config.output.path, state(0), owner)
    if found is None:
        return None
    for name, array in state(found.step).items():
        np.testing.assert_array_equal(found.state[name], array)
    return found.step


FAULTS: tuple[tuple[str, Fault, str | None, str], ...] = (
    ("503 to an upload", faulty_proxy.refused(503), "POST", UPLOAD),
    ("502 to an upload", faulty_proxy.refused(502), "POST", UPLOAD),
    ("429 to an upload", faulty_proxy.refused(429), "POST", UPLOAD),
    ("a reset during an upload", faulty_proxy.reset, "POST", UPLOAD),
    ("an upload whose answer is lost", faulty_proxy.lost_answer, "POST", UPLOAD),
    ("an upload of which half is stored", faulty_proxy.half_stored, "POST", UPLOAD),
    ("a slow upload", faulty_proxy.slow(1.0), "POST", UPLOAD),
    ("503 to a look-up", faulty_proxy.refused(503), "GET", "/o"),
    ("a reset during a deletion", faulty_proxy.reset, "DELETE", ""),
)


@pytest.mark.parametrize(
    ("fault", "method", "path"), [fault[1:] for fault in FAULTS], ids=[name for name, *_ in FAULTS]
)
def test_a_checkpoint_survives(
    config: TrainerConfig, owner: identity.RunIdentity, proxy: FaultyProxy, fault: Fault, method: str, path: str
) -> None:
    proxy.plan = faulty_proxy.first(1, fault, method=method, path=path)
    save(config, owner, 1, 2, keep=1)
    assert restored(config, owner) == 2
    assert storage.children(f"{config.output.path}/checkpoints") == ("step-00000002",)


def test_a_download_that_breaks_off_is_read_again(
    config: TrainerConfig, owner: identity.RunIdentity, proxy: FaultyProxy
) -> None:
    save(config, owner, 1, 2)
    proxy.plan = faulty_proxy.first(1, faulty_proxy.half_sent, method="GET", path="state-")
    assert restored(config, owner) == 2


def test_a_store_that_is_away_for_two_minutes_is_waited_for(
    config: TrainerConfig, owner: identity.RunIdentity, proxy: FaultyProxy
) -> None:
    # Time is scaled: 3 s of the 15 that the trainer is given here are what 2 of its 10 minutes are.
    proxy.plan = faulty_proxy.for_seconds(3.0, faulty_proxy.refused(503))
    save(config, owner, 1)
    assert restored(config, owner) == 1


def test_a_store_that_stays_away_is_unreachable_in_one_sentence(
    config: TrainerConfig, owner: identity.RunIdentity, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(storage.RETRY_SECONDS_VARIABLE, "1")
    save(config, owner, 1)
    proxy.plan = lambda method, url: faulty_proxy.refused(503)
    with pytest.raises(errors.Unreachable) as failure:
        save(config, owner, 2)
    assert failure.value.exit_code == 69
    assert "Cannot write gs://" in failure.value.message
    assert "after 1 s of retries" in failure.value.message
    proxy.plan = lambda method, url: None
    assert restored(config, owner) == 1


def test_a_missing_permission_is_one_and_not_our_bug(
    config: TrainerConfig, owner: identity.RunIdentity, proxy: FaultyProxy
) -> None:
    proxy.plan = lambda method, url: faulty_proxy.refused(403)
    with pytest.raises(errors.MissingCredentials, match="Forbidden"):
        save(config, owner, 1)


def gone_after(count: int, *, torn: bool) -> Plan:
    """So many requests arrive, then the process is gone; the last of them in half, when it is torn."""
    arrived = [0]

    def plan(_method: str, _url: str) -> Fault | None:
        arrived[0] += 1
        if arrived[0] <= count:
            return None
        # 400: nothing repeats it, so that the store sees what it would see of a process that was killed.
        return half_then_gone if torn and arrived[0] == count + 1 else faulty_proxy.refused(400)

    def half_then_gone(handler: Any, body: bytes, forward: Any) -> None:
        if body:
            forward(body[: len(body) // 2]).read()
        faulty_proxy.refused(400)(handler, body, forward)

    return plan


@pytest.mark.parametrize("torn", [False, True], ids=["between requests", "inside a request"])
def test_a_process_gone_at_any_point_of_the_writing_leaves_a_whole_checkpoint(
    config: TrainerConfig, owner: identity.RunIdentity, proxy: FaultyProxy, torn: bool
) -> None:
    found = set()
    for count in range(100):
        proxy.plan = lambda method, url: None
        storage.delete(f"{config.output.path}/checkpoints")
        save(config, owner, 1)
        proxy.plan = gone_after(count, torn=torn)
        ended = False
        with contextlib.suppress(gcsfs.retry.HttpError):
            save(config, owner, 2, keep=1)
            ended = True
        proxy.plan = lambda method, url: None
        step = restored(config, owner)
        assert step in (1, 2), f"after {count} requests"
        found.add(step)
        if ended:
            break
        save(config, owner, 3, keep=1)
        assert restored(config, owner) == 3
        assert storage.children(f"{config.output.path}/checkpoints") == ("step-00000003",)
    assert ended
    assert found == {1, 2}


def test_everything_that_a_run_keeps_survives_a_bad_day(
    config: TrainerConfig, owner: identity.RunIdentity, proxy: FaultyProxy, tmp_path: Path
) -> None:
    rng = random.Random(7)
    bad = (faulty_proxy.refused(503), faulty_proxy.reset, faulty_proxy.lost_answer)

    def plan(method: str, url: str) -> Fault | None:
        if rng.random() > 0.15:
            return None
        return faulty_proxy.half_stored if UPLOAD in url and rng.random() < 0.5 else rng.choice(bad)

    proxy.plan = plan
    identity.claim(config, owner)
    lines = history.History(config.output.path)
    for step in range(1, 4):
        lines.add(step, {"dpo_loss": 0.5})
        lines.flush()
        save(config, owner, step)
    (tmp_path / "adapter").mkdir()
    weights = np.random.default_rng(0).bytes(6 << 20)  # large enough for a resumable upload
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(weights)
    storage.upload_folder(tmp_path / "adapter", f"{config.output.path}/adapter")
    proxy.plan = lambda method, url: None

    assert identity.read(config.output.path) == owner
    kept = storage.read_bytes(f"{config.output.path}/metrics.jsonl").splitlines()
    assert [json.loads(line)["step"] for line in kept] == [1, 2, 3]
    assert restored(config, owner) == 3
    assert storage.read_bytes(f"{config.output.path}/adapter/adapter_model.safetensors") == weights
