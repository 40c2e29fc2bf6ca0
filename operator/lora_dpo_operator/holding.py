"""How long the slice has been held: the time that `activeDeadline` limits, pauses not counted.

A stretch begins when the whole gang has its nodes, by the pods' own times, and lasts over restarts, for the nodes stay.
It ends with a suspension, with the slice's work, or with the slice.
"""

from __future__ import annotations

import dataclasses
import datetime

from lora_dpo_operator.observed import Observed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hold:
    """The present stretch, and the length of those before.

    Attributes:
        since: when the present one began; None while no slice is held.
        before: seconds of the earlier ones.
    """

    since: datetime.datetime | None
    before: int

    def end_after(self, limit: int) -> datetime.datetime | None:
        """When the slice will have been held for so many seconds; None while it is not held."""
        return self.since + datetime.timedelta(seconds=limit - self.before) if self.since else None


def of(observed: Observed, now: datetime.datetime) -> Hold:
    """The hold as it is now.

    Args:
        observed: the job, with the hold that its status tells of.
        now: the clock, used only where no object tells when a stretch ended.
    """
    since, before = observed.status.held_since, observed.status.active_seconds or 0
    resumed = observed.resumed_at
    if since is not None:
        ended = _end(observed, since, resumed, now)
        if ended is None:
            return Hold(since=since, before=before)
        before += max(0, round((ended - since).total_seconds()))
    return Hold(since=_start(observed, resumed), before=before)


def _start(observed: Observed, resumed: datetime.datetime | None) -> datetime.datetime | None:
    jobset, whole = observed.jobset, observed.scheduled_whole_at
    if jobset is None or jobset.suspended or jobset.ended or whole is None:
        return None
    return max(whole, resumed) if resumed else whole


def _end(
    observed: Observed, since: datetime.datetime, resumed: datetime.datetime | None, now: datetime.datetime
) -> datetime.datetime | None:
    """When the stretch that began at `since` ended; None while it lasts."""
    jobset = observed.jobset
    if jobset is None:
        return now
    if jobset.ended:
        return jobset.ended.last_transition_time or now
    if jobset.suspended:
        suspended = jobset.condition("Suspended")
        at = suspended.last_transition_time if suspended and suspended.status == "True" else None
        return at if at and at > since else now
    if resumed and resumed > since:
        # Suspended and resumed while nobody looked: nothing is known of the time after the last report.
        return min(resumed, max(since, observed.status.last_progress_time or since))
    return None
