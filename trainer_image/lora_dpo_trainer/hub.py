"""Asking the Hugging Face hub: what its client's failures mean, and how long to wait for an answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from lora_dpo_trainer import errors, storage

_log = logging.getLogger(__name__)


def ask[Result](operation: Callable[[], Result], what: str) -> Result:
    """Ask, and ask again while nobody answers.

    Args:
        operation: Calls the hub's client.
        what: What is asked for, such as `the model org/name`.

    Raises:
        MissingCredentials: the hub refuses it.
        Unreachable: no answer after the trainer's own retries.
        HfHubHTTPError: there is no such repository, revision or file, or it is gated.
    """
    import httpx
    from huggingface_hub import errors as hub_errors

    pauses = storage.Patience.from_environment().pauses()
    while True:
        try:
            return operation()
        except (hub_errors.RepositoryNotFoundError, hub_errors.RevisionNotFoundError, hub_errors.EntryNotFoundError):
            raise
        except (hub_errors.HfHubHTTPError, hub_errors.LocalEntryNotFoundError, httpx.HTTPError, OSError) as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            if status in (401, 403):
                raise errors.MissingCredentials(
                    f"The hub refuses {what}: HTTP {status}.",
                    hint="HF_TOKEN is wrong, has expired, or its account has no access; make a new one.",
                ) from error
            pause = next(pauses, None)
            if pause is None:
                raise errors.Unreachable(
                    f"The hub did not answer for {what}: {type(error).__name__}: {str(error)[:200]}."
                ) from error
            _log.warning("The hub does not answer for %s (%s); trying again in %.1f s", what, error, pause)
        time.sleep(pause)
