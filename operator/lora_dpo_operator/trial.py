"""`python -m lora_dpo_operator.trial FILE`: one job from its manifest to its end, told on the way.

It is what `helm test` does. The job of an earlier trial is removed first, and this one once it has succeeded; one that
failed stays, to be looked at.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kubernetes.aio.config import ConfigException

from lora_dpo_api import yaml12
from lora_dpo_api.job import LoraDpoJob
from lora_dpo_api.status import ConditionType, JobPhase, LoraDpoJobStatus
from lora_dpo_operator import failures, gateway
from lora_dpo_operator.errors import GatewayError, TrialError, UnavailableError
from lora_dpo_operator.gateway import LORA_DPO_JOBS, Gateway

Tell = Callable[[str], object]


async def run(door: Gateway, manifest: dict[str, Any], tell: Tell, *, interval: float = 1.0) -> None:
    """Run the job.

    Args:
        door: the cluster.
        manifest: the job, with its namespace.
        tell: is given every new sentence.
        interval: seconds between two looks.

    Raises:
        TrialError: the job was refused, failed, or was deleted by somebody else.
        GatewayError: the API server refuses something.
    """
    namespace, name = manifest["metadata"]["namespace"], manifest["metadata"]["name"]
    await _remove(door, namespace, name, interval)
    await door.create(LORA_DPO_JOBS, manifest)
    told = ""
    while True:
        status = await _status(door, namespace, name)
        sentence = said(status)
        if sentence != told:
            tell(sentence)
            told = sentence
        if problem := wrong(status):
            raise TrialError(f"{problem}\nSee: kubectl --namespace {namespace} describe ldj {name}")
        if status.phase is JobPhase.SUCCEEDED:
            break
        await asyncio.sleep(interval)
    await _remove(door, namespace, name, interval)


def said(status: LoraDpoJobStatus) -> str:
    """Where the job is, in a sentence."""
    phase = (status.phase or JobPhase.PENDING).value
    return f"{phase}: {status.message}" if status.message else phase


def wrong(status: LoraDpoJobStatus) -> str | None:
    """Why the job will never succeed; None while it may."""
    accepted = status.condition(ConditionType.ACCEPTED)
    if accepted is not None and accepted.status == "False":
        return f"The operator does not take the job: {accepted.message}"
    if status.phase is not JobPhase.FAILED:
        return None
    failure = status.failure
    if failure is None:
        return f"The job failed: {status.message}"
    return f"The job failed, {failure.class_}/{failure.reason}: {failures.sentence(failure)}"


async def _status(door: Gateway, namespace: str, name: str) -> LoraDpoJobStatus:
    try:
        body = await door.get(LORA_DPO_JOBS, namespace, name)
    except UnavailableError as error:
        return LoraDpoJobStatus(message=f"the API server does not answer: {error}")
    if body is None:
        raise TrialError(f"The job {namespace}/{name} was deleted by somebody else.")
    return LoraDpoJob.from_body(body).status


async def _remove(door: Gateway, namespace: str, name: str, interval: float) -> None:
    """Delete the job, and wait until it is gone with its pods: they hold the volume that it wrote to."""
    while await door.get(LORA_DPO_JOBS, namespace, name) is not None:
        await door.delete(LORA_DPO_JOBS, namespace, name, foreground=True)
        await asyncio.sleep(interval)


async def _main(manifest: dict[str, Any]) -> None:
    door = await gateway.connect()
    try:
        await run(door, manifest, print)
    finally:
        await door.close()


def main(argv: list[str]) -> int:
    """Entry point.

    Returns:
        0 where the job succeeded, 1 where it did not, 2 for a wrong command line.
    """
    if len(argv) != 1:
        print("usage: python -m lora_dpo_operator.trial FILE", file=sys.stderr)
        return 2
    try:
        asyncio.run(_main(yaml12.loads(Path(argv[0]).read_text())))
    except (TrialError, GatewayError, ConfigException, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
