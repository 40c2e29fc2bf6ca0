"""Where the metrics of a run go: the history in the output, TensorBoard, Weights & Biases, the console.

All take the same names. They are written from a thread of their own, so that a slow store does not hold a step back.
"""

from __future__ import annotations

import collections
import concurrent.futures
import hashlib
import logging
import netrc
import os
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lora_dpo_api.config_file import TrackingConfig, TrainerConfig, WandbConfig
from lora_dpo_trainer import attempt_log, console, errors, history, identity, metrics, progress, storage

TENSORBOARD_FOLDER = "tensorboard"
_UPLOAD_SECONDS = 30.0
_WANDB_SECONDS = 60
_OFFLINE = ("offline", "disabled", "dryrun")

_log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Takes the metrics of completed steps, in order."""

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Take some values of a step; they may be NaN or infinite."""
        ...

    def flush(self) -> None:
        """Make everything so far visible."""
        ...

    def close(self) -> None:
        """Flush for the last time."""
        ...


class Trackers:
    """All trackers of a run.

    Args:
        here: Those that are quick and belong to the loop's own output.
        behind: Those that a thread writes.
    """

    def __init__(self, here: Sequence[Tracker], behind: Sequence[Tracker]) -> None:
        self._here = tuple(here)
        self._behind = tuple(behind)
        self._pool = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="trackers")
        self._pending: collections.deque[concurrent.futures.Future[None]] = collections.deque()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Take the values of a step, under their own names and TRL's; raises what went wrong with earlier ones."""
        named = metrics.exported(values)
        for tracker in self._here:
            tracker.add(step, named)
        self._submit(lambda tracker: tracker.add(step, named))

    def flush(self) -> None:
        """Wait until everything so far is visible."""
        self._submit(lambda tracker: tracker.flush())
        self._collect(wait=True)

    def close(self) -> None:
        """Flush for the last time, and end the thread."""
        for tracker in self._here:
            tracker.close()
        self._submit(lambda tracker: tracker.close())
        self._collect(wait=True)
        self._pool.shutdown()

    def _submit(self, work: Callable[[Tracker], None]) -> None:
        self._collect(wait=False)

        def run() -> None:
            for tracker in self._behind:
                work(tracker)

        self._pending.append(self._pool.submit(run))

    def _collect(self, *, wait: bool) -> None:
        while self._pending and (wait or self._pending[0].done()):
            self._pending.popleft().result()


class TensorBoard:
    """Event files in the folder `tensorboard` of the output, one an attempt.

    An object store gets the whole file anew, at most every half minute and whenever a checkpoint is made.

    Args:
        output_path: URL of the output.
        resumed_from: Steps that are complete already; TensorBoard drops what earlier files have beyond.
    """

    def __init__(self, output_path: str, *, resumed_from: int = 0) -> None:
        # Not its SummaryWriter: that has a thread and a queue of its own, and a flush that does not wait for them.
        from tensorboardX import event_file_writer
        from tensorboardX.proto import event_pb2, summary_pb2

        self._events, self._summaries = event_pb2, summary_pb2
        self._url = storage.join(output_path, TENSORBOARD_FOLDER)
        self._scratch = None if storage.is_local(self._url) else tempfile.TemporaryDirectory()
        self._folder = Path(self._scratch.name) if self._scratch else storage.local_path(self._url)
        self._folder.mkdir(parents=True, exist_ok=True)
        # A last part of its own: attempts may start within one second.
        self._writer = event_file_writer.EventsWriter(str(self._folder / "events"), f".{resumed_from}")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(resumed_from + 1, session_log=start)
        self._uploaded = time.monotonic()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Write a scalar a value."""
        scalars = [self._summaries.Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step, summary=self._summaries.Summary(value=scalars))
        if self._scratch and time.monotonic() - self._uploaded > _UPLOAD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Make everything so far visible."""
        self._writer.flush()
        if self._scratch:
            storage.upload_folder(self._folder, self._url)
            self._uploaded = time.monotonic()

    def close(self) -> None:
        """Flush for the last time."""
        self.flush()
        self._writer.close()
        if self._scratch:
            self._scratch.cleanup()

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(self._events.Event(wall_time=time.time(), step=step, **content))


class Wandb:
    """A run of Weights & Biases; a resumed attempt goes on with the same one.

    Args:
        config: Of the whole run.
        where: Project and entity.
        owner: Decides which run it is.

    Raises:
        MissingCredentials: the key is refused.
    """

    def __init__(self, config: TrainerConfig, where: WandbConfig, owner: identity.RunIdentity) -> None:
        import wandb

        output = config.output.path
        self._run: Any = None
        number = hashlib.sha256(f"{owner.run_id} {owner.settings_digest} {owner.data} {owner.base}".encode())
        try:
            self._run = wandb.init(
                project=where.project,
                entity=where.entity,
                id=number.hexdigest()[:16],
                name=owner.run_id,
                resume="allow",
                # W&B makes a folder wandb in there; it is of use in the offline mode only.
                dir=str(storage.local_path(output)) if storage.is_local(output) else tempfile.mkdtemp(),
                config=config.model_dump(mode="json"),
                settings=wandb.Settings(console="off", quiet=True, init_timeout=_WANDB_SECONDS),
            )
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")
        except (wandb.errors.AuthenticationError, wandb.errors.UsageError) as error:
            raise errors.MissingCredentials(
                f"tracking.wandb: W&B refuses the key: {_said(error)}.", hint="Put a valid key into WANDB_API_KEY."
            ) from error
        except wandb.errors.Error as error:
            _log.warning("W&B cannot be used, training goes on without it: %s", _said(error))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values."""
        if self._run is not None:
            self._run.log({**values, "step": step})

    def flush(self) -> None:
        """Nothing to do: W&B sends by itself."""

    def close(self) -> None:
        """Finish the run."""
        if self._run is not None:
            self._run.finish()


def start(
    config: TrainerConfig,
    owner: identity.RunIdentity,
    shown: progress.Progress,
    *,
    resumed_from: int,
    evaluated: bool = True,
) -> Trackers:
    """Start the trackers that a configuration asks for.

    Args:
        config: The configuration.
        owner: The run.
        shown: What the console tells besides metrics.
        resumed_from: Steps that are complete already.
        evaluated: Whether the evaluation after the last of them is complete too, if there was one.

    Raises:
        MissingCredentials: W&B is asked for and there is no key, or it is refused.
    """
    check(config.tracking)
    output = config.output.path
    behind: list[Tracker] = [history.History(output, resumed_from=resumed_from, evaluated=evaluated)]
    if config.tracking.tensorboard:
        behind.append(TensorBoard(output, resumed_from=resumed_from))
    if config.tracking.wandb is not None:
        behind.append(Wandb(config, config.tracking.wandb, owner))
    return Trackers([console.make(shown, resumed_from)], behind)


def check(tracking: TrackingConfig) -> None:
    """See whether the trackers have what they need; touches no network.

    Raises:
        MissingCredentials: W&B is asked for and there is no key.
    """
    if tracking.wandb is None or os.environ.get("WANDB_MODE") in _OFFLINE or _has_wandb_key():
        return
    raise errors.MissingCredentials(
        "tracking.wandb is set, and there is no key of Weights & Biases in WANDB_API_KEY.",
        hint="Put the key into the Secret that spec.tracking.wandb.secretRef names, or into WANDB_API_KEY.",
    )


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urllib.parse.urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc().authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _said(error: BaseException) -> str:
    """An error's first line, without secrets."""
    lines = str(error).splitlines() or [type(error).__name__]
    return attempt_log.without_secrets(lines[0][:300].rstrip("."), os.environ)
