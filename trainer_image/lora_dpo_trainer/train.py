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
    compile_cache,
    distributed,
    engine,
    errors,
    existing_adapters,
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

_EXHAUSTED = "RESOURCE_EXHAUSTED"

_log = logging.getLogger(__name__)


def run(config: TrainerConfig, notice: preemption.Notice) -> TerminationReport:
    """Train until the last step, evaluate, write the adapter.

    Args:
        config: The configuration.
        notice: Hears a SIGTERM.

    Raises:
        Preempted: a SIGTERM came; the state is saved.
        TrainerError: training cannot start or must not go on.
    """
    placement = distributed.Placement.from_environment()
    distributed.start(placement)
    try:
        report = _run(config, placement, notice)
    except errors.Preempted as stopped:
        message = stopped.message
        notice.protect(lambda: message)  # should a host that is gone keep the others from leaving
        distributed.stop(placement)
        raise
    except jax.errors.JaxRuntimeError as error:
        what = str(error).splitlines()[0][:300]
        if _EXHAUSTED in what:  # every host comes to it, and another attempt would too
            raise errors.OutOfDeviceMemory(f"The devices have too little memory for this run: {what}.") from error
        if placement.processes == 1:
            raise
        if notice.came:
            raise errors.Preempted("Stopped when another host was; what it was doing is done again.") from error
        raise errors.Unreachable(
            f"Another host of this job is gone: {what}.",
            hint="Look at the other hosts' logs and pods for the cause; the job resumes from its last checkpoint.",
        ) from error
    distributed.stop(placement)
    return report


def _run(config: TrainerConfig, placement: distributed.Placement, notice: preemption.Notice) -> TerminationReport:
    leads = jax.process_index() == 0
    watch = preemption.watch(notice, processes=placement.processes, leads=leads)
    existing = existing_adapters.settle(config)
    config = existing.config
    owner = _owner(existing)
    shown = progress.Progress(
        progress.Snapshot(
            run_id=owner.run_id,
            total_steps=owner.total_steps,
            checkpoint_seconds=config.output.checkpoint.every_seconds,
            attempt=placement.attempt,
        )
    )
    server = progress.serve(shown) if leads else None
    for advice in existing.advice:
        shown.advise(advice)
    compiled = compile_cache.use(config.cache_path, writer=leads)

    shown.enter(TrainerState.LOADING)
    pairs = prepared.load(config.cache_path, owner.data)
    machine = engine.build(config, pairs, owner)
    state = machine.fresh_state()
    shown.note(machine.parameter_counts())
    restored = checkpoint.restore(config.output.path, state, owner)
    if restored is not None:
        _log.info("Going on from step %d", restored.step)
        state = restored.state
        shown.update(step=restored.step, resumed_from_step=restored.step, last_checkpoint=restored.saved)

    if watch.reached():
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
    evaluated = start.notes.get("evaluated_step") == start.step
    record = trackers.start(config, owner, shown, resumed_from=start.step, evaluated=evaluated) if leads else None
    state = loop.train(
        config, machine, state, start, shown=shown, watch=watch, notice=notice, writer=writer, record=record
    )
    if record is not None:
        record.close()
    _log.info("The adapter after %d steps: sha256 %s", owner.total_steps, checkpoint.digest(state.adapter))
    shown.enter(TrainerState.SAVING)
    folder = storage.join(config.output.path, "adapter")
    found = _probe(machine, state)
    if leads:
        last = metrics.finite(shown.snapshot.values)
        digest = adapter_files.write(machine, state.adapter, folder, steps=owner.total_steps, metrics=last)
        probe.write(config.output.path, dataclasses.replace(found, adapter_digest=digest))
    shown.enter(TrainerState.FINISHED)
    if compiled is not None:
        compiled.close()
    report = _report(shown, folder, leads=leads)
    if server is not None:
        server.close()
    return report


def _probe(machine: engine.Engine, state: TrainState) -> probe.Probe:
    """A few rows with what the policy and the base say about them; held-out ones where there are any."""
    split = machine.pairs.validation if machine.validation_pairs else machine.pairs.train
    rows = tuple(split[key] for key in range(min(probe.PAIRS, len(split))))
    policy, base = machine.logprobs(state.adapter, rows), machine.logprobs(None, rows)
    return probe.Probe(rows, policy, base, machine.compute_dtype, adapter_digest="")


def _owner(existing: existing_adapters.Settled) -> identity.RunIdentity:
    config = existing.config
    owner = identity.read(config.output.path)
    if owner is None:
        raise errors.StaleData(
            f"There is no {identity.RUN_FILE} in {config.output.path}.", hint="Run the prepare phase first."
        )
    expected = os.environ.get(Environment.PREPARED_DIGEST)
    if expected and expected != owner.data:
        raise errors.StaleData(f"The pairs {owner.data} in {config.output.path} are not those prepared ({expected}).")
    here = identity.of(
        config, data=owner.data, base=owner.base, total_steps=owner.total_steps, adapters=existing.digests
    )
    difference = here.difference(owner)
    if difference is not None:
        raise errors.OutputOccupied(f"{config.output.path} was prepared with another configuration: {difference}.")
    return owner


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
