from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from lora_dpo_api import crd, policy, yaml12
from lora_dpo_api.crd import structural

CRDS = Path(__file__).parents[2] / "crds"


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from nodes(schema["additionalProperties"], f"{path}{{}}")


SPEC = crd.schema()["properties"]["spec"]


def test_the_committed_definition_is_the_generated_one() -> None:
    committed = (CRDS / "loradpojobs.yaml").read_text()
    assert yaml12.loads(committed) == crd.definition()
    assert committed.endswith(yaml12.dumps(crd.definition()))


def test_the_committed_policies_are_the_generated_ones() -> None:
    documents = (CRDS / "admission-policy.yaml").read_text().split("---\n")
    assert tuple(map(yaml12.loads, documents)) == policy.policies()


def test_the_definition_is_small_enough_for_plain_apply() -> None:
    assert (CRDS / "loradpojobs.yaml").stat().st_size <= crd.LIMIT


def test_every_string_list_and_map_of_the_spec_has_a_bound() -> None:
    for path, schema in nodes(SPEC):
        match schema.get("type"):
            case "string":
                assert "maxLength" in schema or "enum" in schema, path
            case "array":
                assert "maxItems" in schema, path
            case "object" if "additionalProperties" in schema:
                assert "maxProperties" in schema, path
            case "integer" | "number":
                assert {"minimum", "maximum"} <= set(schema), path


def test_the_schema_is_structural() -> None:
    for path, schema in nodes(crd.schema()):
        assert "type" in schema, path
        assert not {"$ref", "anyOf", "oneOf", "allOf", "default", "nullable", "title"} & set(schema), path


def test_every_field_of_the_spec_is_explained() -> None:
    for path, schema in nodes(SPEC):
        if path and not path.endswith(("[]", "{}")):
            assert schema.get("description"), path


def test_every_rule_about_a_field_points_to_a_field() -> None:
    for path, schema in nodes(crd.schema()):
        for rule in schema.get("x-kubernetes-validations", []):
            here = schema
            for name in rule.get("fieldPath", "").split(".")[1:]:
                assert name in here["properties"], (path, rule)
                here = here["properties"][name]


def test_columns_show_where_training_is() -> None:
    version = crd.definition()["spec"]["versions"][0]
    narrow = [column["name"] for column in version["additionalPrinterColumns"] if not column.get("priority")]
    wide = [column["name"] for column in version["additionalPrinterColumns"] if column.get("priority")]
    assert (narrow, wide) == (
        ["Phase", "Step", "Loss", "Margin", "Acc", "ETA", "Age"],
        ["Slice", "Restarts", "Message"],
    )


def test_a_union_cannot_be_said_in_a_structural_schema() -> None:
    class Either(BaseModel):
        value: int | str

    with pytest.raises(ValueError, match="no unions"):
        structural(Either.model_json_schema())


def test_an_exclusive_bound_between_whole_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="must be a whole number"):
        structural({"type": "number", "exclusiveMaximum": 0.5})


def test_guidance_only_warns_and_changes_of_a_started_job_are_denied() -> None:
    actions = {
        manifest["spec"]["policyName"]: manifest["spec"]["validationActions"]
        for manifest in policy.policies()
        if manifest["kind"] == "ValidatingAdmissionPolicyBinding"
    }
    assert actions == {policy.GUIDANCE: ["Warn"], policy.IMMUTABLE: ["Deny"]}


def test_every_field_of_the_spec_has_a_rule_about_changing_it() -> None:
    immutable = policy.policies()[0]["spec"]["validations"]
    named = {rule["message"].partition(":")[0].removeprefix("spec.") for rule in immutable}
    assert named == set(SPEC["properties"])
