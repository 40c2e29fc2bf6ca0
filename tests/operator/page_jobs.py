"""Statuses for the page, and a server that shows them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry

from lora_dpo_api.protocol import CurvePoint, Metrics
from lora_dpo_api.status import Failure, JobPhase, LoraDpoJobStatus, PhaseTime
from lora_dpo_operator import server, ui
from lora_dpo_operator.overview import Key

from .builders import at

Jobs = dict[Key, LoraDpoJobStatus]
EVIL = """<script>alert(1)</script>"'><img src=x onerror=alert(2)>&lt;{{7*7}}"""


def running(**fields: Any) -> LoraDpoJobStatus:
    """A job in the middle of its training."""
    base = {
        "phase": JobPhase.RUNNING,
        "step": 350,
        "total_steps": 2000,
        "eta": "1h12m",
        "message": "Training: step 350 of 2000.",
        "start_time": at(0),
        "timeline": [PhaseTime(phase=JobPhase.RUNNING, started=at(300))],
        "metrics": Metrics(loss=0.49, reward_margin=0.66, accuracy=0.775, tokens_per_second=182345.0),
        "curve": [
            CurvePoint(step=step, loss=0.7 - step / 2000, reward_margin=step / 500, accuracy=0.5 + step / 1000)
            for step in range(1, 352, 50)
        ],
    }
    return LoraDpoJobStatus.model_validate(base | fields)


def failed(**fields: Any) -> LoraDpoJobStatus:
    """A job whose data is wrong."""
    failure = Failure(class_="Data", reason="InvalidRow", message="Line 17.", hint="Mend it.", pod="p", exit_code=65)
    return LoraDpoJobStatus.model_validate({"phase": JobPhase.FAILED, "failure": failure} | fields)


def thousand() -> Jobs:
    """A thousand jobs, every third of which has failed."""
    return {
        ("team-a", f"job-{number:04}"): running(start_time=at(number)) if number % 3 else failed()
        for number in range(1000)
    }


@contextlib.asynccontextmanager
async def served(known: Jobs) -> AsyncIterator[TestServer]:
    """The operator's server, with the page."""
    health = server.Health(alive=lambda: True, ready=lambda: True)
    async with TestServer(server.application(CollectorRegistry(), health, ui.routes(lambda: known))) as made:
        yield made
