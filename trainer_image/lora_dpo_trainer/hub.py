"""What a failure of the Hugging Face hub's client means."""

from __future__ import annotations

from lora_dpo_trainer import errors


def failure(error: Exception, what: str) -> errors.TrainerError:
    """A refusal, which no retry helps, or no answer.

    Args:
        error: What the client raised.
        what: What was asked for, such as `the model org/name`.
    """
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return errors.MissingCredentials(
            f"The hub refuses {what}: HTTP {status}.",
            hint="HF_TOKEN is wrong, has expired, or its account has no access; make a new one.",
        )
    return errors.Unreachable(f"The hub did not answer for {what}: {type(error).__name__}.")
