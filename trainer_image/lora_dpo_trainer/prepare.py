"""The first phase: everything that can be known before an accelerator is held.

It proves that the bucket can be written, that the model is there and the adapter fits it, reads and checks every row,
tokenises what is not in the cache yet, and claims `output.path` for this run.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from lora_dpo_api import guidance
from lora_dpo_api.config_file import TrainerConfig
from lora_dpo_api.protocol import Advice, ExitCode, Phase, PreparedReport, TerminationReport
from lora_dpo_trainer import (
    capacity,
    dataset,
    existing_adapters,
    identity,
    mixture,
    packing,
    peft_io,
    plan,
    prepared,
    pretrained,
    storage,
    supported,
    trackers,
)

_PACKED_STEPS = 50

_log = logging.getLogger(__name__)


def run(config: TrainerConfig) -> TerminationReport:
    """Prepare a run; does nothing new where its output exists already.

    Raises:
        TrainerError: whatever would make training fail; see `errors`.
    """
    trackers.check(config.tracking)
    for path in dict.fromkeys((config.output.path, config.cache_path)):
        storage.probe(path)
    base = pretrained.Pretrained(config.initialize_from_hf, config.revision)
    supported.check(base.config(), base.name)
    existing = existing_adapters.settle(config)
    config = existing.config
    plan.check_rank(config.lora, base.config())
    for folder in filter(None, (config.adapter.init_from, config.reference.adapter)):
        plan.check_adapter(peft_io.shapes(folder), base.config(), folder)
    base.require_weights()
    data = dataset.plan(config)
    manifest = prepared.find(config.cache_path, data.digest)
    if manifest is None:
        manifest = dataset.build(data, config.cache_path)
    else:
        _log.info("The rows are prepared already: %s", prepared.folder(config.cache_path, data.digest))
    report = _report(config, manifest)
    capacity.check(config, manifest.digest, report.total_steps)
    owner = identity.of(
        config,
        data=data.digest,
        base=base.digest(),
        total_steps=report.total_steps,
        adapters=existing.digests,
    )
    resumes = identity.claim(config, owner)
    advice = [*existing.advice, *_advice(config, manifest)][:8]
    _print(report, advice, owner, resumes=resumes)
    shares = manifest.report.get("length_percentiles", {}).items()
    _log.info(
        "Longer side of a pair, tokens: %s", ", ".join(f"{share} % of pairs <= {length}" for share, length in shares)
    )
    return TerminationReport(
        phase=Phase.PREPARE,
        exit_code=ExitCode.DONE,
        reason="Prepared",
        message=f"{report.train_pairs} training and {report.validation_pairs} validation pairs are ready.",
        prepared=report,
        advice=advice,
    )


def _report(config: TrainerConfig, manifest: prepared.Manifest) -> PreparedReport:
    found = manifest.report
    steps = plan.total_steps(config.trainer, int(found["train_pairs"]), "; ".join(found["notes"]))
    return PreparedReport(
        digest=manifest.digest,
        train_pairs=found["train_pairs"],
        validation_pairs=found["validation_pairs"],
        dropped_pairs=found["dropped_pairs"],
        total_steps=steps,
        tokens=found["tokens"],
        longest_pair=found["longest_pair"],
        pad_fraction=_pad_fraction(config, manifest, steps),
    )


def _pad_fraction(config: TrainerConfig, manifest: prepared.Manifest, steps: int) -> float:
    """Share of token positions that hold no token, over steps of pairs from all of the epoch, packed for one device."""
    train = prepared.load(config.cache_path, manifest.digest).train
    keys = mixture.keys_of_epoch(train.component, tuple(config.data.components), config.data.train_weights)
    run = config.trainer
    # A sample: what is held in memory of a million pairs would be several times the columns that describe them.
    sample = min(len(keys), min(steps, _PACKED_STEPS) * run.train_batch_size)
    lengths = train.pair_lengths(keys[np.arange(sample) * len(keys) // sample])
    packed = packing.BatchPlan.make(
        lengths,
        run.train_batch_size,
        total_steps=min(steps, _PACKED_STEPS),
        seed=run.seed,
        shuffle=config.data.shuffle,
    )
    numbers = range(packed.total_steps)
    real = sum(int(lengths.encoded[packed.keys_of_step(number)].sum()) for number in numbers)
    return round(1 - real / sum(packed.shape_of_step(number).tokens for number in numbers), 4)


def _advice(config: TrainerConfig, manifest: prepared.Manifest) -> list[Advice]:
    advice = [Advice(code="RowsLeftOut", message=note[:1024]) for note in manifest.report["notes"]]
    if repeated := manifest.report.get("repeated", 0):
        places = ", ".join(manifest.report["repeated_at"])
        text = f"{repeated} pairs are there more than once ({places}, …); they are kept, and count as often."
        advice.append(Advice(code="RepeatedPairs", message=text[:1024]))
    wants_validation = config.validation_split_fraction > 0
    if wants_validation and manifest.report["validation_pairs"] == 0:
        advice.append(
            Advice(
                code="NoValidation",
                message="validation_split_fraction holds out no pair of so few: raise it, or give validation_urls.",
            )
        )
    rank = guidance.rank_advice(config.lora.r, int(manifest.report["train_pairs"]), guidance.FILE_PATHS.r)
    if rank is not None:
        advice.append(Advice(code=rank.code, message=str(rank)[:1024]))
    return advice[:8]


def _print(report: PreparedReport, advice: Sequence[Advice], owner: identity.RunIdentity, *, resumes: bool) -> None:
    _log.info("Run %s (%s)", owner.run_id, "goes on" if resumes else "new")
    _log.info(
        "Pairs: %d training, %d validation, %d left out", report.train_pairs, report.validation_pairs,
        report.dropped_pairs,
    )  # fmt: skip
    for item in advice:
        _log.info("  %s: %s", item.code, item.message)
    _log.info("Tokens: %d in training (shared prompts once), longest side %d", report.tokens, report.longest_pair)
    _log.info("Steps: %d, with %.0f %% of positions padding", report.total_steps, 100 * report.pad_fraction)
    _log.info("Prepared: %s", report.digest)
