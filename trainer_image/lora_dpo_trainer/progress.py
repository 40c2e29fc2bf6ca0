"""What rank 0 tells the world while it trains: `/status`, `/metrics` and `/healthz`.

The loop replaces an immutable snapshot; the server's threads only read it, so a slow or hostile reader cannot hold a
step back.
"""

from __future__ import annotations

import dataclasses
import datetime
import http.server
import logging
import math
import os
import statistics
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import prometheus_client
from prometheus_client import core, registry

from lora_dpo_api import protocol
from lora_dpo_api.protocol import Advice, Checkpoint, CurvePoint, ProgressReport, TrainerState
from lora_dpo_trainer import metrics

PORT_VARIABLE = "LORADPO_PROGRESS_PORT"
"""Overrides the port; 0 takes any free one."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Everything known about a run at one moment.

    Attributes:
        run_id: The run.
        attempt: Restarts before this one.
        state: What is being done.
        step: Steps completed.
        total_steps: Steps of the whole run.
        values: Latest values under the guide's names; may hold what is not finite.
        curve: Thinned history, at most `protocol.CURVE_POINTS`.
        checkpoint_seconds: Between two checkpoints, as the run is configured.
    """

    run_id: str
    total_steps: int
    checkpoint_seconds: float
    attempt: int = 0
    state: TrainerState = TrainerState.STARTING
    state_since: datetime.datetime = dataclasses.field(default_factory=protocol.utc_now)
    step: int = 0
    epoch: float | None = None
    eta_seconds: float | None = None
    resumed_from_step: int | None = None
    values: Mapping[str, float] = dataclasses.field(default_factory=dict)
    curve: tuple[CurvePoint, ...] = ()
    last_checkpoint: Checkpoint | None = None
    advice: tuple[Advice, ...] = ()

    def report(self) -> ProgressReport:
        """As the protocol has it."""
        return ProgressReport(
            run_id=self.run_id[:256],
            attempt=self.attempt,
            state=self.state,
            state_since=self.state_since,
            updated_at=protocol.utc_now(),
            step=self.step,
            total_steps=self.total_steps,
            epoch=self.epoch,
            eta_seconds=self.eta_seconds,
            resumed_from_step=self.resumed_from_step,
            metrics=metrics.to_protocol(self.values),
            non_finite=list(metrics.non_finite(self.values))[:32],
            curve=list(self.curve),
            last_checkpoint=self.last_checkpoint,
            advice=list(self.advice),
        )


class Progress:
    """Holds the newest snapshot; safe to read from any thread."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._lock = threading.Lock()

    @property
    def snapshot(self) -> Snapshot:
        """The newest snapshot."""
        return self._snapshot

    def update(self, **changes: Any) -> None:
        """Replace fields of the snapshot."""
        with self._lock:
            self._snapshot = dataclasses.replace(self._snapshot, **changes)

    def enter(self, state: TrainerState) -> None:
        """Say what is being done from now on."""
        if state is not self._snapshot.state:
            _log.info("%s", state.value)
            self.update(state=state, state_since=protocol.utc_now())

    def record(self, step: int, values: Mapping[str, float], *, epoch: float, eta_seconds: float | None) -> None:
        """Note the metrics of a completed step."""
        merged = {**self._snapshot.values, **values}
        curve = thinned((*self._snapshot.curve, _point(step, values)))
        self.update(step=step, values=merged, curve=curve, epoch=epoch, eta_seconds=eta_seconds)

    def note(self, values: Mapping[str, float]) -> None:
        """Note values that belong to no step: evaluation, parameter counts."""
        self.update(values={**self._snapshot.values, **values})

    def advise(self, advice: Advice) -> None:
        """Add an advice once."""
        if all(known.code != advice.code for known in self._snapshot.advice):
            _log.warning("%s: %s", advice.code, advice.message)
            self.update(advice=(*self._snapshot.advice, advice)[:16])


def thinned(curve: tuple[CurvePoint, ...], limit: int = protocol.CURVE_POINTS) -> tuple[CurvePoint, ...]:
    """At most `limit` points: first and last stay, of the others the one closest to its neighbours goes."""
    points = list(curve)
    while len(points) > limit:
        gaps = [points[index + 1].step - points[index - 1].step for index in range(1, len(points) - 1)]
        del points[1 + gaps.index(min(gaps))]
    return tuple(points)


class _Collector(registry.Collector):
    """Renders the newest snapshot, so that no series can be stale."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def collect(self) -> Iterator[core.GaugeMetricFamily]:
        snapshot = self._progress.snapshot
        values = metrics.finite(metrics.exported(snapshot.values))
        for name, value in values.items():
            yield core.GaugeMetricFamily(metrics.prometheus_name(name), metrics.HELP[name], value=value)
        yield core.GaugeMetricFamily("loradpo_train_step", "Steps completed.", value=snapshot.step)
        yield core.GaugeMetricFamily("loradpo_train_total_steps", "Steps of the whole run.", value=snapshot.total_steps)
        yield core.GaugeMetricFamily(
            "loradpo_train_checkpoint_interval_seconds",
            "Time between two checkpoints, as it is configured.",
            value=snapshot.checkpoint_seconds,
        )
        if snapshot.last_checkpoint is not None:
            yield core.GaugeMetricFamily(
                "loradpo_train_last_checkpoint_timestamp_seconds",
                "When the newest checkpoint was complete.",
                value=snapshot.last_checkpoint.time.timestamp(),
            )
        states = core.GaugeMetricFamily("loradpo_train_state", "What the trainer is doing: 1.", labels=["state"])
        for state in TrainerState:
            states.add_metric([state.value], float(state is snapshot.state))
        yield states


def collector(progress: Progress) -> registry.Collector:
    """What `/metrics` says."""
    return _Collector(progress)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a reader that did not wait for its answer: it would look like a fault of the training."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Server:
    """Serves a `Progress` over HTTP from a thread of its own.

    Args:
        progress: What to serve.
        port: TCP port; 0 takes any free one.
        host: Address to listen on.
    """

    def __init__(self, progress: Progress, *, port: int, host: str = "0.0.0.0") -> None:
        collectors = prometheus_client.CollectorRegistry(auto_describe=False)
        collectors.register(collector(progress))
        self._server = _Server((host, port), _handler(progress, collectors))
        self._thread = threading.Thread(target=self._server.serve_forever, name="progress", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve(progress: Progress) -> Server | None:
    """Start the server on the protocol's port; None, with a warning, when another process has it."""
    port = int(os.environ.get(PORT_VARIABLE, protocol.PROGRESS_PORT))
    try:
        return Server(progress, port=port)
    except OSError as error:
        _log.warning("No progress is served: port %d cannot be taken (%s); set %s", port, error, PORT_VARIABLE)
        return None


class RateMeter:
    """Speed of the last steps: medians, so that steps that compile or wait do not count.

    Args:
        peak_flops: FLOP/s of all devices, where that is known.
        window: How many steps are looked at.
    """

    def __init__(self, peak_flops: float | None = None, window: int = 20) -> None:
        self._peak = peak_flops
        self._window = window
        self._steps: list[tuple[float, int, int, float]] = []

    def add(self, seconds: float, pairs: int, tokens: int, flops: float) -> None:
        """Note a completed step: how long it took, its pairs, its real tokens, its necessary FLOPs."""
        self._steps = [*self._steps[1 - self._window :], (seconds, pairs, tokens, flops)]

    @property
    def seconds_per_step(self) -> float | None:
        """None until a step is complete."""
        return statistics.median(step[0] for step in self._steps) if self._steps else None

    def rates(self) -> dict[str, float]:
        """`pairs_per_second`, `tokens_per_second` and `mfu`, when known."""
        seconds = self.seconds_per_step
        if not seconds:
            return {}
        pairs, tokens, flops = (statistics.fmean(column) for column in list(zip(*self._steps, strict=True))[1:])
        found = {"pairs_per_second": pairs / seconds, "tokens_per_second": tokens / seconds}
        return found if self._peak is None else found | {"mfu": flops / seconds / self._peak}


def _point(step: int, values: Mapping[str, float]) -> CurvePoint:
    known = {
        field: values[name]
        for field, name in (("loss", "dpo_loss"), ("reward_margin", "reward_margin"), ("accuracy", "dpo_accuracy"))
        if math.isfinite(values.get(name, math.nan))
    }
    return CurvePoint.model_validate({"step": step, **known})


def _handler(
    progress: Progress, collectors: prometheus_client.CollectorRegistry
) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            match self.path.partition("?")[0]:
                case "/status":
                    self._answer(200, "application/json", progress.snapshot.report().to_json().encode())
                case "/metrics":
                    text = prometheus_client.generate_latest(collectors)
                    self._answer(200, "text/plain; version=0.0.4; charset=utf-8", text)
                case "/healthz":
                    self._answer(200, "text/plain", b"ok\n")
                case _:
                    self._answer(404, "text/plain", b"/status, /metrics or /healthz\n")

        def _answer(self, code: int, kind: str, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing: scrapes would drown the training log."""

    return Handler
