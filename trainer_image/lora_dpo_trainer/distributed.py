"""The processes and devices of one slice: who starts, who leads, and whether the machine is what was asked for."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from lora_dpo_api import protocol
from lora_dpo_api.protocol import Environment
from lora_dpo_trainer import errors

INITIALIZATION_SECONDS = 300
SHUTDOWN_SECONDS = 60
HEARTBEAT_SECONDS = 60


@dataclasses.dataclass(frozen=True)
class Placement:
    """What the operator asked for, from the environment.

    Attributes:
        platform: `tpu` or `cpu`; None outside Kubernetes, where any will do.
        devices: JAX devices of all processes together; None when unknown.
        slices: Number of slices.
        hosts: Hosts a slice.
        slice_index: This slice.
        host_index: This host in its slice.
        coordinator: host:port of the JAX coordinator; CPU only.
        attempt: Restarts before this one.
    """

    platform: str | None = None
    devices: int | None = None
    slices: int = 1
    hosts: int = 1
    slice_index: int = 0
    host_index: int = 0
    coordinator: str | None = None
    attempt: int = 0

    @property
    def processes(self) -> int:
        """Processes of the whole gang."""
        return self.slices * self.hosts

    @property
    def process_id(self) -> int:
        """This process among them."""
        return self.slice_index * self.hosts + self.host_index

    @classmethod
    def from_environment(cls) -> Placement:
        """Read `protocol.Environment`.

        Raises:
            WrongEnvironment: a number is none, or several CPU hosts have no coordinator.
        """
        placement = cls(
            platform=os.environ.get(Environment.PLATFORM) or None,
            devices=_number(Environment.DEVICES, None),
            slices=_number(Environment.SLICES, 1) or 1,
            hosts=_number(Environment.HOSTS, 1) or 1,
            slice_index=_number(Environment.SLICE_INDEX, 0) or 0,
            host_index=_number("JOB_COMPLETION_INDEX", 0) or 0,
            coordinator=os.environ.get(Environment.COORDINATOR) or None,
            attempt=_number(Environment.RESTART_ATTEMPT, 0) or 0,
        )
        if placement.processes > 1 and placement.platform != "tpu" and placement.coordinator is None:
            raise errors.WrongEnvironment(
                f"There are {placement.processes} processes and no {Environment.COORDINATOR.value}.",
                hint=f"Set it to host:{protocol.COORDINATOR_PORT} of host 0 in slice 0.",
            )
        return placement


def start(placement: Placement) -> None:
    """Join the gang and check its devices; must come before anything else asks JAX for a device.

    Raises:
        WrongEnvironment: another platform, or another number of devices than asked for.
        Unreachable: the other hosts did not come in time.
    """
    import jax

    # Without a chip libtpu searches for one for half a minute before it gives up.
    wants_cpu = placement.platform == "cpu" or (placement.platform is None and not _has_tpu())
    if wants_cpu and "JAX_PLATFORMS" not in os.environ:
        jax.config.update("jax_platforms", "cpu")
    if placement.processes > 1:
        _join(placement)
    try:
        found, count = jax.default_backend(), jax.device_count()
    except RuntimeError as error:
        raise errors.WrongEnvironment(
            f"JAX finds no device: {str(error).splitlines()[0][:300]}.",
            hint="Check that the pod runs on a TPU node and requests google.com/tpu.",
        ) from error
    if placement.platform is not None and found != placement.platform:
        raise errors.WrongEnvironment(
            f"This job needs {placement.platform} devices, but JAX finds {found}.",
            hint="Check the node selector and the google.com/tpu request, or set trainer.simulateTpu to try it on CPU.",
        )
    if placement.platform == "tpu" and placement.devices is not None and count != placement.devices:
        raise errors.WrongEnvironment(
            f"This job needs {placement.devices} devices, but JAX finds {count}.",
            hint="Check spec.tpu.topology against the node pool's.",
        )


def stop(placement: Placement) -> None:
    """Leave the gang together: whoever ends first must not take the others' last save with it."""
    import jax

    if placement.processes > 1:
        jax.distributed.shutdown()


def _join(placement: Placement) -> None:
    import jax

    timeouts = {
        "initialization_timeout": INITIALIZATION_SECONDS,
        "heartbeat_timeout_seconds": HEARTBEAT_SECONDS,
        "shutdown_timeout_seconds": SHUTDOWN_SECONDS,
    }
    try:
        if placement.platform == "tpu":
            jax.distributed.initialize(**timeouts)
        else:
            # "deactivate": cluster detection would ask a Kubernetes API that this pod has no token for.
            jax.distributed.initialize(
                placement.coordinator,
                placement.processes,
                placement.process_id,
                cluster_detection_method="deactivate",
                **timeouts,
            )
    except RuntimeError as error:
        raise errors.Unreachable(
            f"The {placement.processes} hosts did not come together within {INITIALIZATION_SECONDS} s: "
            f"{str(error).splitlines()[0][:300]}.",
            hint="Look for a host whose pod is pending or failing; the job restarts the whole gang.",
        ) from error


def _has_tpu() -> bool:
    return any(any(Path("/dev").glob(pattern)) for pattern in ("accel*", "vfio/[0-9]*"))


def _number(name: str, default: int | None) -> int | None:
    text = os.environ.get(name)
    if not text:
        return default
    try:
        return int(text)
    except ValueError as error:
        raise errors.WrongEnvironment(f"The environment variable {name} is {text!r}, not a number.") from error
