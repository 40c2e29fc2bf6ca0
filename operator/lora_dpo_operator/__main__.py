"""`python -m lora_dpo_operator`: kopf, the resync loop and the HTTP server in one process."""

from __future__ import annotations

import asyncio
import datetime
import logging
import os
import signal
import socket
import sys
import uuid

import kopf
from kubernetes.aio.config import ConfigException

from lora_dpo_operator import gateway, handlers, progress, server, settings, ui, webhook
from lora_dpo_operator.election import Election
from lora_dpo_operator.errors import LeadershipLostError, SettingsError
from lora_dpo_operator.metrics import Instruments
from lora_dpo_operator.resync import Resync
from lora_dpo_operator.service import Service
from lora_dpo_operator.settings import LogFormat, Settings

logger = logging.getLogger(__name__)


def now() -> datetime.datetime:
    """The clock."""
    return datetime.datetime.now(datetime.UTC)


async def run(chosen: Settings) -> None:
    """Run until stopped by a signal, or until a part of the operator ends.

    Raises:
        kubernetes.aio.config.ConfigException: there is no cluster to connect to.
        LeadershipLostError: another replica works now.
        OSError: a port is taken, or the webhook's certificate cannot be read.
    """
    stop = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    instruments = Instruments()
    door = await gateway.connect(observer=instruments.observe_call)
    service = Service(door, chosen, instruments, clock=now)
    session = progress.client()
    loop = Resync(service, session, now)
    election = _election(chosen, door)
    pages = ui.routes(service.snapshot, lambda: election.elsewhere if election else "") if chosen.ui else ()
    app = server.application(instruments.registry, _health(loop, election), pages)
    runner = await server.start(app, chosen.port)
    try:
        async with webhook.serving(chosen):
            if election is None or await election.acquire(stop):
                instruments.lead(service.snapshot, now)
                await _serve(chosen, service, loop, stop, election)
    finally:
        if election is not None:
            await election.release()
        await runner.cleanup()
        await session.close()
        await door.close()


def _election(chosen: Settings, door: gateway.Gateway) -> Election | None:
    if not chosen.lease:
        return None
    namespace, _, name = chosen.lease.partition("/")
    # A pod's name is its host name; a container that is restarted in it is another candidate.
    identity = f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"
    return Election(door, (namespace, name), identity, now)


def _health(loop: Resync, election: Election | None) -> server.Health:
    """Of the loop; of the election, where this replica stands by."""
    if election is None:
        return server.Health(alive=loop.alive, ready=loop.ready)
    return server.Health(
        alive=lambda: loop.alive() if election.leading else election.alive(),
        ready=lambda: loop.ready() if election.leading else election.ready(),
    )


async def _serve(
    chosen: Settings, service: Service, loop: Resync, stop: asyncio.Event, election: Election | None
) -> None:
    kopf_settings = kopf.OperatorSettings()
    handlers.configure(kopf_settings)
    tasks = await kopf.spawn_tasks(
        registry=kopf.get_default_registry(),
        settings=kopf_settings,
        memo=handlers.Dependencies(service),
        clusterwide=not chosen.namespaces,
        namespaces=list(chosen.namespaces),
        standalone=True,
        stop_flag=stop,
    )
    served = ", ".join(chosen.namespaces) or "all"
    logger.info("Operator started; namespaces: %s; port: %d", served, chosen.port)
    tasks = [*tasks, asyncio.create_task(loop.run(), name="resync")]
    if election is not None:
        tasks.append(asyncio.create_task(election.keep(), name="lease"))
    await kopf.run_tasks(tasks)
    logger.info("Operator stopped")


def main() -> int:
    """Entry point.

    Returns:
        0 after a signal; 2 for wrong settings; 1 where there is no cluster, a port is taken or another replica
        works now.
    """
    try:
        chosen = settings.parse(sys.argv[1:], os.environ)
    except SettingsError as error:
        print(f"lora-dpo-operator: {error}", file=sys.stderr)
        return 2
    kopf.configure(
        debug=chosen.log_level == "DEBUG",
        log_format=kopf.LogFormat.JSON if chosen.log_format is LogFormat.JSON else kopf.LogFormat.FULL,
        log_refkey="k8s",
    )
    logging.getLogger().setLevel(chosen.log_level)
    if chosen.log_level != "DEBUG":
        # A line for each event of each pod tells nobody anything.
        logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    try:
        asyncio.run(run(chosen))
    except (ConfigException, OSError) as error:
        logger.error("Cannot start: %s", error)
        return 1
    except LeadershipLostError as error:
        logger.error("Stopped: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
