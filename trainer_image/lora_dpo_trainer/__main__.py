"""Entry point: `python -m lora_dpo_trainer --config_path FILE [--phase PHASE] [--dotted.key value …]`.

Without `--phase`, prepare, train and export run one after another, each in a process of its own. The configuration is
checked before any heavy import, so that a mistake in it is reported at once.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

from lora_dpo_api.protocol import ExitCode, Phase, TerminationReport
from lora_dpo_trainer import attempt_log, errors, exits, preemption, settings


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one phase, or all three; always leaves through an exit code of the protocol."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout)
    for noisy in ("httpx", "jax", "absl", "levanter", "fsspec", "gcsfs", "huggingface_hub", "tqdm_loggable"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Levanter needs tokenizers and configurations of transformers, never its torch models.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    words = list(sys.argv[1:] if arguments is None else arguments)
    options, overrides = _parser().parse_known_args(words)
    if options.phase is None:
        _run_all(options.config_path, words, overrides)
    phase = Phase(options.phase)

    log = attempt_log.AttemptLog()
    logging.getLogger().addHandler(log)

    def last(exit_code: int) -> None:
        log.write(exit_code, seconds=1.0 if notice.came else attempt_log.WRITE_SECONDS)

    notice = preemption.Notice(lambda error: exits.fail(error, phase, last=last))

    def body() -> TerminationReport:
        config = settings.load(options.config_path, overrides, say_notices=phase is Phase.PREPARE)
        if phase is Phase.TRAIN:
            log.start(config.output.path)
        # The phases import jax and Levanter, which takes seconds: only now, with a configuration that is right.
        module = importlib.import_module(f"lora_dpo_trainer.{phase.value}")
        report: TerminationReport = module.run(config, notice) if phase is Phase.TRAIN else module.run(config)
        return report

    exits.run_phase(phase, body, last=last)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lora_dpo_trainer",
        description="LoRA-DPO training on JAX.",
        epilog="Any key of the configuration can be set on the command line: --optimizer.learning_rate 1e-6",
        allow_abbrev=False,
    )
    parser.add_argument("--config_path", required=True, help="the configuration, YAML in the guide's schema")
    parser.add_argument(
        "--phase", choices=[phase.value for phase in Phase], help="run only this phase (default: all, in order)"
    )
    return parser


def _run_all(config_path: str, words: Sequence[str], overrides: Sequence[str]) -> None:
    """Run the phases one after another and leave with the first code that is not 0."""
    try:
        settings.load(config_path, overrides, say_notices=False)
    except errors.TrainerError as error:
        exits.fail(error, Phase.PREPARE)
    for phase in Phase:
        process = subprocess.Popen([sys.executable, "-m", "lora_dpo_trainer", *words, "--phase", phase.value])

        def forward(number: int, _frame: FrameType | None, target: subprocess.Popen[bytes] = process) -> None:
            target.send_signal(number)

        signal.signal(signal.SIGTERM, forward)
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)
            code = process.wait()
        if code != ExitCode.DONE:
            exits.leave(code if code > 0 else 128 - code)
    exits.leave(ExitCode.DONE)


if __name__ == "__main__":
    main()
