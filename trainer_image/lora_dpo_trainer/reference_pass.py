"""The reference's log-probabilities for one run: read from the cache, computed once, or left to the train step."""

from __future__ import annotations

import logging

from lora_dpo_trainer import engine, errors, peft_io, preemption, reference, sources

_log = logging.getLogger(__name__)


def run(machine: engine.Engine, base_digest: str, *, watch: preemption.Watch, leads: bool) -> engine.ReferenceLogprobs:
    """Find or compute the reference's log-probabilities.

    A run that sees only a part of the pairs, with nothing in the cache, leaves them to the adapter-less pass of its
    own steps: computing all of them would be more work than the run itself.

    Returns:
        Split name → float32 [pairs, 2]; empty where the train step is to compute them.

    Raises:
        Preempted: a SIGTERM came.
    """
    config = machine.config
    own_adapter = config.reference.adapter
    key = reference.ReferenceKey(
        base=base_digest,
        pairs=machine.pairs.manifest.digest,
        dtype=machine.compute_dtype,
        adapter=None if own_adapter is None else peft_io.digest(own_adapter),
    )
    visits = machine.total_steps * config.trainer.train_batch_size
    if visits < len(machine.pairs.train) and own_adapter is None and reference.find(config.cache_path, key) is None:
        _log.info("The reference is computed step by step: this run sees only a part of the pairs")
        return {}

    def go_on(_done: int) -> None:
        if watch.reached():
            raise errors.Preempted("Stopped while computing the reference; there was nothing new to save.")

    splits = {sources.TRAIN: machine.pairs.train, sources.VALIDATION: machine.pairs.validation}
    return reference.find_or_compute(
        config.cache_path, key, splits, machine.reference_scorer(), writer=leads, watch=go_on
    )
