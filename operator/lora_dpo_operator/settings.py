"""The operator's settings: command line first, then environment, then defaults.

Every option `--some-thing` has an environment variable `LORADPO_SOME_THING`.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import json
from collections.abc import Mapping, Sequence
from typing import Any

from lora_dpo_operator.errors import SettingsError

ENV_PREFIX = "LORADPO_"


class LogFormat(enum.StrEnum):
    """How log lines look."""

    JSON = "json"
    TEXT = "text"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything about the operator that an administrator can choose."""

    namespaces: tuple[str, ...] = ()
    """Namespaces to serve; empty means all of them."""
    trainer_image: str = "lora-dpo-trainer:dev"
    """Image of prepare, slice and export, where a job names no other."""
    trainer_env: tuple[tuple[str, str], ...] = ()
    """Environment variables of every trainer pod, such as a proxy or a storage endpoint; a job's own win."""
    simulate_tpu: bool = False
    """Let TPU jobs run on CPU, on nodes that pose as TPU hosts; such jobs carry the condition Simulated."""
    progress_peers: tuple[Mapping[str, Any], ...] = ()
    """Who may read rank 0's progress: a JSON list of NetworkPolicyPeers, the operator's pod among them. Where it is
    given, each job gets a NetworkPolicy."""
    port: int = 8080
    """Port of /metrics, /healthz, /readyz and the page."""
    lease: str = ""
    """NAMESPACE/NAME of the Lease that replicas share, of which only the holder works; empty for a single one."""
    webhook_certificate: str = ""
    """Folder with tls.crt and tls.key of the admission webhook; empty for no webhook."""
    webhook_port: int = 10250
    """Port of the admission webhook."""
    ui: bool = False
    """Serve a read-only page of all jobs under /ui, to everyone who reaches the port."""
    resync_seconds: float = 300.0
    """Time between two readings of all jobs."""
    progress_seconds: float = 10.0
    """Shortest time between two readings of one job's progress."""
    progress_budget: float = 20.0
    """Readings of progress a second, over all jobs."""
    recheck_seconds: float = 5.0
    """Time between two looks at a job that waits for something no watch tells, such as a missing volume."""
    serving_seconds: float = 120.0
    """Time that rank 0 may take until it answers: a container that has just started is still importing."""
    stalled_seconds: float = 900.0
    """Time without a step after which a slice that trains is not healthy."""
    log_format: LogFormat = LogFormat.JSON
    """json for machines, text for people."""
    log_level: str = "INFO"
    """DEBUG, INFO, WARNING or ERROR."""


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Read the settings.

    Args:
        arguments: the command line, without the program's name.
        environment: the process's environment variables.

    Raises:
        SettingsError: a value is not what its option takes; the message names option and value.
    """

    def given(name: str) -> str:
        default = getattr(Settings(), name)
        return environment.get(ENV_PREFIX + name.upper(), _written(default))

    parser = argparse.ArgumentParser(prog="lora-dpo-operator", description="Runs LoraDpoJobs on TPU slices.")
    for field in dataclasses.fields(Settings):
        option = "--" + field.name.replace("_", "-")
        parser.add_argument(option, default=given(field.name), metavar=field.name.upper())
    values = vars(parser.parse_args(list(arguments)))
    return Settings(
        namespaces=tuple(part.strip() for part in values["namespaces"].split(",") if part.strip()),
        trainer_image=_text("trainer-image", values["trainer_image"]),
        trainer_env=_pairs(values["trainer_env"]),
        simulate_tpu=_flag("simulate-tpu", values["simulate_tpu"]),
        progress_peers=_peers(values["progress_peers"]),
        port=int(_number("port", values["port"], lowest=0)),
        lease=_lease(values["lease"]),
        webhook_certificate=values["webhook_certificate"].strip(),
        webhook_port=int(_number("webhook-port", values["webhook_port"], lowest=0)),
        ui=_flag("ui", values["ui"]),
        resync_seconds=_number("resync-seconds", values["resync_seconds"], lowest=0.1),
        progress_seconds=_number("progress-seconds", values["progress_seconds"], lowest=0.1),
        progress_budget=_number("progress-budget", values["progress_budget"], lowest=0.1),
        recheck_seconds=_number("recheck-seconds", values["recheck_seconds"], lowest=0.1),
        serving_seconds=_number("serving-seconds", values["serving_seconds"], lowest=0.1),
        stalled_seconds=_number("stalled-seconds", values["stalled_seconds"], lowest=0.1),
        log_format=_choice("log-format", values["log_format"], tuple(LogFormat)),
        log_level=_choice("log-level", values["log_level"].upper(), ("DEBUG", "INFO", "WARNING", "ERROR")),
    )


def _written(value: object) -> str:
    if isinstance(value, tuple):
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _text(option: str, value: str) -> str:
    if not value.strip():
        raise SettingsError(f"--{option}: must not be empty")
    return value.strip()


def _flag(option: str, value: str) -> bool:
    known = {"true": True, "false": False}
    if value.lower() not in known:
        raise SettingsError(f"--{option}: {value!r} is neither true nor false")
    return known[value.lower()]


def _number(option: str, value: str, *, lowest: float) -> float:
    try:
        number = float(value)
    except ValueError as error:
        raise SettingsError(f"--{option}: {value!r} is not a number") from error
    if number < lowest:
        raise SettingsError(f"--{option}: {value} is too small; it must be at least {lowest:g}")
    return number


def _choice[T: str](option: str, value: str, allowed: Sequence[T]) -> T:
    for choice in allowed:
        if choice == value:
            return choice
    raise SettingsError(f"--{option}: {value!r} is none of {', '.join(allowed)}")


def _lease(value: str) -> str:
    namespace, separator, name = value.partition("/")
    if value and not (namespace and separator and name and "/" not in name):
        raise SettingsError(f"--lease: {value!r} is not NAMESPACE/NAME")
    return value


def _pairs(value: str) -> tuple[tuple[str, str], ...]:
    """Pairs on lines of their own, where values may hold commas (NO_PROXY does), or on one line between commas."""
    pairs = []
    for part in filter(None, (text.strip() for text in value.split("\n" if "\n" in value else ","))):
        name, separator, content = part.partition("=")
        if not separator or not name:
            raise SettingsError(f"--trainer-env: {part!r} is not NAME=VALUE")
        pairs.append((name, content))
    return tuple(pairs)


def _peers(value: str) -> tuple[Mapping[str, Any], ...]:
    if not value.strip():
        return ()
    try:
        peers = json.loads(value)
    except ValueError as error:
        raise SettingsError(f"--progress-peers: {value!r} is not JSON: {error}") from error
    if not isinstance(peers, list) or not all(isinstance(peer, dict) and peer for peer in peers):
        raise SettingsError(f"--progress-peers: {value!r} is not a list of NetworkPolicyPeers")
    return tuple(peers)
