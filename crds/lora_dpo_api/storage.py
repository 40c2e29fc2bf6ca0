"""Where a job may read and write: buckets, or volumes that outlive its pods."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from lora_dpo_api.errors import Problem, parse
from lora_dpo_api.job import LoraDpoJobSpec

_LOST_WITH_THE_POD = ("emptyDir", "ephemeral")
_NOT_WRITABLE = ("configMap", "secret", "downwardAPI", "projected", "image", "gitRepo")


class _Mount(BaseModel):
    """The part of a Kubernetes VolumeMount that is read here."""

    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", frozen=True)

    name: str
    mount_path: str
    read_only: bool = False

    def holds(self, path: str) -> bool:
        root = self.mount_path.rstrip("/")
        return path == root or path.startswith(f"{root}/")


class _Volume(BaseModel):
    """The part of a Kubernetes Volume that is read here: its name, and which source it has."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @property
    def source(self) -> str:
        return next(iter(self.model_extra or {}), "emptyDir")


def problems(spec: LoraDpoJobSpec) -> tuple[Problem, ...]:
    """What is wrong with the absolute paths of a job: each must lie on a mounted volume, results on a lasting one.

    Raises:
        SpecError: a volume or a mount is not of Kubernetes' form.
    """
    mounts = _parsed(_Mount, spec.pod_template.volume_mounts, "spec.podTemplate.volumeMounts")
    volumes = {
        volume.name: volume for volume in _parsed(_Volume, spec.pod_template.volumes, "spec.podTemplate.volumes")
    }
    inputs = ((path, location, False) for path, location in _inputs(spec))
    outputs = [("spec.output.path", spec.output.path, True)]
    if spec.cache.path is not None:
        outputs.append(("spec.cache.path", spec.cache.path, True))
    found = (
        _problem(path, location, written, mounts, volumes)
        for path, location, written in (*outputs, *inputs)
        if location.startswith("/")
    )
    return tuple(problem for problem in found if problem is not None)


def _inputs(spec: LoraDpoJobSpec) -> Iterator[tuple[str, str]]:
    yield "spec.initializeFromHf", spec.initialize_from_hf
    if spec.data.tokenizer is not None:
        yield "spec.data.tokenizer", spec.data.tokenizer
    if spec.adapter.init_from is not None:
        yield "spec.adapter.initFrom", spec.adapter.init_from
    if spec.reference.adapter is not None:
        yield "spec.reference.adapter", spec.reference.adapter
    for name, component in spec.data.components.items():
        source = f"spec.data.components.{name}.source"
        for field, urls in (
            ("trainUrls", component.source.train_urls),
            ("validationUrls", component.source.validation_urls),
        ):
            for index, url in enumerate(urls):
                yield f"{source}.{field}[{index}]", url


def _problem(
    path: str, location: str, written: bool, mounts: Iterable[_Mount], volumes: Mapping[str, _Volume]
) -> Problem | None:
    mount = max(
        (mount for mount in mounts if mount.holds(location)), key=lambda mount: len(mount.mount_path), default=None
    )
    if mount is None or mount.name not in volumes:
        places = "a path on a volume of podTemplate.volumes and volumeMounts", "gs://…", "s3://…"
        return Problem(path, "is on no mounted volume", places, location)
    source = volumes[mount.name].source
    if not written:
        return None
    if source in _LOST_WITH_THE_POD:
        return Problem(path, f"is on a volume of type {source}, which is lost with its pod", _LASTING, location)
    if source in _NOT_WRITABLE or mount.read_only:
        return Problem(path, f"is on the volume {mount.name}, which is read-only", _LASTING, location)
    return None


_LASTING = ("persistentVolumeClaim", "gs://…", "s3://…")


def _parsed[M: BaseModel](model: type[M], items: tuple[dict[str, Any], ...], path: str) -> list[M]:
    return [parse(model, item, prefix=f"{path}[{index}]") for index, item in enumerate(items)]
