"""How long a finished job stays: `ttlAfterFinished`, on the LoraDpoJob itself.

Never on its JobSet: a parent whose child goes by a time of its own would make it again.
"""

from __future__ import annotations

import datetime
from typing import Any

from lora_dpo_api import durations
from lora_dpo_api.status import LoraDpoJobStatus
from lora_dpo_operator.observed import Accepted, Observed


def expires_at(observed: Observed) -> datetime.datetime | None:
    """When the job is to be deleted; None where it stays."""
    if not isinstance(observed.verdict, Accepted) or observed.retry_asked:
        return None
    return _expiry(observed.status, observed.verdict.spec.run_policy.ttl_after_finished)


def expiry_of(raw: dict[str, Any], status: LoraDpoJobStatus) -> datetime.datetime | None:
    """The same, of a job as the API server holds it, without reading all of its spec."""
    return _expiry(status, raw.get("spec", {}).get("runPolicy", {}).get("ttlAfterFinished"))


def _expiry(status: LoraDpoJobStatus, ttl: str | None) -> datetime.datetime | None:
    if ttl is None or status.phase is None or not status.phase.finished or status.completion_time is None:
        return None
    try:
        return status.completion_time + datetime.timedelta(seconds=durations.seconds(ttl))
    except OverflowError:
        # Somebody has written a time near the end of the calendar.
        return None
