from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_dpo_api import config_file, crd, yaml12
from lora_dpo_api.config_models import AInit
from lora_dpo_api.errors import SpecError
from lora_dpo_api.hardware import Platform
from lora_dpo_api.job import LoraDpoJob
from lora_dpo_api.resolve import Resolved, resolve

Changes = dict[str, Any]
Resolve = Callable[[Changes], Resolved]
Refuse = Callable[[Changes], list[str]]


@pytest.mark.parametrize("name", ["job", "smallest"])
def test_the_trainers_configuration_is_as_committed(name: str, data: Path, body: dict[str, Any]) -> None:
    written = yaml12.loads((data / "job.yaml").read_text()) if name == "job" else body
    expected = (data / "golden" / f"{name}.config.yaml").read_text()
    assert resolve(LoraDpoJob.from_body(written)).config_yaml == expected


def test_the_trainer_reads_back_exactly_what_was_resolved(data: Path) -> None:
    found = resolve(LoraDpoJob.from_body(yaml12.loads((data / "job.yaml").read_text())))
    loaded = config_file.load(found.config_yaml)
    assert loaded.config == found.config
    assert loaded.warnings == ()
    assert loaded.ignored == ()


def test_unset_values_take_the_guides_defaults(resolved: Resolve) -> None:
    config = resolved({}).config
    assert (config.optimizer.learning_rate, config.optimizer.warmup) == (5e-6, 0.1)
    assert (config.lora.r, config.lora.alpha, config.lora.zero_init_b) == (64, 64.0, True)
    assert (config.beta, config.trainer.num_epochs, config.train_seq_len) == (0.1, 1.0, 4096)


def test_alpha_follows_the_rank(resolved: Resolve) -> None:
    assert resolved({"lora": {"r": 16}}).config.lora.alpha == 16.0


def test_a_run_is_named_after_its_job_unless_it_has_an_identity_of_its_own(resolved: Resolve) -> None:
    assert resolved({}).config.run_id == "team-a/tiny"
    assert resolved({"runId": "sweep-7"}).config.run_id == "sweep-7"


def test_cpu_computes_in_float32_and_tpu_in_bfloat16(resolved: Resolve) -> None:
    on_tpu = resolved({"cpu": None, "tpu": {"acceleratorType": "v6e-8"}})
    assert (resolved({}).config.trainer.mp, on_tpu.config.trainer.mp) == ("p=f32,c=f32", "p=f32,c=bfloat16")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"cpu": {"hosts": 2}}, "9 cannot be split evenly over the 2 devices of cpu x2; set a multiple of 2"),
        (
            {"cpu": None, "tpu": {"machineType": "ct5p-hightpu-4t", "topology": "2x2x2", "slices": 2}},
            "9 cannot be split evenly over the 16 devices of v5p 2x2x2 x2; set a multiple of 16",
        ),
    ],
)
def test_a_batch_that_its_devices_cannot_share_is_refused_before_any_pod(
    changes: Changes, sentence: str, refused: Refuse
) -> None:
    found = refused(changes | {"trainer": {"trainBatchSize": 9}})
    assert found == [f"spec.trainer.trainBatchSize: {sentence}"]


def test_warmup_is_a_share_or_a_number_of_steps(resolved: Resolve) -> None:
    assert resolved({"optimizer": {"warmupRatio": 0.05}}).config.optimizer.warmup == 0.05
    assert resolved({"optimizer": {"warmupSteps": 50}}).config.optimizer.warmup == 50


def test_a_zero_init_b_of_false_is_forced_to_true_and_said_so(resolved: Resolve) -> None:
    found = resolved({"lora": {"zeroInitB": False}})
    assert found.job.spec.lora.zero_init_b is True
    assert found.config.lora.zero_init_b is True
    (warning,) = found.warnings
    assert (warning.code, warning.path) == ("ZeroInitBForced", "spec.lora.zeroInitB")


def test_a_at_zero_leaves_b_random_in_silence(resolved: Resolve) -> None:
    found = resolved({"lora": {"aInitMode": "zero"}})
    assert (found.config.lora.zero_init_b, found.config.lora.a_init_mode) == (False, AInit.ZERO)
    assert found.warnings == ()


def test_a_slice_of_several_hosts_has_its_shape(resolved: Resolve) -> None:
    machines = resolved(
        {"cpu": None, "tpu": {"machineType": "ct6e-standard-4t", "topology": "4x4", "slices": 2}}
    ).hardware
    assert (machines.platform, machines.slices, machines.hosts, machines.chips) == (Platform.TPU, 2, 4, 16)
    assert (machines.processes, machines.devices, machines.chips_per_host, machines.multi_host) == (8, 32, 4, True)
    assert machines.description == "v6e 4x4 x2"
    assert (machines.status.hosts, machines.status.chips) == (8, 32)


def test_cpu_hosts_promise_no_devices(resolved: Resolve) -> None:
    machines = resolved({"cpu": {"hosts": 2, "slices": 2}}).hardware
    assert (machines.platform, machines.processes, machines.devices) == (Platform.CPU, 4, 0)
    assert (machines.description, machines.node_selector) == ("cpu x4", {})


def test_every_wrong_field_is_named_at_once(refused: Refuse) -> None:
    changes: Changes = {"cpu": None, "tpu": {"machineType": "ct5lp-hightpu-4t", "topology": "4x5"}}
    assert refused(changes | {"output": {"path": "/results"}}) == [
        "spec.tpu.topology: 4x5 is not a topology of ct5lp-hightpu-4t (v5e); "
        "allowed: 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16",
        "spec.output.path: /results is on no mounted volume; "
        "allowed: a path on a volume of podTemplate.volumes and volumeMounts, gs://…, s3://…",
    ]


def test_a_learning_rate_above_the_limit_is_refused_and_lifted_by_ignoring_guidance(
    resolved: Resolve, refused: Refuse
) -> None:
    changes: Changes = {"optimizer": {"learningRate": 2e-4}}
    (sentence,) = refused(changes)
    assert sentence.startswith("spec.optimizer.learningRate: 0.0002 must be at most 5e-5")
    lifted = resolved(changes | {"guidance": "ignore"})
    assert [warning.code for warning in lifted.warnings] == ["LearningRateTooHigh"]


@pytest.mark.parametrize("queue", [{"queueName": "tpu"}, {}])
def test_kueues_own_label_names_the_queue_too(queue: Changes, body: dict[str, Any]) -> None:
    body["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "tpu"}
    body["spec"] |= queue
    assert resolve(LoraDpoJob.from_body(body)).queue == "tpu"


def test_two_queues_contradict_each_other(body: dict[str, Any]) -> None:
    body["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "tpu"}
    body["spec"]["queueName"] = "other"
    with pytest.raises(SpecError, match=r"spec\.queueName: other contradicts the label .*: tpu; keep one"):
        resolve(LoraDpoJob.from_body(body))


def of_schema(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a structural schema takes."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema.get("type"):
        case "object" if "properties" in schema:
            required = schema.get("required", [])
            fields = {name: of_schema(child) for name, child in schema["properties"].items()}
            return st.fixed_dictionaries(
                {name: fields[name] for name in required},
                optional={name: field for name, field in fields.items() if name not in required},
            )
        case "object" if "additionalProperties" in schema:
            low, high = schema.get("minProperties", 0), min(schema.get("maxProperties", 2), 2)
            keys = st.text("abcdefg", min_size=1, max_size=4)
            return st.dictionaries(keys, of_schema(schema["additionalProperties"]), min_size=low, max_size=high)
        case "object":
            return st.dictionaries(st.sampled_from(["name", "mountPath", "emptyDir"]), st.just("a"), max_size=2)
        case "array":
            return st.lists(of_schema(schema["items"]), min_size=schema.get("minItems", 0), max_size=2)
        case "string":
            low, high = schema.get("minLength", 0), min(schema.get("maxLength", 24), 24)
            text = st.from_regex(schema["pattern"], fullmatch=True) if "pattern" in schema else st.text(max_size=high)
            return text.filter(lambda value: low <= len(value) <= high)
        case "integer":
            return st.integers(schema["minimum"], schema["maximum"])
        case "number":
            return st.floats(
                schema["minimum"],
                schema["maximum"],
                exclude_min=schema.get("exclusiveMinimum", False),
                exclude_max=schema.get("exclusiveMaximum", False),
            )
        case "boolean":
            return st.booleans()
        case other:
            raise AssertionError(f"no values for {other}")


@pytest.mark.parametrize("name", ["org/model@v1", "@"])
def test_a_revision_has_a_field_of_its_own(refused: Refuse, name: str) -> None:
    (problem,) = refused({"initializeFromHf": name})
    assert problem.startswith("spec.initializeFromHf:")
    assert "spec.revision" in problem


def resolved_or_refused(job: dict[str, Any]) -> Resolved | SpecError:
    try:
        return resolve(LoraDpoJob.from_body(job))
    except SpecError as error:
        return error


SPEC_SCHEMA = crd.schema()["properties"]["spec"]
CHOICES = SPEC_SCHEMA["properties"]
MACHINES = st.one_of(
    of_schema(CHOICES["tpu"]).map(lambda value: {"tpu": value}),
    of_schema(CHOICES["cpu"]).map(lambda value: {"cpu": value}),
    st.fixed_dictionaries(
        {
            "machineType": st.sampled_from(["ct6e-standard-4t", "ct5p-hightpu-4t", "ct6e-standard-8t"]),
            "topology": st.sampled_from(["2x2", "2x4", "2x2x1", "4x4", "4x4x4", "1x1x1"]),
            "slices": st.integers(1, 3),
        }
    ).map(lambda value: {"tpu": value}),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(
    names=st.sets(st.sampled_from(sorted(set(CHOICES) - {"tpu", "cpu"})), max_size=5),
    machines=MACHINES,
    drawn=st.data(),
)
def test_every_spec_that_the_schema_takes_is_resolved_or_refused(
    names: set[str], machines: dict[str, Any], drawn: st.DataObject
) -> None:
    base = {
        "initializeFromHf": "hub/model",
        "data": {"components": {"prefs": {"source": {"type": "url", "trainUrls": ["gs://data/train.jsonl"]}}}},
        "output": {"path": "gs://bucket/run"},
    }
    changes = {name: drawn.draw(of_schema(CHOICES[name]), name) for name in sorted(names)}
    job = {"metadata": {"name": "a", "namespace": "b"}, "spec": base | changes | machines}
    found = resolved_or_refused(job)
    if isinstance(found, SpecError):
        assert found.problems
        assert all(problem.path.startswith("spec") for problem in found.problems)
    else:
        assert config_file.load(found.config_yaml).config == found.config


def test_the_same_job_gives_the_same_bytes_whatever_the_order_of_its_keys(data: Path) -> None:
    def shuffled(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        items = list(value.items())
        random.Random(7).shuffle(items)
        return {key: shuffled(child) for key, child in items}

    written = yaml12.loads((data / "job.yaml").read_text())
    first, second = (resolve(LoraDpoJob.from_body(body)).config_yaml for body in (written, shuffled(written)))
    assert first == second
