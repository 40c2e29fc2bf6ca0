"""The limits of a slice's time: how long it may wait, how long it may take to start, how long it may be held.

Each limit is a point in time that follows from the objects' own times, so that an operator that was away decides the
same as one that watched.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator

from lora_dpo_api import durations
from lora_dpo_api.protocol import Phase
from lora_dpo_api.spec_running import RunPolicy
from lora_dpo_api.status import Failure
from lora_dpo_operator import holding, waiting
from lora_dpo_operator.objects import JobSet
from lora_dpo_operator.observed import Accepted, Observed
from lora_dpo_operator.pods import Pod
from lora_dpo_operator.reasons import FailureClass, Reason

_CUT = datetime.timedelta(seconds=1)
"""Kubernetes cuts its times to the second: a limit that is counted from one of them comes up to so much early."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limit:
    """A limit that applies now.

    Attributes:
        due: when it is reached, as counted from the objects' own times.
        message: what will then have happened, in the past tense.
        pod: the host that the others wait for, where it is known.
    """

    reason: str
    due: datetime.datetime
    message: str
    hint: str
    pod: Pod | None = None

    @property
    def surely_due(self) -> datetime.datetime:
        """When it is reached for certain."""
        return self.due + _CUT


def limits(observed: Observed, now: datetime.datetime) -> tuple[Limit, ...]:
    """Every limit that applies to a job's slice at present."""
    verdict, jobset = observed.verdict, observed.jobset
    if not isinstance(verdict, Accepted) or jobset is None or jobset.ended or observed.trained:
        return ()
    if observed.settled or observed.retry_asked:
        return ()
    policy = verdict.spec.run_policy
    return (*_waiting(observed, jobset, policy), *_starting(observed, jobset, policy), *_held(observed, policy, now))


def failure(observed: Observed, now: datetime.datetime) -> Failure | None:
    """Why the job's patience has ended; None while it has not."""
    passed = [limit for limit in limits(observed, now) if limit.surely_due <= now]
    first = min(passed, key=lambda limit: limit.due, default=None)
    if first is None:
        return None
    return Failure(
        class_=FailureClass.DEADLINE,
        reason=first.reason,
        message=first.message[:1024],
        phase=Phase.TRAIN.value,
        pod=first.pod.metadata.name if first.pod else None,
        node=first.pod.spec.node_name if first.pod else None,
        hint=first.hint,
        time=first.due,
    )


def next_due(observed: Observed, now: datetime.datetime) -> datetime.datetime | None:
    """When a limit will be reached if nothing changes until then."""
    return min((limit.surely_due for limit in limits(observed, now)), default=None)


def _waiting(observed: Observed, jobset: JobSet, policy: RunPolicy) -> Iterator[Limit]:
    """`queueTimeout`: for quota, or until every host has its node."""
    if policy.queue_timeout is None or observed.scheduled_whole_at is not None:
        return
    since = observed.queued_since if jobset.suspended else observed.attempt_started_at
    if since is None:
        return
    yield Limit(
        reason=Reason.QUEUE_TIMEOUT,
        due=since + _length(policy.queue_timeout),
        message=f"The slice found no capacity within spec.runPolicy.queueTimeout ({policy.queue_timeout}). "
        f"Last seen: {waiting.slice_wait(observed).message}",
        hint="raise spec.runPolicy.queueTimeout, or ask for another slice or kind of capacity",
        pod=next((pod for pod in observed.slice_pods if pod.unschedulable), None),
    )


def _starting(observed: Observed, jobset: JobSet, policy: RunPolicy) -> Iterator[Limit]:
    """`startupTimeout`: until the first step, and for a gang of which a part holds its nodes for nothing."""
    limit = policy.startup_timeout
    if jobset.suspended or observed.training:
        return
    whole = observed.scheduled_whole_at
    if whole is None:
        times = [pod.scheduled_at for pod in observed.slice_pods if pod.scheduled_at is not None]
        waits = [pod for pod in observed.slice_pods if pod.unschedulable]
        if not times or not waits:
            return
        yield Limit(
            reason=Reason.STARTUP_TIMEOUT,
            due=max(min(times), observed.resumed_at or min(times)) + _length(limit),
            message=f"Only {len(times)} of {observed.hosts} hosts got a node within spec.runPolicy.startupTimeout "
            f"({limit}), and held it for nothing. Last seen: {waiting.slice_wait(observed).message}",
            hint="ask for fewer slices, or for capacity that comes whole (a queue, a reservation)",
            pod=waits[0],
        )
    elif _known_not_to_train(observed):
        problem = waiting.start_problem(observed)
        stuck = problem.pod if problem and problem.pod else observed.leader
        name = stuck.metadata.name if stuck else "rank 0"
        yield Limit(
            reason=Reason.STARTUP_TIMEOUT,
            due=max(whole, observed.resumed_at or whole) + _length(limit),
            message=f"All hosts had their nodes, but there was no first step within spec.runPolicy.startupTimeout "
            f"({limit}). Last seen: {waiting.starting(observed)}",
            hint=f"kubectl logs {name}; raise spec.runPolicy.startupTimeout where loading and compiling take so long",
            pod=stuck,
        )


def _held(observed: Observed, policy: RunPolicy, now: datetime.datetime) -> Iterator[Limit]:
    """`activeDeadline`: the time that the slice is held, pauses not counted."""
    due = holding.of(observed, now).end_after(durations.seconds(policy.active_deadline))
    if due is None:
        return
    status = observed.status
    done = f"{status.progress} steps are done" if status.progress else "no step is done"
    saved = f", the last checkpoint is of step {status.last_checkpoint.step}" if status.last_checkpoint else ""
    yield Limit(
        reason=Reason.DEADLINE_EXCEEDED,
        due=due,
        message=f"The slice was held for {policy.active_deadline}, as long as spec.runPolicy.activeDeadline allows; "
        f"{done}{saved}",
        hint="raise spec.runPolicy.activeDeadline",
        pod=observed.leader,
    )


def _known_not_to_train(observed: Observed) -> bool:
    """Whether the first step is known to be still to come.

    Where rank 0 cannot be reached (a NetworkPolicy), it may have trained for long: only `activeDeadline` ends that.
    """
    if any(not pod.alive for pod in observed.slice_pods):
        return True
    report = observed.poll.report
    return report is not None and report.attempt == observed.attempt and not observed.poll.unreachable


def _length(duration: str) -> datetime.timedelta:
    return datetime.timedelta(seconds=durations.seconds(duration))
