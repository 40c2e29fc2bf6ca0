from __future__ import annotations

import itertools
import json
import math
import socket
import struct
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from lora_dpo_api import protocol
from lora_dpo_api.protocol import Advice, CurvePoint, ProgressReport, TrainerState
from lora_dpo_trainer import progress

VALUES = {
    "dpo_loss": 0.5,
    "dpo_margin_policy": 3.0,
    "dpo_margin_ref": 1.0,
    "dpo_accuracy": 0.75,
    "dpo_chosen_reward": 0.2,
    "dpo_rejected_reward": -0.1,
    "reward_margin": 0.3,
    "grad_norm": math.nan,
}


@pytest.fixture
def shown() -> progress.Progress:
    return progress.Progress(progress.Snapshot(run_id="team/job", total_steps=100, checkpoint_seconds=120))


@pytest.fixture
def server(shown: progress.Progress) -> Iterator[progress.Server]:
    running = progress.Server(shown, port=0, host="127.0.0.1")
    yield running
    running.close()


def get(server: progress.Server, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as answer:
        return str(answer.read().decode())


def test_status_is_the_protocols_report(shown: progress.Progress, server: progress.Server) -> None:
    shown.enter(TrainerState.TRAINING)
    shown.record(7, VALUES, epoch=0.5, eta_seconds=12.0)
    report = ProgressReport.model_validate_json(get(server, "/status"))
    assert (report.state, report.step, report.total_steps) == (TrainerState.TRAINING, 7, 100)
    assert report.metrics.loss == 0.5
    assert report.metrics.reward_margin == 0.3
    assert report.non_finite == ["grad_norm"]
    assert report.curve == [CurvePoint(step=7, loss=0.5, reward_margin=0.3, accuracy=0.75)]


def test_metrics_keep_the_guides_names_and_leave_nan_out(shown: progress.Progress, server: progress.Server) -> None:
    shown.record(7, VALUES, epoch=0.5, eta_seconds=None)
    shown.note({"parameter_count": 10.0})
    lines = get(server, "/metrics").splitlines()
    assert "loradpo_train_dpo_loss 0.5" in lines
    assert "loradpo_train_parameter_count 10.0" in lines
    assert "loradpo_train_step 7.0" in lines
    assert 'loradpo_train_state{state="Starting"} 1.0' in lines
    assert not any("grad_norm" in line for line in lines)


def test_health_answers_and_unknown_paths_are_not_found(server: progress.Server) -> None:
    assert get(server, "/healthz") == "ok\n"
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(server, "/secrets")
    with caught.value as answer:
        assert answer.code == 404


def test_the_curve_stays_bounded_and_keeps_its_ends(shown: progress.Progress) -> None:
    for step in range(1, 1001):
        shown.record(step, VALUES, epoch=0.0, eta_seconds=None)
    curve = shown.snapshot.curve
    assert len(curve) == protocol.CURVE_POINTS
    assert (curve[0].step, curve[-1].step) == (1, 1000)
    assert max(later.step - point.step for point, later in itertools.pairwise(curve)) < 200


def test_the_report_fits_the_operators_limit(shown: progress.Progress) -> None:
    for step in range(100):
        shown.record(step, VALUES, epoch=0.0, eta_seconds=1.0)
    for number in range(40):
        shown.advise(Advice(code=f"Code{number}", message="m" * 1024))
    assert len(shown.snapshot.report().to_json().encode()) < protocol.STATUS_LIMIT
    assert len(shown.snapshot.advice) == 16


def test_an_advice_is_given_once(shown: progress.Progress) -> None:
    for _ in range(3):
        shown.advise(Advice(code="FlatMargins", message="raise it"))
    assert len(shown.snapshot.advice) == 1


def test_a_slow_step_does_not_spoil_the_rate() -> None:
    meter = progress.RateMeter(peak_flops=1e12)
    assert meter.rates() == {}
    for seconds in (0.5, 0.5, 60.0, 0.5):
        meter.add(seconds, pairs=8, tokens=100, flops=1e11)
    assert meter.rates() == {"pairs_per_second": 16.0, "tokens_per_second": 200.0, "mfu": pytest.approx(0.2)}


def test_without_a_known_peak_there_is_no_mfu() -> None:
    meter = progress.RateMeter(peak_flops=None)
    meter.add(0.5, pairs=8, tokens=100, flops=1e11)
    assert set(meter.rates()) == {"pairs_per_second", "tokens_per_second"}


def test_utilisation_and_speed_reach_the_operator(shown: progress.Progress, server: progress.Server) -> None:
    shown.record(7, VALUES | {"mfu": 0.4, "tokens_per_second": 9.0}, epoch=0.5, eta_seconds=None)
    found = ProgressReport.model_validate_json(get(server, "/status")).metrics
    assert (found.mfu, found.tokens_per_second) == (0.4, 9.0)


def test_a_reader_that_goes_away_leaves_nothing_in_the_training_log(
    server: progress.Server, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as reader:
        reader.sendall(b"GET /sta")
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closes with a reset
    assert get(server, "/healthz") == "ok\n"
    time.sleep(0.2)
    assert capfd.readouterr().err == ""


def test_trls_names_are_served_beside_the_guides(shown: progress.Progress, server: progress.Server) -> None:
    shown.record(7, VALUES | {"logps/chosen": -40.0}, epoch=0.5, eta_seconds=None)
    lines = get(server, "/metrics").splitlines()
    for name, value in (("rewards_chosen", 0.2), ("rewards_rejected", -0.1), ("rewards_margins", 0.3)):
        assert f"loradpo_train_{name} {value}" in lines
    assert "loradpo_train_rewards_accuracies 0.75" in lines
    assert "loradpo_train_logps_chosen -40.0" in lines


def test_what_is_served_is_json_without_nan(shown: progress.Progress, server: progress.Server) -> None:
    shown.record(1, dict.fromkeys(VALUES, math.inf), epoch=0.0, eta_seconds=None)
    assert json.loads(get(server, "/status"))["metrics"] == {}
