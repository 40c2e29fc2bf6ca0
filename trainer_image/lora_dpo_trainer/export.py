"""The third phase: prove on a CPU, from the written files alone, that the adapter is what was trained.

The base and the adapter are read back in a fresh process, the probe rows are scored, and the result is compared with
what the trained policy said. Then, where asked for, the merged checkpoint is written. No slice is held meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lora_dpo_api.config_file import TrainerConfig
from lora_dpo_api.protocol import Artifact, ExitCode, Phase, TerminationReport
from lora_dpo_trainer import errors, lora, merge, model, peft_io, probe, scoring, step, storage

EXPORT_FILE = "export.json"
ADAPTER = "adapter"
MERGED = "merged"
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
"""Largest accepted difference of a log-probability, relative to its size (at least 100), by the training's type."""

_log = logging.getLogger(__name__)


def run(config: TrainerConfig) -> TerminationReport:
    """Reload, compare, and write what was asked for; a repeated run gives the same.

    Raises:
        ExportMismatch: the written adapter, or the merged checkpoint, does not compute what was trained.
        StaleData: the train phase has not finished.
    """
    jax.config.update("jax_platforms", "cpu")
    output = config.output.path
    rows = _probe(output)
    folder = storage.join(output, ADAPTER)
    weights = _digest(storage.join(folder, peft_io.WEIGHTS))
    if weights != rows.adapter_digest:
        raise errors.ExportMismatch(f"{storage.join(folder, peft_io.WEIGHTS)} is not the file that training wrote.")
    # What the adapter says of itself, not the configuration: that is what other readers will go by.
    settings = peft_io.load_config(folder)
    allowed = allowed_difference(rows.policy, rows.compute_dtype, config.output.peft.dtype or "float32")
    found = _reloaded(config.initialize_from_hf, config.revision, rows, folder)
    difference = _compare(f"The adapter in {folder}", found, rows.policy, allowed)
    report: dict[str, Any] = {
        "largest_difference": difference,
        "allowed_difference": allowed,
        "adapter_effect": largest_difference(rows.policy, rows.reference),
        "probe_pairs": len(rows.pairs),
        "compute_dtype": rows.compute_dtype,
    }
    artifacts = [Artifact(kind="peft", path=folder[:1024])]
    digests = {f"{ADAPTER}/{peft_io.WEIGHTS}": weights}
    digests[f"{ADAPTER}/{peft_io.CONFIG}"] = _digest(storage.join(folder, peft_io.CONFIG))
    if config.output.merged_hf.enabled:
        target = storage.join(output, MERGED)
        merge.write(config, settings, folder, target)
        allowed = allowed_difference(rows.policy, rows.compute_dtype, config.output.merged_hf.dtype)
        found = _reloaded(target, None, rows)
        report["merged_largest_difference"] = _compare(f"The checkpoint in {target}", found, rows.policy, allowed)
        report["merged_allowed_difference"] = allowed
        artifacts.append(Artifact(kind="mergedHf", path=target[:1024]))
    report |= {"sha256": digests, "artifacts": [json.loads(artifact.to_json()) for artifact in artifacts]}
    storage.write_json(storage.join(output, EXPORT_FILE), report)
    return TerminationReport(
        phase=Phase.EXPORT,
        exit_code=ExitCode.DONE,
        reason="Exported",
        message=f"The adapter in {folder}, read back, is what was trained (difference {difference:.1e})."[:1024],
        artifacts=artifacts,
    )


def _reloaded(base_name: str, revision: str | None, rows: probe.Probe, adapter_folder: str | None = None) -> np.ndarray:
    """Log-probabilities of the probe rows, float32 [pairs, 2], from files alone."""
    base = model.load_base(base_name, revision, dtype=jnp.dtype(jnp.float32))
    if adapter_folder is None:
        return scoring.logprobs(step.make_logprob_step(base), None, rows.pairs)
    plan = lora.resolve(base.linears, peft_io.load_config(adapter_folder))
    return scoring.logprobs(step.make_logprob_step(base, plan), peft_io.load(adapter_folder, plan), rows.pairs)


def _compare(what: str, found: np.ndarray, trained: np.ndarray, allowed: float) -> float:
    difference = largest_difference(found, trained)
    _log.info("%s, reloaded: log-probabilities differ by at most %.2e (allowed %.2e)", what, difference, allowed)
    if not difference <= allowed:
        raise errors.ExportMismatch(
            f"{what}, read back, gives log-probabilities that differ by {difference:.4g} from the trained policy's "
            f"(allowed {allowed:.4g})."
        )
    return difference


def largest_difference(first: np.ndarray, second: np.ndarray) -> float:
    """The largest absolute difference; NaN anywhere gives infinity."""
    difference = float(np.abs(first - second).max())
    return math.inf if math.isnan(difference) else difference


def allowed_difference(policy: np.ndarray, *dtypes: str) -> float:
    """How far log-probabilities of this size may be off, computed and written in these types."""
    size = max(100.0, float(np.abs(policy).max()))
    return max(TOLERANCE.get(dtype, TOLERANCE["bfloat16"]) for dtype in dtypes) * size


def _probe(output: str) -> probe.Probe:
    try:
        return probe.read(output)
    except FileNotFoundError as error:
        raise errors.StaleData(
            f"There are no probe rows in {output}: training has not finished.", hint="Run the train phase first."
        ) from error


def _digest(url: str) -> str:
    return hashlib.sha256(storage.read_bytes(url)).hexdigest()
