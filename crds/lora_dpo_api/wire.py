"""What every model of the API is built from: the base class and the bounded types.

Every string, list and map has a bound. The API server estimates the cost of a CEL rule from them and refuses a CRD
whose rules could get too dear, and a bounded object cannot fill etcd.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from lora_dpo_api.errors import ABSENT, RULE

GROUP = "training.loradpo.dev"
VERSION = "v1alpha1"
KIND = "LoraDpoJob"
PLURAL = "loradpojobs"
SINGULAR = "loradpojob"
SHORT_NAME = "ldj"
API_VERSION = f"{GROUP}/{VERSION}"

RETRY_ANNOTATION = f"{GROUP}/retry"
"""Set to a new value, it starts a failed job again where it stopped."""

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

Url = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^([a-z][a-z0-9+.-]*://|/).+")]
"""A URL with its scheme, or an absolute path; globs allowed."""

STORAGE = r"^((gs|s3)://[a-z0-9]([-a-z0-9._]*[a-z0-9])?/.+|/.+)$"
"""Where results may go: a folder in a bucket, or a path on a mounted volume."""

ComponentName = Annotated[str, Field(min_length=1, max_length=64)]
MetadataKey = Annotated[str, Field(min_length=1, max_length=317)]
MetadataValue = Annotated[str, Field(max_length=1024)]
StringMap = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=64)]
"""Labels, annotations, node selectors."""

KubernetesObject = Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]
"""A Kubernetes type that passes through unread; the API server checks it when the pods are built."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule about several fields of an object, said once for the API server and once for this program.

    Attributes:
        cel: the rule as a CEL expression over `self`.
        message: what is allowed, for the user.
        path: the field that the message is about, such as `.topology`; empty for the object itself.
        is_text: whether the field is a string, which the API server can quote (a number's text has no bounded cost).
        holds: the same rule in Python; absent for rules about a change, which only the API server can see.
    """

    cel: str
    message: str
    path: str = ""
    holds: Callable[[Any], bool] | None = None
    is_text: bool = False

    @property
    def schema(self) -> dict[str, str]:
        """The entry of `x-kubernetes-validations`."""
        entry = {"rule": self.cel, "message": self.message}
        if self.is_text:
            entry["messageExpression"] = f"self{self.path} + ' {self.message}'"
        return entry | ({"fieldPath": self.path} if self.path else {})

    @property
    def about_value(self) -> bool:
        """Whether the message goes on from the value: `memory://x must be …`."""
        return self.message.startswith("must ")


class Ruled(BaseModel):
    """A model with rules about several of its fields."""

    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _follow_rules(self) -> Self:
        broken = [rule for rule in self.rules if rule.holds is not None and not rule.holds(self)]
        if broken:
            problems = tuple((rule.path.removeprefix("."), rule.message, self._value_for(rule)) for rule in broken)
            raise PydanticCustomError(RULE, "breaks a rule", {"problems": problems})
        return self

    def _value_for(self, rule: Rule) -> object:
        """The value at a rule's path, where it is one value and the message is about it."""
        if not rule.about_value:
            return ABSENT
        here: object = self
        for part in rule.path.split("."):
            if part and isinstance(here, BaseModel):
                names = (name for name, field in type(here).model_fields.items() if part in (name, field.alias))
                here = getattr(here, next(names))
        return ABSENT if here is None or isinstance(here, BaseModel | dict | tuple) else here

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The schema with the rules, as the API server takes them."""
        schema = handler.resolve_ref_schema(handler(core))
        if cls.rules:
            schema["x-kubernetes-validations"] = [rule.schema for rule in cls.rules]
        return schema


class Wire(Ruled):
    """Base of the spec's models: camelCase on the wire, frozen, strict about unknown fields.

    Absent means default. `None` never appears on the wire: a structural schema has no nulls.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    def to_wire(self) -> dict[str, Any]:
        """The JSON form with only what was set."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
