"""What the API server and the operator use, by their own metrics."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
from collections.abc import AsyncIterator

from benchmarks.operator.api import Api

SERVICE = "/api/v1/namespaces/lora-dpo-system/services/lora-dpo-operator:http/proxy/metrics"
CPU = "process_cpu_seconds_total"
_API_SERVER = re.compile(rf"^{CPU} (\S+)$", re.MULTILINE)
_SAMPLE = re.compile(r"^loradpo_operator_(\w+(?:\{(?:phase|result)=[^}]*\})?) (\S+)$", re.MULTILINE)
"""Of the operator itself: those of single jobs have more labels."""


@dataclasses.dataclass
class Usage:
    """Seconds of processor time that something took.

    Attributes:
        api_server: the API server's.
        operator: the operator's.
    """

    api_server: float = 0.0
    operator: float = 0.0


async def operator(api: Api) -> dict[str, float]:
    """The operator's own numbers; empty while it does not answer."""
    return {name: float(value) for name, value in _SAMPLE.findall(await api.text(SERVICE))}


async def api_server(api: Api) -> float:
    """Seconds of processor time that the API server has taken so far."""
    return float(_API_SERVER.findall(await api.text("/metrics"))[0])


@contextlib.asynccontextmanager
async def measured(api: Api) -> AsyncIterator[Usage]:
    """What both use meanwhile; known at the end."""
    used = Usage()
    served, worked = await asyncio.gather(api_server(api), operator(api))
    yield used
    served_after, worked_after = await asyncio.gather(api_server(api), operator(api))
    used.api_server = served_after - served
    used.operator = worked_after[CPU] - worked[CPU]
