"""Everything that ends a phase on purpose, with the exit code that the operator's failure policies know.

    TrainerError
    ├── ConfigError              64  the configuration cannot work
    │   ├── ModelNotFound        64  no usable checkpoint at `initialize_from_hf`
    │   └── OutOfDeviceMemory    64  a step needs more than a device has
    ├── DataError                65  the preference data cannot be trained on
    │   ├── DataNotFound         65  a URL matches no file
    │   ├── InvalidRow           65  rows that are not preference pairs
    │   ├── PairTooLong          65  longer than train_seq_len under `slice_strategy: raise`
    │   ├── NotEnoughPairs       65  no pair, or fewer than one batch
    │   └── StaleData            65  the prepared rows are not those that this run was started with
    ├── Unreachable              69  a bucket or the hub, after the trainer's own retries
    ├── InternalError            70  our bug
    ├── OutputOccupied           73  `output.path` belongs to another run
    ├── Diverged                 76  training must not go on
    │   ├── BrokenIdentity       76  the first loss is not ln 2
    │   ├── NonFinite            76  NaN or infinite values
    │   └── ExportMismatch       76  what was written is not what was trained
    ├── MissingCredentials       77  no permission, or nobody to ask for it
    ├── WrongEnvironment         78  other devices than asked for
    └── Preempted                42  a SIGTERM; the state is saved

A message says what and where; a hint says what to do. Neither ever holds a secret.
"""

# ruff: noqa: N818 -- a class name is the reason that a user reads: PairTooLong, not PairTooLongError

from __future__ import annotations

from typing import ClassVar

from lora_dpo_api.protocol import ExitCode


class TrainerError(Exception):
    """Base of the tree.

    Args:
        message: What went wrong and where, one sentence.
        hint: What to do about it; default: the class's own.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.INTERNAL
    default_hint: ClassVar[str | None] = None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint if hint is not None else self.default_hint

    @property
    def reason(self) -> str:
        """The class's name: the CamelCase reason of the termination report."""
        return type(self).__name__


class ConfigError(TrainerError):
    """The configuration cannot work."""

    exit_code = ExitCode.CONFIG


class ModelNotFound(ConfigError):
    """There is no usable checkpoint where `initialize_from_hf` points."""

    default_hint = "Give initialize_from_hf a hub id, or the URL of a folder with config.json and *.safetensors."


class OutOfDeviceMemory(ConfigError):
    """A program needs more memory than a device has."""

    default_hint = "Take a larger slice, a smaller lora.r or train_seq_len, or fewer pairs in trainer.train_batch_size."


class DataError(TrainerError):
    """The preference data cannot be trained on."""

    exit_code = ExitCode.DATA


class DataNotFound(DataError):
    """A data URL matches no file."""

    default_hint = "Check the URL in data.components.<name>.source; globs match within one folder level."


class InvalidRow(DataError):
    """Rows that are no preference pairs."""

    default_hint = 'A row is {"chosen": [messages…], "rejected": [messages…]} with the same prompt and two answers.'


class PairTooLong(DataError):
    """A pair is longer than `train_seq_len` under `slice_strategy: raise`."""

    default_hint = "Raise train_seq_len, or set format.slice_strategy to drop, left or right."


class NotEnoughPairs(DataError):
    """No pair is left, or fewer than one batch."""

    default_hint = "Add rows, or lower trainer.train_batch_size or validation_split_fraction."


class StaleData(DataError):
    """The prepared rows are not those that this run was started with."""

    default_hint = "Run the prepare phase again, or choose another output.path for the changed data."


class Unreachable(TrainerError):
    """A bucket or the hub cannot be reached, after the trainer's own retries."""

    exit_code = ExitCode.UNREACHABLE
    default_hint = "Check the network and the service; the job resumes from its last checkpoint."


class InternalError(TrainerError):
    """Our bug; the traceback is in the log."""

    exit_code = ExitCode.INTERNAL
    default_hint = "This is a fault of the trainer: please report it with the container's log."


class OutputOccupied(TrainerError):
    """`output.path` holds another run."""

    exit_code = ExitCode.OUTPUT_OCCUPIED
    default_hint = "Choose another output.path, or set output.on_existing to overwrite."


class Diverged(TrainerError):
    """Training must not go on."""

    exit_code = ExitCode.DIVERGED


class BrokenIdentity(Diverged):
    """Policy and reference differ before the first update."""

    default_hint = (
        "Exactly one LoRA factor must start at zero (lora.zero_init_b: true); an adapter to go on from needs "
        "reference.adapter set to what it is compared with."
    )


class NonFinite(Diverged):
    """A loss, gradient or weight is NaN or infinite."""

    default_hint = "Lower optimizer.learning_rate (start at 5e-6, never above 5e-5) and keep warmup at 0.1."


class ExportMismatch(Diverged):
    """The written adapter, read back, does not compute what was trained."""

    default_hint = "Do not use this adapter; please report it with export.json."


class MissingCredentials(TrainerError):
    """No permission, or nobody to ask for it."""

    exit_code = ExitCode.CREDENTIALS
    default_hint = "Give the job's service account (or secret) permission to read and write this path."


class WrongEnvironment(TrainerError):
    """The machine is not what was asked for."""

    exit_code = ExitCode.ENVIRONMENT


class Preempted(TrainerError):
    """A SIGTERM came; the last completed step is saved where there was time for it."""

    exit_code = ExitCode.PREEMPTED
    default_hint = "Nothing to do: the next attempt goes on from the checkpoint."
