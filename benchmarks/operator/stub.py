"""Poses as rank 0 of every pod: answers `/status` under all addresses of the posed pods at once.

A process of the cluster's network, where those addresses are local. Which run a request asks for follows from the
address that it was sent to, as a watch on the pods tells.
"""

from __future__ import annotations

import asyncio
import datetime
import sys
import time
from pathlib import Path

from aiohttp import web

from benchmarks.operator import api, burst
from benchmarks.operator.api import Object
from lora_dpo_api.protocol import PROGRESS_PORT, Metrics, ProgressReport, TrainerState
from lora_dpo_operator import names

_TOTAL = 1_000_000
_PODS = f"/api/v1/namespaces/{burst.NAMESPACE}/pods{burst.OURS}"


async def serve(kubeconfig: Path) -> None:
    """Answer until ended."""
    runs: dict[str, str] = {}
    began, since = time.monotonic(), datetime.datetime.now(datetime.UTC)

    def see(pod: Object, _: float) -> None:
        address = pod.get("status", {}).get("podIP")
        if address:
            runs[address] = f"{burst.NAMESPACE}/{pod['metadata']['labels'][names.JOB_LABEL]}"

    async def status(request: web.Request) -> web.Response:
        assert request.transport is not None
        run = runs.get(request.transport.get_extra_info("sockname")[0])
        if run is None:
            return web.Response(status=404)
        step = 1 + int(time.monotonic() - began)
        report = ProgressReport(
            run_id=run,
            state=TrainerState.TRAINING,
            state_since=since,
            updated_at=datetime.datetime.now(datetime.UTC),
            step=step,
            total_steps=_TOTAL,
            eta_seconds=float(_TOTAL - step),
            metrics=Metrics(loss=0.6931 / step**0.1, accuracy=0.5, reward_margin=0.01 * step, tokens_per_second=1e5),
        )
        return web.Response(text=report.model_dump_json(by_alias=True), content_type="application/json")

    app = web.Application()
    app.router.add_get("/status", status)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "0.0.0.0", PROGRESS_PORT).start()
    async with api.connect(kubeconfig) as door:
        await door.watch(_PODS, see)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
