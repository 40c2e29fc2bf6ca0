"""The clusters of this machine: opens one by its name, with the provider that works here."""

from __future__ import annotations

import os

from lora_dpo_localcluster import errors, kind_provider, state
from lora_dpo_localcluster.kind_provider import KindCluster
from lora_dpo_localcluster.provider import Cluster
from lora_dpo_localcluster.source_provider import SourceCluster

DEFAULT = "ldj"


def open_cluster(name: str = DEFAULT) -> Cluster:
    """The cluster of this name, up or not.

    `LDJ_PROVIDER` (`kind` or `source`) decides what it is made of; else kind where a Docker engine answers.

    Raises:
        InvalidNameError: the name can't be used.
        LocalClusterError: an unknown provider.
    """
    paths = state.cluster_paths(name)
    match os.environ.get("LDJ_PROVIDER") or ("kind" if kind_provider.engine_answers() else "source"):
        case "kind":
            return KindCluster(paths)
        case "source":
            return SourceCluster(paths)
        case other:
            raise errors.LocalClusterError(f"LDJ_PROVIDER is {other!r}; it can be kind or source.")
