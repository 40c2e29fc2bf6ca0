"""A LoraDpoJob as the cluster shows it, read leniently: its spec may be newer than this program."""

from __future__ import annotations

import dataclasses
from typing import Any

from pydantic import ValidationError

from lora_dpo_api.job import Metadata
from lora_dpo_api.status import JobPhase, LoraDpoJobStatus


@dataclasses.dataclass(frozen=True, slots=True)
class SeenJob:
    """A job and its status.

    Attributes:
        spec: as it is stored.
        readable: whether this program knows the form of the status.
    """

    metadata: Metadata
    spec: dict[str, Any]
    status: LoraDpoJobStatus
    readable: bool = True

    @property
    def phase(self) -> JobPhase:
        """Where it is; Pending until the operator has said something."""
        return self.status.phase or JobPhase.PENDING

    @property
    def name(self) -> str:
        """Its name."""
        return self.metadata.name

    @property
    def output_path(self) -> str:
        """Where its results go."""
        output = self.spec.get("output")
        return str(output.get("path", "")).rstrip("/") if isinstance(output, dict) else ""


def read(manifest: dict[str, Any]) -> SeenJob:
    """Read what the API server answered."""
    metadata, spec = Metadata.model_validate(manifest["metadata"]), dict(manifest.get("spec") or {})
    try:
        status = LoraDpoJobStatus.model_validate(manifest.get("status") or {})
    except ValidationError:
        return SeenJob(metadata, spec, LoraDpoJobStatus(), readable=False)
    return SeenJob(metadata, spec, status)


def plain(manifest: dict[str, Any]) -> dict[str, Any]:
    """The object for programs, without the API server's book-keeping."""
    metadata = {key: value for key, value in manifest["metadata"].items() if key != "managedFields"}
    return {**manifest, "metadata": metadata}
