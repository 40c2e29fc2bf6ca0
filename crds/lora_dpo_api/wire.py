"""What every model of the API is built from: the base class and the bounded types.

Every string, list and map has a bound. The API server estimates the cost of a CEL rule from them and refuses a CRD
whose rules could get too dear, and a bounded object cannot fill etcd.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

GROUP = "training.loradpo.dev"
VERSION = "v1alpha1"
KIND = "LoraDpoJob"
PLURAL = "loradpojobs"
SINGULAR = "loradpojob"
SHORT_NAME = "ldj"
API_VERSION = f"{GROUP}/{VERSION}"

NAME_LIMIT = 45
"""A job's name is a prefix of its pods' names, and a host name has at most 63 characters."""

DNS_LABEL = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
"""DNS-1035, as services and host names need it."""

DNS_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"

Location = Annotated[str, Field(min_length=1, max_length=1024)]
"""A URL or an absolute path."""

Label = Annotated[str, Field(min_length=1, max_length=63, pattern=DNS_LABEL)]
ObjectName = Annotated[str, Field(min_length=1, max_length=253, pattern=DNS_SUBDOMAIN)]
"""Name of a Kubernetes object."""

KeyName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
"""Key in a Secret or ConfigMap, which is an environment variable's name here."""

FieldName = Annotated[str, Field(min_length=1, max_length=128)]
"""Name of a field in a data row."""

ModuleName = Annotated[str, Field(min_length=1, max_length=128)]
"""Name of a module of the model, or a regular expression over them."""

ComponentName = Annotated[str, Field(min_length=1, max_length=64)]
MetadataKey = Annotated[str, Field(min_length=1, max_length=317)]
MetadataValue = Annotated[str, Field(max_length=1024)]
StringMap = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=64)]
"""Labels, annotations, node selectors."""

KubernetesObject = Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]
"""A Kubernetes type that passes through unread; the API server checks it when the pods are built."""


class Wire(BaseModel):
    """Base of the spec's models: camelCase on the wire, frozen, strict about unknown fields.

    Absent means default. `None` never appears on the wire: a structural schema has no nulls.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
    )

    def to_wire(self) -> dict[str, Any]:
        """The JSON form with only what was set."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
