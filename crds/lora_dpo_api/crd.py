"""Generates the CustomResourceDefinition from the models: `python -m lora_dpo_api.crd > crds/loradpojobs.yaml`.

A structural schema has no `$ref`, no `anyOf` with null, and OpenAPI 3.0's exclusive bounds; pydantic writes JSON Schema
2020-12. `kube-custom-resource` bridges this too, but has its own base classes and no rules over several fields (CEL),
so the bridge is here, in one small function.
"""

from __future__ import annotations

import sys
from typing import Any

from pydantic import BaseModel

from lora_dpo_api import wire, yaml12
from lora_dpo_api.job import LoraDpoJob, LoraDpoJobSpec
from lora_dpo_api.status import LoraDpoJobStatus

Schema = dict[str, Any]

LIMIT = 200 * 1024
"""Bytes of YAML. Plain `kubectl apply` keeps a copy of the object in an annotation, which holds 256 KiB."""

COLUMNS = (
    ("Phase", "string", ".status.phase", 0, "Where the job is."),
    ("Step", "string", ".status.progress", 0, "Steps done, of all."),
    ("Loss", "number", ".status.metrics.loss", 0, "DPO loss; ln 2 = 0.6931 at step 0."),
    ("Margin", "number", ".status.metrics.rewardMargin", 0, "Chosen reward less rejected reward."),
    ("Acc", "number", ".status.metrics.accuracy", 0, "Share of pairs whose chosen reward is the higher one."),
    ("ETA", "string", ".status.eta", 0, "Time left."),
    ("Age", "date", ".metadata.creationTimestamp", 0, "Time since the job was made."),
    ("Slice", "string", ".status.slice.description", 1, "Machines."),
    ("Restarts", "integer", ".status.restarts", 1, "Restarts after crashes."),
    ("Message", "string", ".status.message", 1, "The present state in a sentence."),
)

_KEPT = frozenset(
    {
        "additionalProperties",
        "description",
        "enum",
        "exclusiveMaximum",
        "exclusiveMinimum",
        "format",
        "items",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minItems",
        "minLength",
        "minProperties",
        "minimum",
        "pattern",
        "properties",
        "required",
        "type",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-list-type",
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-validations",
    }
)


def structural(schema: Schema, definitions: Schema | None = None) -> Schema:
    """A structural schema that says the same as pydantic's.

    Args:
        schema: JSON Schema 2020-12 as pydantic writes it.
        definitions: its `$defs`; taken from the schema itself when absent.

    Raises:
        ValueError: the schema has a union, which no structural schema can say.
    """
    known = schema.get("$defs", {}) if definitions is None else definitions
    if "$ref" in schema:
        target = known[schema["$ref"].removeprefix("#/$defs/")]
        return structural(target | {key: value for key, value in schema.items() if key != "$ref"}, known)
    if "anyOf" in schema:
        options = [option for option in schema["anyOf"] if option.get("type") != "null"]
        if len(options) != 1:
            raise ValueError(f"a structural schema has no unions: {schema}")
        rest = {key: value for key, value in schema.items() if key != "anyOf"}
        return structural(options[0] | rest, known)

    result: Schema = {key: value for key, value in schema.items() if key in _KEPT}
    if "const" in schema:
        result["enum"] = [schema["const"]]
    if "description" in result:
        result["description"] = " ".join(result["description"].split())
    for bound, plain in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if bound in result:
            # The API server compares a whole number with the bound cut to a whole number: 0 would not be below 0.5.
            if result[bound] != int(result[bound]):
                raise ValueError(f"an exclusive bound must be a whole number: {schema}")
            result |= {plain: result[bound], bound: True}
    if result.get("type") == "integer":
        result["format"] = "int64"
    if "properties" in schema:
        result["properties"] = {name: structural(child, known) for name, child in schema["properties"].items()}
        # A structural schema has either properties or additionalProperties; unknown fields are pruned anyway.
        result.pop("additionalProperties", None)
    values = result.get("additionalProperties")
    if isinstance(values, dict):
        result["additionalProperties"] = structural(values, known)
    elif values is not None:
        del result["additionalProperties"]
    if "items" in schema:
        result["items"] = structural(schema["items"], known)
    return result


def _of(model: type[BaseModel]) -> Schema:
    return structural(model.model_json_schema(by_alias=True))


def schema() -> Schema:
    """The structural schema of a LoraDpoJob."""
    return {
        "type": "object",
        "description": "A LoRA-DPO run: the policy is the base model with an adapter, the reference is the base model "
        "without it.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": wire.API_VERSION},
            "kind": {"type": "string", "description": wire.KIND},
            "metadata": {"type": "object"},
            "spec": _of(LoraDpoJobSpec),
            "status": _of(LoraDpoJobStatus),
        },
        "x-kubernetes-validations": [rule.schema for rule in LoraDpoJob.rules],
    }


def definition() -> Schema:
    """The whole CustomResourceDefinition."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{wire.PLURAL}.{wire.GROUP}"},
        "spec": {
            "group": wire.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": wire.KIND,
                "listKind": f"{wire.KIND}List",
                "plural": wire.PLURAL,
                "singular": wire.SINGULAR,
                "shortNames": [wire.SHORT_NAME],
                "categories": ["ml"],
            },
            "versions": [
                {
                    "name": wire.VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [
                        {"name": name, "type": kind, "jsonPath": path, "description": text}
                        | ({"priority": priority} if priority else {})
                        for name, kind, path, priority, text in COLUMNS
                    ],
                    "schema": {"openAPIV3Schema": schema()},
                }
            ],
        },
    }


def main() -> None:
    """Write the CRD to standard output."""
    sys.stdout.write("# Generated by `python -m lora_dpo_api.crd`; change the models instead.\n")
    sys.stdout.write(yaml12.dumps(definition()))


if __name__ == "__main__":
    main()
