"""`ldj suspend`, `ldj resume` and `ldj retry`: what a user decides about a job that exists."""

from __future__ import annotations

import datetime

from ldj import options, saying, seen
from ldj.errors import RefusedError
from ldj.saying import printable
from lora_dpo_api.status import JobPhase
from lora_dpo_api.wire import RETRY_ANNOTATION


def suspend(
    job: options.Name,
    namespace: options.Namespace = None,
    context: options.Context = None,
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Give the slice back and keep the job: it saves a checkpoint, and `ldj resume` goes on from there.

    Exits with 1 where the job has finished already.
    """
    _set_suspend(True, job, namespace, context, kubeconfig)


def resume(
    job: options.Name,
    namespace: options.Namespace = None,
    context: options.Context = None,
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Let a suspended job go on from its last checkpoint.

    Exits with 1 where the job has finished already.
    """
    _set_suspend(False, job, namespace, context, kubeconfig)


def retry(
    job: options.Name,
    namespace: options.Namespace = None,
    context: options.Context = None,
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Try a failed job again, from its last checkpoint, once its cause is mended.

    Exits with 1 where the job hasn't failed.
    """
    door = options.connect(namespace, context, kubeconfig)
    found = seen.read(door.job(job))
    if found.phase is not JobPhase.FAILED:
        raise RefusedError(f"{job} is {found.phase.value}: only a job that has failed can be tried again.")
    asked = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    door.patch(job, {"metadata": {"annotations": {RETRY_ANNOTATION: asked}}})
    _done(f"{job} is tried again; `ldj status {job}` tells how it goes")


def _set_suspend(
    wanted: bool, job: str, namespace: str | None, context: str | None, kubeconfig: options.Kubeconfig
) -> None:
    door = options.connect(namespace, context, kubeconfig)
    found = seen.read(door.job(job))
    if found.phase.finished:
        again = " `ldj retry` tries it again." if found.phase is JobPhase.FAILED else ""
        raise RefusedError(f"{job} has finished ({found.phase.value}): there is nothing to suspend or resume.{again}")
    policy = found.spec.get("runPolicy")
    is_suspended = isinstance(policy, dict) and policy.get("suspend") is True
    word = "suspended" if wanted else "resumed"
    if is_suspended == wanted:
        _done(f"{job} is {'suspended' if wanted else 'not suspended'} already")
        return
    door.patch(job, {"spec": {"runPolicy": {"suspend": wanted}}})
    _done(f"{job} {word}; `ldj status {job}` tells how it goes")


def _done(text: str) -> None:
    saying.console(stderr=False).print(printable(text), markup=False)
