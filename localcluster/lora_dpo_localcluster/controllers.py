"""Other people's controllers on a cluster without a registry: an image made of a program, certificates made by us."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ruamel.yaml

from lora_dpo_localcluster import errors, locks, oci, pki, state
from lora_dpo_localcluster.image import Image
from lora_dpo_localcluster.provider import Cluster

Manifest = dict[str, Any]


def image(folder: Path, program: str) -> Image:
    """The image of one static program, which is there as `/manager`; made on the first call.

    Args:
        folder: where the program was built; its name ends with the hash of what it was built from.
        program: the program's name in it.
    """
    module, _, key = folder.name.rpartition("-")
    target = state.cache_folder() / "images" / f"{folder.name}.tar"
    name = f"localhost/{module}:{key}"
    with locks.locked(target.with_suffix(".lock")):
        if not target.is_file():
            part = target.with_suffix(".part")
            oci.write_archive(part, name, [("manager", (folder / program).read_bytes())], ["/manager"])
            part.rename(target)
    return Image(name, archive=target)


def certificate(host: str) -> dict[str, str]:
    """The data of a Secret with a fresh certificate for a webhook server, and its authority's."""
    with tempfile.TemporaryDirectory() as scratch:
        authority = pki.Authority.create(Path(scratch))
        server = authority.issue("server", host, hosts=(host,))
        files = {"tls.crt": server.certificate, "tls.key": server.key, "ca.crt": authority.certificate_file}
        return {name: base64.b64encode(file.read_bytes()).decode() for name, file in files.items()}


def trusting(item: Manifest, bundle: str, namespace: str, kept: Sequence[str] | None = None) -> Manifest:
    """A webhook configuration that trusts an authority.

    Args:
        item: the configuration.
        bundle: the authority's certificate, in base64.
        namespace: of the service.
        kept: names of the webhooks to keep; all where None.
    """
    hooks = [
        {
            **hook,
            "clientConfig": {
                **hook["clientConfig"],
                "service": {**hook["clientConfig"]["service"], "namespace": namespace},
                "caBundle": bundle,
            },
        }
        for hook in item["webhooks"]
        if kept is None or hook["name"] in kept
    ]
    return {**item, "webhooks": hooks}


def documents(source: str) -> list[Manifest]:
    """The objects of a YAML stream."""
    reader = ruamel.yaml.YAML(typ="safe")
    return [dict(document) for document in reader.load_all(io.StringIO(source)) if document]


def listed(items: Sequence[Mapping[str, Any]]) -> str:
    """Objects as one, for kubectl's standard input."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})


def kubectl(cluster: Cluster, *argv: str, stdin: str | None = None) -> str:
    """What kubectl prints.

    Raises:
        CommandError: it ended with an error.
    """
    answer: subprocess.CompletedProcess[str] = cluster.run([str(cluster.kubectl), *argv], input=stdin, timeout=300)
    if answer.returncode != 0:
        raise errors.CommandError(f"kubectl {' '.join(argv[:4])} failed: {answer.stderr.strip()[-1500:]}")
    return answer.stdout
