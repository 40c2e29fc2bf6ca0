"""The second phase: LoRA-DPO on the prepared pairs. `run` is the recipe, from top to bottom."""

from __future__ import annotations

import dataclasses
import logging
import os

import jax

from lora_dpo_api.config_file import TrainerConfig
from lora_dpo_api.protocol import Artifact, Environment, ExitCode, Phase, TerminationReport, TrainerState
from lora_dpo_trainer import (
    adapter_files,
    checkpoint,
    distributed,
    engine,
    errors,
    identity,
    loop,
    metrics,
    preemption,
    prepared,
    probe,
    progress,
    reference_pass,
    storage,
    trackers,
)
from lora_dpo_trainer.step import TrainState

_log = logging.getLogger(__name__)


def run(config: TrainerConfig) -> TerminationReport:
    """Train until the last step, evaluate, write the adapter.

    Raises:
        Preempted: a SIGTERM came; the state is saved.
        TrainerError: training cannot start or must not go on.
    """
    placement = distributed.Placement.from_environment()
    distributed.start(placement)
    watch = preemption.watch(placement.processes)
    leads = jax.process_index() == 0
    owner = _owner(config)
    shown = progress.Progress(
        progress.Snapshot(run_id=owner.run_id, total_steps=owner.total_steps, attempt=placement.attempt)
    )
    server = progress.serve(shown) if leads else None
    _use_compile_cache(config)

    shown.enter(TrainerState.LOADING)
    pairs = prepared.load(config.cache_path, owner.data)
    machine = engine.build(config, pairs, owner)
    state = machine.fresh_state()
    shown.note(machine.parameter_counts())
    restored = checkpoint.restore(config.output.path, state, owner)
    if restored is not None:
        _log.info("Going on from step %d", restored.step)
        state = restored.state
        shown.update(step=restored.step, resumed_from_step=restored.step)

    if watch.reached():
        distributed.stop(placement)
        raise errors.Preempted("Stopped while loading; there was nothing new to save.")
    shown.enter(TrainerState.REFERENCE)
    known = reference_pass.run(machine, owner.base, watch=watch, leads=leads)
    machine = dataclasses.replace(machine, reference_logprobs=known)
    writer = checkpoint.Writer(
        config.output.path,
        owner,
        keep=config.output.checkpoint.keep,
        leads=leads,
        on_saved=lambda saved: shown.update(last_checkpoint=saved),
    )
    start = loop.Position(step=restored.step, notes=restored.notes) if restored else loop.Position(step=0, notes={})
    record = trackers.start(config, owner, shown, resumed_from=start.step) if leads else None
    try:
        state = loop.train(config, machine, state, start, shown=shown, watch=watch, writer=writer, record=record)
    except errors.Preempted:
        distributed.stop(placement)
        raise

    if record is not None:
        record.close()
    shown.enter(TrainerState.SAVING)
    folder = storage.join(config.output.path, "adapter")
    _write_probe(machine, state, leads=leads)
    if leads:
        last = metrics.finite(shown.snapshot.values)
        adapter_files.write(machine, state.adapter, folder, steps=owner.total_steps, metrics=last)
    shown.enter(TrainerState.FINISHED)
    report = _report(shown, folder, leads=leads)
    distributed.stop(placement)
    if server is not None:
        server.close()
    return report


def _write_probe(machine: engine.Engine, state: TrainState, *, leads: bool) -> None:
    """Keep a few rows with what the policy and the reference say about them; held-out ones where there are any."""
    split = machine.pairs.validation if machine.validation_pairs else machine.pairs.train
    rows = tuple(split[key] for key in range(min(probe.PAIRS, len(split))))
    policy, base = machine.logprobs(state.adapter, rows), machine.logprobs(None, rows)
    if leads:
        probe.write(machine.config.output.path, probe.Probe(rows, policy, base, machine.compute_dtype))


def _owner(config: TrainerConfig) -> identity.RunIdentity:
    owner = identity.read(config.output.path)
    if owner is None:
        raise errors.StaleData(
            f"There is no {identity.RUN_FILE} in {config.output.path}.", hint="Run the prepare phase first."
        )
    expected = os.environ.get(Environment.PREPARED_DIGEST)
    if expected and expected != owner.data:
        raise errors.StaleData(f"The pairs {owner.data} in {config.output.path} are not those prepared ({expected}).")
    here = identity.of(config, data=owner.data, base=owner.base, total_steps=owner.total_steps)
    difference = here.difference(owner)
    if difference is not None:
        raise errors.OutputOccupied(f"{config.output.path} was prepared with another configuration: {difference}.")
    return owner


def _use_compile_cache(config: TrainerConfig) -> None:
    """Keep compiled programs where that is a folder of this machine; XLA's cache writes no object stores reliably."""
    if storage.is_local(config.cache_path):
        folder = storage.local_path(storage.join(config.cache_path, "compile"))
        folder.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(folder))


def _report(shown: progress.Progress, folder: str, *, leads: bool) -> TerminationReport:
    snapshot = shown.snapshot
    return TerminationReport(
        phase=Phase.TRAIN,
        exit_code=ExitCode.DONE,
        reason="Trained",
        message=f"{snapshot.total_steps} steps are done; the adapter is in {folder}."[:1024],
        progress=snapshot.report() if leads else None,
        artifacts=[Artifact(kind="peft", path=folder[:1024], step=snapshot.total_steps)],
        advice=list(snapshot.advice)[:8],
    )
