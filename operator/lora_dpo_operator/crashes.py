"""Crashes of the slice, attempt by attempt: a trainer that never gets further is stopped before its restarts are.

The record is keyed by attempt, so that seeing the same end twice changes nothing. Preemptions are nobody's crash, and
a bucket that does not answer may come back: neither is on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lora_dpo_api.protocol import ExitCode
from lora_dpo_api.status import CRASHES_LIMIT, Crash
from lora_dpo_operator.observed import Observed
from lora_dpo_operator.terminations import first_failure

LOOP = 3
"""Crashes in a row without progress that make a loop."""


def record(observed: Observed) -> list[Crash]:
    """The crashes so far, the present attempt's among them if it has crashed."""
    known = [crash for crash in observed.status.crashes if crash.attempt <= observed.attempt]
    end = first_failure(observed.slice_ends)
    taken = any(peer.preempted for peer in observed.slice_ends)
    if end is None or taken or end.exit_code == ExitCode.UNREACHABLE:
        return known
    said = end.report.progress if end.report else None
    progress = said or observed.progress
    here = progress if progress is not None and progress.attempt == observed.attempt else None
    checkpoint = (here.last_checkpoint if here else None) or observed.status.last_checkpoint
    crash = Crash(
        attempt=observed.attempt,
        step=here.step if here else None,
        checkpoint_step=checkpoint.step if checkpoint else None,
        exit_code=end.exit_code,
        time=end.finished_at,
    )
    return [*(entry for entry in known if entry.attempt != crash.attempt), crash][-CRASHES_LIMIT:]


def in_a_loop(crashes: Sequence[Crash], unseen: int = 0) -> bool:
    """Whether the last attempts all crashed, and none got further than the first of them.

    Args:
        crashes: the record.
        unseen: steps that an attempt may have done since its progress was last read.
    """
    last = crashes[-LOOP:]
    if len(last) < LOOP or [crash.attempt for crash in last] != list(range(last[0].attempt, last[0].attempt + LOOP)):
        return False
    return all(_no_further(last[0], later, unseen) for later in last[1:])


def unseen(observed: Observed) -> int:
    """Steps that may have been done between the last reading of the progress and a crash that left no report."""
    end, report = first_failure(observed.slice_ends), observed.poll.report
    if end is None or end.report is not None or report is None or not report.eta_seconds:
        return 0
    since = (end.finished_at - report.updated_at).total_seconds() if end.finished_at else 0.0
    seconds = max(since, observed.settings.progress_seconds)
    # Of what is left no more than all of it, whatever rank 0 says.
    share = min(1.0, max(0.0, seconds / report.eta_seconds))
    return math.ceil(share * (report.total_steps - report.step))


def furthest(crashes: Sequence[Crash]) -> int:
    """The last step that any of the looping attempts was seen to do."""
    return max((crash.step or 0) for crash in crashes[-LOOP:])


def _no_further(before: Crash, after: Crash, unseen: int) -> bool:
    saved = (after.checkpoint_step or 0) > (before.checkpoint_step or 0)
    return not saved and (after.step or 0) <= (before.step or 0) + unseen
